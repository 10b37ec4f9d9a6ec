package registry

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// BenchmarkPickReport is what choosing costs a call, with three replicas.
func BenchmarkPickReport(b *testing.B) {
	s := newScript(DefaultLimits())
	for _, p := range []peer.ID{"a", "b", "c"} {
		s.table.AddProvider(42, p, DHT, s.now)
	}
	dice := rand.New(rand.NewPCG(1, 2))
	now := s.now
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(10 * time.Microsecond)
		pick, err := s.table.Pick(Query{Expert: 42, Rows: 1}, now, dice)
		if err != nil {
			b.Fatal(err)
		}
		s.table.Report(pick, Outcome{
			Kind: Answered, Took: time.Millisecond, Load: expert.Load{QueuedRows: 3, ServiceTime: 50 * time.Microsecond},
		}, now)
	}
}

func TestPickReport_DoesNotAllocate(t *testing.T) {
	s := newScript(DefaultLimits())
	for _, p := range []peer.ID{"a", "b", "c"} {
		s.table.AddProvider(42, p, DHT, s.now)
	}
	dice := rand.New(rand.NewPCG(1, 2))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		pick, err := s.table.Pick(Query{Expert: 42, Rows: 1}, s.now, dice)
		if err != nil {
			t.Fatal(err)
		}
		s.table.Report(pick, Outcome{Kind: Answered, Took: time.Millisecond}, s.now)
	}))
}

// TestTable_HundredThousandExpertsStayUnder100MB: with three described providers each, all of them called.
func TestTable_HundredThousandExpertsStayUnder100MB(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes memory of its own")
	}
	before := heapBytes()
	s := newScript(DefaultLimits())
	dice := rand.New(rand.NewPCG(1, 2))
	const perHost = 6000
	for i := range s.table.limits.Experts / perHost * 3 {
		first := i / 3 * perHost
		d := expert.Description{Experts: make([]expert.Hosted, 0, perHost)}
		for id := first; id < first+perHost; id++ {
			var key [8]byte
			binary.LittleEndian.PutUint64(key[:], uint64(id))
			d.Experts = append(d.Experts, expert.Hosted{
				ID: expert.ID(id), Name: fmt.Sprintf("deepseek-v3/%d/%d", id/256, id%256), State: expert.StateReady,
				Spec: expert.Spec{Kind: "glu", Hidden: 7168, Inner: 2048, DType: "f8_e4m3", Digest: sha256.Sum256(key[:]), Numerics: "exact-1"},
			})
		}
		s.table.Described(peer.ID(fmt.Sprint("peer-", i)), d, s.now)
	}
	for id := range s.table.limits.Experts {
		s.table.AddProvider(expert.ID(id), "peer-0", DHT, s.now) // fills up to the last expert
		for range 3 {
			pick, err := s.table.Pick(Query{Expert: expert.ID(id), Rows: 16}, s.now, dice)
			require.NoError(t, err)
			s.table.Report(pick, Outcome{Kind: Answered, Took: time.Millisecond, Hidden: 7168}, s.now)
		}
	}
	require.Len(t, s.table.experts, 100_000)
	used := heapBytes() - before
	t.Logf("%d experts: %.1f MB, %d bytes each", len(s.table.experts), float64(used)/1e6, used/int64(len(s.table.experts)))
	require.Less(t, used, int64(100e6))
	runtime.KeepAlive(s)
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
