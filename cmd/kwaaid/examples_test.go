package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// examples are programs and pages that a user copies; here they meet a real node.
const examples = "../../examples"

func TestExamples_CurlPageDoesWhatItSays(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "od"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no " + tool + " here")
		}
	}
	h := startNode(t, "--expert", "checkpoint="+fixtures+"/tiny-mixtral-text", "--expert", "id=7,kind=identity,hidden=4")
	page, err := os.ReadFile(filepath.Join(examples, "curl", "README.md"))
	require.NoError(t, err)
	says := []string{
		`"shape":[-1,128]`,
		`"data":[1,2,3,4,5,6,7,8]`,
		`"missing_experts":""`,
		`-0.18765043`,
		`INVALID_ARGUMENT`,
	}
	blocks := shellBlock.FindAllStringSubmatch(string(page), -1)
	require.Len(t, blocks, len(says))
	for i, block := range blocks {
		require.Contains(t, block[1], "http://127.0.0.1:7575")
		out, err := exec.Command("sh", "-euc", strings.ReplaceAll(block[1], "127.0.0.1:7575", h.API)).CombinedOutput()
		require.NoError(t, err, "%s\n%s", block[1], out)
		require.Contains(t, string(out), says[i], block[1])
	}
}

func TestExamples_GoProgramCallsAnExpert(t *testing.T) {
	h := startNode(t, "--expert", "id=7,kind=identity,hidden=4")
	binary := filepath.Join(t.TempDir(), "example")
	out, err := exec.Command("go", "build", "-o", binary, examples+"/go").CombinedOutput()
	require.NoError(t, err, "%s", out)

	out, err = exec.Command(binary, "http://"+h.API, "expert-7", "4").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, "[1 1 1 1]\n", string(out))

	out, err = exec.Command(binary, "http://"+h.API, "expert-7", "5").CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "INVALID_ARGUMENT")
}
