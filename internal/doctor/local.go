package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kwaai/kwaaid/internal/p2p"
)

const (
	// leastDisk is what key, peer cache and the DHT's records of a busy node need, with room to rewrite them.
	leastDisk = 64 << 20
	// scarceDisk: logs and checkpoints beside them fill the rest soon.
	scarceDisk = 1 << 30
)

// configuration says whether a node would start with what is configured here.
func (e *examination) configuration() Check {
	const name = "configuration"
	if e.ConfigErr != nil {
		return failed(name, "`kwaaid config check` shows each error with its line; `kwaaid config default` prints every key", "%v", e.ConfigErr)
	}
	return fine(name, "can be used")
}

// dataDir is the running node's data directory, or the configured one; empty: not known.
func (e *examination) dataDir() string {
	switch {
	case e.checkup != nil:
		return e.checkup.Data
	case e.Config != nil:
		return e.Config.Data
	default:
		return ""
	}
}

// holder tells whether a process holds the configured data directory, and which one.
func (e *examination) holder() (pid string, held bool) {
	if e.Config == nil {
		return "", false
	}
	if _, err := os.Stat(p2p.IdentityPath(e.Config.Data)); err != nil {
		return "", false // no node has ever run there, or we cannot look
	}
	d, err := p2p.OpenDataDir(e.Config.Data)
	if err == nil {
		_ = d.Close() // the lock goes with it either way
		return "", false
	}
	var l *p2p.LockedError
	if !errors.As(err, &l) {
		return "", false
	}
	if l.PID == 0 {
		return "(unknown)", true
	}
	return strconv.Itoa(l.PID), true
}

// data looks at the data directory.
func (e *examination) data() Check {
	const name = "data directory"
	dir := e.dataDir()
	if dir == "" {
		return skipped(name, "the configuration does not say where it is")
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && e.running:
		return skipped(name, "the node's directory %s is not on this machine", dir)
	case errors.Is(err, fs.ErrNotExist):
		return e.missing(name, dir)
	case errors.Is(err, fs.ErrPermission):
		return skipped(name, "%s cannot be looked into as this user; run the doctor as the node's", dir)
	case err != nil:
		return failed(name, "choose another with --data", "%v", err)
	case !info.IsDir():
		return failed(name, "move that file away, or choose another with --data", "%s is no directory", dir)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0:
		return failed(name, "chmod go-w "+dir, "%s can be written by others (mode %04o): they could replace the node's key", dir, info.Mode().Perm())
	}
	f, err := os.CreateTemp(dir, ".doctor-*")
	switch {
	case errors.Is(err, fs.ErrPermission) && e.running:
		return skipped(name, "%s cannot be written as this user; run the doctor as the node's", dir)
	case err != nil:
		return failed(name, "give it to the user who runs the node with chown, or choose another with --data", "%s cannot be written: %v", dir, err)
	}
	_, err = f.WriteString("kwaaid doctor\n")
	if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return failed(name, "look at the disk: is it full, or mounted read-only?", "%s cannot be written: %v", dir, err)
	}
	return fine(name, "%s is there and can be written", dir)
}

// missing: a node makes its directory at the first start, if it may.
func (e *examination) missing(name, dir string) Check {
	above := filepath.Dir(dir)
	for {
		info, err := os.Stat(above)
		if err == nil && !info.IsDir() {
			return failed(name, "choose another with --data", "%s cannot be made: %s is no directory", dir, above)
		}
		if err == nil || above == filepath.Dir(above) {
			return fine(name, "%s will be made at the first start", dir)
		}
		above = filepath.Dir(above)
	}
}

// key looks at the node's key.
func (e *examination) key() Check {
	const name = "key"
	dir := e.dataDir()
	if dir == "" {
		return skipped(name, "the data directory is not known")
	}
	path := p2p.IdentityPath(dir)
	key, err := p2p.LoadIdentity(dir)
	switch {
	case errors.Is(err, p2p.ErrNoIdentity) && e.running:
		return skipped(name, "%s is not on this machine", path)
	case errors.Is(err, p2p.ErrNoIdentity):
		return fine(name, "%s will be made at the first start", path)
	case errors.Is(err, fs.ErrPermission) && e.running:
		return skipped(name, "%s cannot be read as this user, which is as it should be", path)
	case err != nil:
		return failed(name, "put your copy back with `kwaaid identity --import FILE`", "%v", err)
	}
	if info, err := os.Stat(path); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return failed(name, "chmod 600 "+path, "%s can be read by others (mode %04o): whoever has it can be this node", path, info.Mode().Perm())
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return failed(name, "put your copy back with `kwaaid identity --import FILE`", "%v", err)
	}
	if e.running && id.String() != e.status.Peer {
		return failed(name, "restart the node, or put the old key back", "%s is the key of %s, the node runs as %s: it was replaced", path, id, e.status.Peer)
	}
	return fine(name, "%s; keep a copy of %s", id, path)
}

// disk looks at the space that is left where the data directory is.
func (e *examination) disk() Check {
	const name = "disk"
	dir := e.dataDir()
	for dir != "" {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		above := filepath.Dir(dir)
		if above == dir {
			break
		}
		dir = above
	}
	free, ok := freeSpace(dir)
	switch {
	case dir == "" || !ok:
		return skipped(name, "this system does not tell how much space is left")
	case free < leastDisk:
		return failed(name, "make room, or choose another directory with --data", "%s left at %s: the node needs %s for its records", bytesText(free), dir, bytesText(leastDisk))
	case free < scarceDisk:
		return advice(name, "make room before it runs out", "%s left at %s", bytesText(free), dir)
	default:
		return fine(name, "%s left at %s", bytesText(free), dir)
	}
}

// ports looks whether a node could listen where it is told to, or does.
func (e *examination) ports() Check {
	const name = "ports"
	switch {
	case e.running:
		return fine(name, "the node listens on %s", list(e.status.Addrs))
	case e.Config == nil:
		return skipped(name, "the configuration cannot be read")
	}
	if _, held := e.holder(); held {
		return skipped(name, "the process that runs on the data directory has them")
	}
	var problems []string
	for _, a := range e.Config.Listen {
		if err := p2p.Probe(a); err != nil {
			problems = append(problems, err.Error())
		}
	}
	for key, addr := range map[string]string{"api": e.Config.API, "grpc": e.Config.GRPC} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", key, err))
			continue
		}
		_ = l.Close() // nothing came of it
	}
	if len(problems) > 0 {
		return failed(name, "`ss -ltunp` shows who has a port; choose others with --listen, --api and --grpc", "%s", list(problems))
	}
	return fine(name, "%s, api %s and grpc %s are free", list(e.Config.Listen), e.Config.API, e.Config.GRPC)
}

// list joins what people read.
func list(items []string) string { return strings.Join(items, "; ") }

// bytesText prints a number of bytes in binary units.
func bytesText(n uint64) string {
	const unit = 1 << 10
	value, name := float64(n), "B"
	for _, next := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, name = value/unit, next
	}
	return fmt.Sprintf("%.4g %s", value, name)
}
