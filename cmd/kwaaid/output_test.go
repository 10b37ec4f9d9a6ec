package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/api"
)

// shown returns what a terminal shows of what was written to it: each line, and the one where the cursor is, without trailing blanks.
func shown(written string) []string {
	lines := strings.Split(written, "\n")
	for i, l := range lines {
		var cells []rune
		for piece := range strings.SplitSeq(l, "\r") {
			cells = append([]rune(piece), cells[min(len(cells), len([]rune(piece))):]...)
		}
		lines[i] = strings.TrimRight(string(cells), " ")
	}
	return lines
}

func TestProgressLine_StandsBelowWhatIsWritten(t *testing.T) {
	var w bytes.Buffer
	p := &progressLine{w: &w, terminal: true}
	log := func(s string) {
		n, err := p.Write([]byte(s))
		require.NoError(t, err)
		require.Equal(t, len(s), n)
	}
	log("up\n")
	p.loading(api.LoadProgress{Name: "olmoe", Done: 3, Total: 64, Bytes: 3 << 30, BytesTotal: 12 << 30, TookS: 2})
	require.Equal(t, []string{"up", "loading: 3 of 64 experts, 3.0 GiB of 12.0 GiB, 1611 MB/s, olmoe"}, shown(w.String()))
	log("a peer came\n")
	p.loading(api.LoadProgress{Name: "7", Total: 1})
	require.Equal(t, []string{"up", "a peer came", "loading: 0 of 1 experts, 7"}, shown(w.String()))
	p.loading(api.LoadProgress{Name: strings.Repeat("é", 100), Total: 1, BytesTotal: 1})
	require.Len(t, []rune(shown(w.String())[2]), maxLine, "it must not wrap")
	p.loading(api.LoadProgress{Name: "olmoe", Done: 64, Total: 64})
	log("experts loaded\n")
	require.Equal(t, []string{"up", "a peer came", "experts loaded", ""}, shown(w.String()))
}

func TestProgressLine_IsNotWhereNoTerminalIs(t *testing.T) {
	var w bytes.Buffer
	p := &progressLine{w: &w}
	p.loading(api.LoadProgress{Total: 1})
	_, err := p.Write([]byte("up\n"))
	require.NoError(t, err)
	p.clear()
	require.Equal(t, "up\n", w.String())
}
