package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/demo"
)

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

func TestDocs_EveryExampleOfTheAPIWorks(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "seq", "cmp"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	text, err := os.ReadFile("../../docs/API.md")
	require.NoError(t, err)
	model, err := filepath.Abs(filepath.Join(fixtures, "moe", "mixtral-f32"))
	require.NoError(t, err)
	h := startNode(t, "--expert", "id=7,kind=identity,hidden=4", "--expert", "checkpoint="+model)
	blocks := shellBlock.FindAllStringSubmatch(string(text), -1)
	require.GreaterOrEqual(t, len(blocks), 7)
	for _, b := range blocks {
		script := strings.ReplaceAll(b[1], "127.0.0.1:7575", h.API)
		cmd := exec.CommandContext(t.Context(), "sh", "-eu", "-c", script)
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s\n%s", script, out)
	}
}

var (
	indentedBlock = regexp.MustCompile(`(?m)(?:^    .*\n)+`)
	outputSum     = regexp.MustCompile(`sha256 ([0-9a-f]{64})`)
)

// commands returns those of a document's indented blocks, one a line, without what continues them on the next.
func commands(section string) (lines []string) {
	for _, block := range indentedBlock.FindAllString(section, -1) {
		for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
	}
	return lines
}

// The README's first five minutes, as they stand: only ports, data directories and the address that the first node prints are others.
func TestDocs_TwoNodesByHandAsInTheREADME(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "## Two nodes by hand")
	require.True(t, found)
	section, _, found = strings.Cut(section, "\n## ")
	require.True(t, found)

	// A clone after `make build`.
	clone := t.TempDir()
	binary, env := testee(t)
	testdata, err := filepath.Abs("../../testdata")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(clone, "bin"), 0o700))
	require.NoError(t, os.Symlink(binary, filepath.Join(clone, "bin", "kwaaid")))
	require.NoError(t, os.Symlink(testdata, filepath.Join(clone, "testdata")))

	var nodes []*demo.Host
	var sums []string
	stopped := false
	for _, line := range commands(section) {
		if flags, isRun := strings.CutPrefix(line, "bin/kwaaid run "); isRun {
			if len(nodes) > 0 {
				require.Contains(t, flags, "/ip4/.../tcp/7577/p2p/12D3Koo...")
				flags = strings.Replace(flags, "/ip4/.../tcp/7577/p2p/12D3Koo...", nodes[0].Addrs[0], 1)
			}
			flags = regexp.MustCompile(`/ip4/0\.0\.0\.0/tcp/\d+`).ReplaceAllString(flags, "/ip4/127.0.0.1/tcp/0")
			flags = regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(flags, "127.0.0.1:0")
			flags = regexp.MustCompile(`--data \S+`).ReplaceAllString(flags, "--data "+t.TempDir())
			nodes = append(nodes, startNode(t, strings.Fields(flags)...))
			continue
		}
		if line == "make build" {
			continue
		}
		require.Len(t, nodes, 2, line)
		if line == "export KWAAI_API=127.0.0.1:7585" {
			env = append(env, "KWAAI_API="+nodes[1].API)
			continue
		}
		if len(sums) > 0 && !stopped && strings.HasPrefix(line, "bin/kwaaid call ") { // "Then stop the first one with Ctrl-C and call again."
			stopped = true
			require.NoError(t, nodes[0].Stop(context.WithoutCancel(t.Context())))
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-euc", line)
		cmd.Dir, cmd.Env = clone, append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s\n%s", line, out)
		if line == "bin/kwaaid call 8 --rows 4" {
			sum := outputSum.FindStringSubmatch(string(out))
			require.NotNil(t, sum, "%s", out)
			sums = append(sums, sum[1])
			require.Contains(t, string(out), nodes[len(sums)-1].Peer, "the first node answers, then the second")
		}
	}
	require.True(t, stopped)
	require.Len(t, sums, 2)
	require.Equal(t, sums[0], sums[1], "the same weights on every machine")
}
