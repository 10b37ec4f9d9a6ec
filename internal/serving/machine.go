package serving

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// noCgroupLimit: cgroup v1 writes "no limit" as the largest int64 rounded down to a page. Nothing above half of it is meant.
const noCgroupLimit = math.MaxInt64 / 2

// memoryLeft reads from a Linux root how many bytes a process may still take before the kernel swaps, or kills it: what the
// machine has available, or less where a cgroup, v1 or v2, or one above it has less left. False when it can't be told.
func memoryLeft(root fs.FS) (int64, bool) {
	left, ok := availableMemory(root)
	for _, group := range memoryCgroups(root) {
		if l, limited := group.left(root); limited && (!ok || l < left) {
			left, ok = l, true
		}
	}
	return left, ok
}

// availableMemory reads MemAvailable, the kernel's own estimate of what can be used without swapping.
func availableMemory(root fs.FS) (int64, bool) {
	data, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(data) {
		if rest, found := bytes.CutPrefix(line, []byte("MemAvailable:")); found {
			fields := strings.Fields(string(rest)) // such as "24091552 kB"
			if len(fields) == 0 {
				return 0, false
			}
			kib, err := strconv.ParseInt(fields[0], 10, 64)
			return kib << 10, err == nil && kib >= 0 && kib < math.MaxInt64>>10
		}
	}
	return 0, false
}

// memoryCgroup is one cgroup that may bound this process, with the names of its files, which differ between v1 and v2.
type memoryCgroup struct {
	dir, limit, usage, reclaimable string
}

// memoryCgroups lists the cgroups, v1 and v2, in which this process is, and those above them. In a container the path may be
// one of the machine outside, so the mount's own top is always among them.
func memoryCgroups(root fs.FS) []memoryCgroup {
	data, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	var groups []memoryCgroup
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for scanner.Scan() { // each line is HIERARCHY:CONTROLLERS:PATH
		parts := strings.SplitN(scanner.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var mount string
		group := memoryCgroup{limit: "memory.max", usage: "memory.current", reclaimable: "inactive_file"}
		switch {
		case parts[0] == "0" && parts[1] == "":
			mount = "sys/fs/cgroup"
		case strings.Contains(","+parts[1]+",", ",memory,"):
			mount = "sys/fs/cgroup/memory"
			group = memoryCgroup{limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", reclaimable: "total_inactive_file"}
		default:
			continue
		}
		for dir := path.Clean("/" + parts[2]); ; dir = path.Dir(dir) {
			group.dir = path.Join(mount, dir)
			groups = append(groups, group)
			if dir == "/" {
				break
			}
		}
	}
	return groups
}

// left returns what the cgroup may still take; file pages that the kernel would drop first don't count as taken. False when
// the cgroup has no limit.
func (g memoryCgroup) left(root fs.FS) (int64, bool) {
	limit, ok := readNumber(root, path.Join(g.dir, g.limit))
	if !ok || limit > noCgroupLimit {
		return 0, false
	}
	usage, ok := readNumber(root, path.Join(g.dir, g.usage))
	if !ok {
		return limit, true
	}
	if stat, err := fs.ReadFile(root, path.Join(g.dir, "memory.stat")); err == nil {
		for line := range bytes.Lines(stat) {
			if fields := strings.Fields(string(line)); len(fields) == 2 && fields[0] == g.reclaimable {
				if n, err := strconv.ParseInt(fields[1], 10, 64); err == nil {
					usage -= min(max(n, 0), usage)
				}
			}
		}
	}
	return max(limit-usage, 0), true
}

// readNumber reads a file that holds one number; v2 writes "max" for none.
func readNumber(root fs.FS, name string) (int64, bool) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil && n >= 0
}
