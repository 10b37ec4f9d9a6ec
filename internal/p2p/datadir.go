package p2p

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// lockFile is held by the running node; it contains its process ID.
const lockFile = "lock"

// ErrLocked: another process uses the data directory. See LockedError.
var ErrLocked = errors.New("data directory in use")

// LockedError is ErrLocked with who holds it.
type LockedError struct {
	Dir string
	PID int // of the holder; 0 where it is not known
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("the running node with process ID %d", e.PID)
	}
	return fmt.Sprintf("data directory %s is in use by %s: stop that one, or give this node a directory of its own with --data", e.Dir, who)
}

// Unwrap makes errors.Is(err, ErrLocked) hold.
func (e *LockedError) Unwrap() error { return ErrLocked }

// DataDir is a node's data directory, locked for this process: two nodes under one key would answer for each other.
type DataDir struct {
	Path string
	lock *os.File
}

// OpenDataDir makes the directory where it is missing (mode 0700) and locks it. When another process holds it, the error matches
// ErrLocked. The kernel lets go of the lock when the process ends, however it ends.
func OpenDataDir(path string) (*DataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory %s cannot be made: %w; choose another with --data", path, err)
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory %s cannot be written: %w; give it to this user with chown, or choose another with --data", path, err)
	}
	if err := lockExclusive(f); err != nil {
		defer f.Close() //nolint:errcheck // nothing was written
		if errors.Is(err, errHeld) {
			return nil, &LockedError{Dir: path, PID: readPID(f)}
		}
		return nil, fmt.Errorf("data directory %s cannot be locked: %w", path, err)
	}
	// The process ID is for people; a failure to write it takes nothing from the lock.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &DataDir{Path: path, lock: f}, nil
}

// Close lets go of the directory. Twice is fine.
func (d *DataDir) Close() error {
	err := d.lock.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func readPID(f *os.File) int {
	var buf [16]byte
	n, _ := f.ReadAt(buf[:], 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return 0
	}
	return pid
}
