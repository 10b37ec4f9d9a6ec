package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"
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

// progressLine rewrites one line on a terminal; elsewhere it writes nothing, so that logs stay short.
type progressLine struct {
	w        io.Writer
	terminal bool
	width    int
}

func (a *app) progress() *progressLine {
	f, ok := a.stderr.(*os.File)
	return &progressLine{w: a.stderr, terminal: ok && isatty.IsTerminal(f.Fd())}
}

func (p *progressLine) set(format string, args ...any) {
	if !p.terminal {
		return
	}
	line := fmt.Sprintf(format, args...)
	_, _ = fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.width-len(line))))
	p.width = len(line)
}

// clear removes the line.
func (p *progressLine) clear() {
	if p.terminal && p.width > 0 {
		_, _ = fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.width))
		p.width = 0
	}
}
