package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// children returns the processes that a process has started and that have not ended.
func children(pid int) (list []string) {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range lists {
		text, _ := os.ReadFile(file)
		list = append(list, strings.Fields(string(text))...)
	}
	return list
}

func TestDemo_ThatIsKilledLeavesNoHostsBehind(t *testing.T) {
	if _, err := os.Stat("/proc/self/task"); err != nil {
		t.Skip("needs /proc")
	}
	path, env := testee(t)
	cmd := exec.CommandContext(t.Context(), path, "demo", "--seconds", "60")
	cmd.Env = append(os.Environ(), env...)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var hosts []string
	require.Eventually(t, func() bool {
		hosts = children(cmd.Process.Pid)
		return len(hosts) >= 2
	}, commandTimeout, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	for _, host := range hosts {
		require.Eventually(t, func() bool {
			stat, err := os.ReadFile("/proc/" + host + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ") // nobody may collect it
		}, commandTimeout, 10*time.Millisecond, "host %s goes on", host)
	}
}
