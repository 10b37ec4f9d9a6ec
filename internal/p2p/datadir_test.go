package p2p

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOpenDataDir_IsHeldByOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	first, err := OpenDataDir(dir)
	require.NoError(t, err)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())

	_, err = OpenDataDir(dir) // flock holds between two descriptors of one process too
	require.ErrorIs(t, err, ErrLocked)
	locked, ok := errors.AsType[*LockedError](err)
	require.True(t, ok)
	require.Equal(t, LockedError{Dir: dir, PID: os.Getpid()}, *locked)
	require.ErrorContains(t, err, fmt.Sprintf("data directory %s is in use by the running node with process ID %d", dir, os.Getpid()))

	require.NoError(t, first.Close())
	require.NoError(t, first.Close(), "twice is fine")
	again, err := OpenDataDir(dir)
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

// A child process takes the lock and is killed: the next one gets it.
func TestOpenDataDir_IsFreeAfterAKill(t *testing.T) {
	const variable = "KWAAI_TEST_LOCK_DIR"
	if dir := os.Getenv(variable); dir != "" {
		_, err := OpenDataDir(dir)
		require.NoError(t, err)
		fmt.Println("locked")
		select {}
	}
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpenDataDir_IsFreeAfterAKill$")
	cmd.Env = append(os.Environ(), variable+"="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var line string
	_, err = fmt.Fscanln(out, &line)
	require.NoError(t, err)
	_, err = OpenDataDir(dir)
	locked, ok := errors.AsType[*LockedError](err)
	require.True(t, ok)
	require.Equal(t, cmd.Process.Pid, locked.PID)

	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	d, err := OpenDataDir(dir)
	require.NoError(t, err)
	require.NoError(t, d.Close())
}

func TestOpenDataDir_UnusableSaysWhatToDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := OpenDataDir(filepath.Join(file, "data"))
	require.ErrorContains(t, err, "choose another with --data")
}
