package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/demo"
)

// oneCPU makes a cgroup, v1 or v2, that allows one CPU, and returns its cgroup.procs. It skips the test where that may not be done.
func oneCPU(t *testing.T) (procs string) {
	t.Helper()
	name := fmt.Sprintf("kwaaid-test-%d", os.Getpid())
	for _, limit := range []struct {
		controller, file string
		lines            string
	}{
		{"/sys/fs/cgroup", "cpu.max", "100000 100000"},
		{"/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "100000"}, // of the usual period, 100 ms
	} {
		dir := filepath.Join(limit.controller, name)
		if os.Mkdir(dir, 0o755) != nil { //nolint:gosec // as the system's own
			continue
		}
		t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
		// A file that the kernel did not put there cannot be made.
		if f, err := os.OpenFile(filepath.Join(dir, limit.file), os.O_WRONLY, 0); err == nil {
			_, err = f.WriteString(limit.lines)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	t.Skip("needs the right to make a cgroup that limits CPU time")
	return ""
}

func TestRun_UsesNoMoreThreadsThanACgroupAllows(t *testing.T) {
	procs := oneCPU(t)
	t.Setenv("GOMAXPROCS", "") // comes back as it was
	require.NoError(t, os.Unsetenv("GOMAXPROCS"))
	binary, env := testee(t)
	inside := filepath.Join(t.TempDir(), "kwaaid")
	script := fmt.Sprintf("#!/bin/sh\necho $$ > %q && exec %q \"$@\"\n", procs, binary)
	require.NoError(t, os.WriteFile(inside, []byte(script), 0o700)) //nolint:gosec // a program
	for _, c := range []struct {
		name string
		env  []string
		want float64
	}{
		{"the limit", nil, 1},
		{"what the operator says", []string{"GOMAXPROCS=3"}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, err := demo.StartHost(t.Context(), inside, []string{
				"--data", t.TempDir(), "--api", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0",
			}, append(env, c.env...))
			require.NoError(t, err)
			require.Equal(t, c.want, total(scrape(t, h.API), "go_sched_gomaxprocs_threads"))
			require.NoError(t, h.Stop(t.Context()))
		})
	}
}
