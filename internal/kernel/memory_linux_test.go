package kernel

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

func TestHeap_HandsOutZeroedMemoryThatNobodyElseHas(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20, 20))
	var h heap
	type held struct {
		b    []byte
		mark byte
	}
	var all []held
	for i := range 300 {
		if len(all) > 12 || (len(all) > 0 && rnd.IntN(3) == 0) {
			j := rnd.IntN(len(all))
			for _, at := range []int{0, 1111, len(all[j].b) / 1112 * 1111} {
				require.Equal(t, all[j].mark, all[j].b[at])
			}
			h.free(all[j].b)
			all = append(all[:j], all[j+1:]...)
			continue
		}
		b, err := h.allocate((1 + rnd.IntN(1200)) * pageSize)
		require.NoError(t, err)
		for at := 0; at < len(b); at += 1111 {
			require.Zero(t, b[at])
		}
		m := held{b, byte(i) | 1}
		for at := 0; at < len(b); at += 1111 {
			b[at] = m.mark
		}
		all = append(all, m)
	}
	for _, m := range all {
		h.free(m.b)
	}
	require.Empty(t, h.arenas, "all of it goes back to the system")
}

func TestNewMemory_IsAligned(t *testing.T) {
	for _, n := range []int{1, 4097, 3 << 20, 140 << 20} {
		m, err := newMemory(n)
		require.NoError(t, err)
		require.Len(t, m.bytes, n)
		require.Zero(t, uintptr(unsafe.Pointer(&m.bytes[0]))%cacheLine)
		m.bytes[n-1] = 1
	}
}

// resident returns how many bytes of this process are in memory.
func resident(t *testing.T) int {
	t.Helper()
	statm, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	var size, pages int
	_, err = fmt.Sscan(string(statm), &size, &pages)
	require.NoError(t, err)
	return pages * os.Getpagesize()
}

func TestMeasureLimits_LeavesNoMemoryBehind(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it must not take a collection
	pool := newTestPool(t, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // one try is enough
	before := resident(t)
	_, err := MeasureLimits(ctx, pool)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, resident(t), before+limitMemory/2)
}
