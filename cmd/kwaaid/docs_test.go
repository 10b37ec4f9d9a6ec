package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
