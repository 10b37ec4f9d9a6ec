package serving

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestMemoryLeft_IsTheTightestOfMachineAndCgroups(t *testing.T) {
	const meminfo = "MemTotal:  24000000 kB\nMemFree: 1 kB\nMemAvailable:   8000000 kB\n"
	const machine = 8000000 << 10
	cases := map[string]struct {
		files map[string]string
		left  int64
		ok    bool
	}{
		"nothing to read":  {map[string]string{}, 0, false},
		"the machine only": {map[string]string{"proc/meminfo": meminfo}, machine, true},
		"no number":        {map[string]string{"proc/meminfo": "MemAvailable: many kB\n"}, 0, false},
		"cut short":        {map[string]string{"proc/meminfo": "MemAvailable:\n"}, 0, false},
		"v2, a container with a namespace": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "1000000000\n", "sys/fs/cgroup/memory.current": "300000000\n",
			"sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 100000000\nactive_file 7\n",
		}, 800000000, true},
		"v2, without a limit": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/user.slice/kwaaid.service\n",
			"sys/fs/cgroup/user.slice/kwaaid.service/memory.max": "max\n",
		}, machine, true},
		"v2, the limit is further up": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.current": "9000\n",
		}, 0, true},
		"v2, the machine has less": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "99000000000000\n", "sys/fs/cgroup/memory.current": "0\n",
		}, machine, true},
		"v1": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
			"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "2000000\n",
			"sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "500000\n",
			"sys/fs/cgroup/memory/docker/abc/memory.stat":           "inactive_file 1\ntotal_inactive_file 100000\n",
		}, 1600000, true},
		"v1, a container that sees its own group as the top": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/docker/abc\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "500000\n",
		}, 1500000, true},
		"v1, without a limit": {map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/\nnonsense\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, machine, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for path, data := range c.files {
				root[path] = &fstest.MapFile{Data: []byte(data)}
			}
			left, ok := memoryLeft(root)
			require.Equal(t, c.ok, ok)
			require.Equal(t, c.left, left)
		})
	}
}

func TestMachineMemory_IsKnownHere(t *testing.T) {
	left, ok := machineMemory()
	require.True(t, ok)
	require.Positive(t, left)
}

func TestBudget_FollowsTheMachineWhereNoLimitIsSet(t *testing.T) {
	const gib = int64(1 << 30)
	left := 10*gib + headroom
	b := newBudget(0, func() (int64, bool) { return left, true })
	free := func() int64 {
		n, ok := b.free()
		require.True(t, ok)
		return n
	}
	require.Equal(t, 10*gib, free())
	require.NoError(t, b.reserve(4*gib))
	require.Equal(t, 6*gib, free(), "what loads is not in memory yet")
	left -= 4 * gib
	b.loaded(4 * gib)
	require.Equal(t, 6*gib, free())
	left -= 5 * gib
	require.Equal(t, gib, free(), "others use the machine too")
	var m *MemoryError
	require.ErrorAs(t, b.reserve(2*gib), &m)
	require.Equal(t, gib, m.Free)
	left += 20 * gib
	require.Equal(t, 6*gib, free(), "mapped weights count although the machine could drop them")
	b.release(4*gib, false)
	require.Equal(t, 10*gib, free())
}

func TestBudget_RefusesNothingWhereNothingIsKnown(t *testing.T) {
	b := newBudget(0, func() (int64, bool) { return 0, false })
	require.NoError(t, b.reserve(1<<60))
	_, ok := b.free()
	require.False(t, ok)
}
