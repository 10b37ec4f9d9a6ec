package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"

	"github.com/kwaai/kwaaid/internal/api"
)

// print writes doc as the one JSON document, or has human write for people.
func (a *app) print(doc any, human func(w io.Writer)) error {
	if a.JSON {
		return a.document(doc)
	}
	human(a.stdout)
	return nil
}

func (a *app) document(doc any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	if !a.lines {
		enc.SetIndent("", "  ")
	}
	return enc.Encode(doc)
}

// table writes rows in columns; the first row is the heading.
func table(w io.Writer, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		_, _ = fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	_ = tw.Flush()
}

// millis prints a duration given in milliseconds with the digits that matter.
func millis(ms float64) string {
	d := time.Duration(ms * float64(time.Millisecond))
	switch {
	case d < 10*time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}

func optionalMillis(ms *float64) string {
	if ms == nil {
		return "-"
	}
	return millis(*ms)
}

// shortPeer leaves enough of a peer ID to tell it from others.
func shortPeer(p string) string {
	if p == "" {
		return "this node"
	}
	if len(p) <= 16 {
		return p
	}
	return "…" + p[len(p)-10:]
}

// dash stands for what is empty.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// bytesText prints a number of bytes in binary units.
func bytesText(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for n >= 1024 && i < len(units)-1 {
		n /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%.0f B", n)
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

// maxLine is how long a line of progress may be: a column less than a terminal's usual width, since a line that wraps cannot be rewritten.
const maxLine = 79

// progressLine rewrites one line on a terminal, below what is written through it meanwhile; elsewhere there is no line, so that logs stay short.
// Safe for concurrent use.
type progressLine struct {
	w        io.Writer
	terminal bool

	mu   sync.Mutex
	line []rune // what stands there now
}

func (a *app) progress() *progressLine {
	f, ok := a.stderr.(*os.File)
	return &progressLine{w: a.stderr, terminal: ok && isatty.IsTerminal(f.Fd())}
}

func (p *progressLine) set(format string, args ...any) {
	if !p.terminal {
		return
	}
	line := []rune(fmt.Sprintf(format, args...))
	if len(line) > maxLine {
		line = append(line[:maxLine-1], '…')
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, _ = fmt.Fprintf(p.w, "\r%s%s", string(line), strings.Repeat(" ", max(0, len(p.line)-len(line))))
	p.line = line
}

// clear removes the line.
func (p *progressLine) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	p.line = nil
}

// Write writes whole lines above the line.
func (p *progressLine) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	n, err := p.w.Write(b)
	if len(p.line) > 0 {
		_, _ = io.WriteString(p.w, string(p.line))
	}
	return n, err
}

// erase leaves the cursor at the start of an empty line. The caller holds mu.
func (p *progressLine) erase() {
	if len(p.line) > 0 {
		_, _ = fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", len(p.line)))
	}
}

// loading shows how far a load is, until it is done.
func (p *progressLine) loading(l api.LoadProgress) {
	if l.Done == l.Total {
		p.clear()
		return
	}
	amount := ""
	if l.BytesTotal > 0 {
		amount = fmt.Sprintf("%s of %s, ", bytesText(float64(l.Bytes)), bytesText(float64(l.BytesTotal)))
	}
	if l.Bytes > 0 && l.TookS > 0 {
		amount += fmt.Sprintf("%.0f MB/s, ", float64(l.Bytes)/1e6/l.TookS)
	}
	p.set("loading: %d of %d experts, %s%s", l.Done, l.Total, amount, l.Name) // the name last: it may be too long
}
