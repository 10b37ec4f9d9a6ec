package doctor

import (
	"os"
	"path/filepath"
	"time"
)

// clockSlack: files and nodes may be a little ahead of us without a clock being wrong.
const clockSlack = time.Minute

// clock looks whether the time can be right. Peers do not tell each other the time, and nothing that nodes agree on depends on it; but
// certificates, logs and the age of records do.
func (e *examination) clock() Check {
	const name = "clock"
	const remedy = "set it, and keep it right: `timedatectl set-ntp true`, or chrony"
	now := e.now
	if !e.Built.IsZero() && now.Before(e.Built.Add(-clockSlack)) {
		return failed(name, remedy, "it says %s, which is before this program was made (%s)", now.Format(time.RFC3339), e.Built.Format(time.RFC3339))
	}
	if e.checkup != nil {
		if ahead := time.Until(e.checkup.Time); ahead > clockSlack || ahead < -clockSlack {
			return failed(name, remedy, "the node's clock and that of this machine differ by %v", ahead.Abs().Round(time.Second))
		}
	}
	if file, at := newestFile(e.dataDir()); at.After(now.Add(clockSlack)) {
		return failed(name, remedy, "it says %s, and %s was written at %s: it was put back", now.Format(time.RFC3339), file, at.Format(time.RFC3339))
	}
	switch synchronised, known := clockSynchronised(); {
	case !known:
		return fine(name, "%s, which can be right; whether anything keeps it right is not known here", now.UTC().Format(time.RFC3339))
	case !synchronised:
		return advice(name, remedy, "%s, which can be right; the kernel says that nothing keeps it right", now.UTC().Format(time.RFC3339))
	default:
		return fine(name, "%s, kept right by NTP", now.UTC().Format(time.RFC3339))
	}
}

// newestFile returns the file of a directory that was written last.
func newestFile(dir string) (path string, at time.Time) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", time.Time{}
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.ModTime().After(at) {
			path, at = filepath.Join(dir, entry.Name()), info.ModTime()
		}
	}
	return path, at
}
