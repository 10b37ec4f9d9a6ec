package dispatch

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

// instant answers at once with results made beforehand: what remains is dispatch's own.
type instant struct{ results []expert.Result }

func (c *instant) Call(context.Context, peer.ID, *tensor.Dense, []expert.Pair, codec.DType) ([]expert.Result, expert.Load, error) {
	return c.results, expert.Load{QueuedRows: 1, ServiceTime: time.Microsecond}, nil
}

func (c *instant) Ping(context.Context, peer.ID) (time.Duration, error) { return time.Millisecond, nil }

func (c *instant) Find(context.Context, expert.ID) ([]peer.AddrInfo, error) { return nil, nil }

func (c *instant) Walk(context.Context, expert.ID) ([]peer.AddrInfo, error) { return nil, nil }

func (c *instant) Has(expert.ID) (expert.Hosted, bool) { return expert.Hosted{}, false }

func (c *instant) Local(context.Context, *tensor.Dense, []expert.Pair) []expert.Result { return nil }

// newInstant returns a Dispatcher whose peers answer pairs at once.
func newInstant(tb testing.TB, pairs int) (*Dispatcher, Request) {
	const width = 1024
	x := expert.NewRows(make([]float32, width), width)
	c := &instant{}
	req := Request{X: x}
	table := registry.New(registry.DefaultLimits(), time.Now())
	for i := range pairs {
		id := expert.ID(i)
		req.Pairs = append(req.Pairs, expert.Pair{Expert: id})
		c.results = append(c.results, expert.Result{Output: x, Digest: digestX, Numerics: "exact-1"})
		table.AddProvider(id, "peer-a", registry.DHT, time.Now())
		if pairs == 1 {
			table.AddProvider(id, "peer-b", registry.DHT, time.Now())
			table.AddProvider(id, "peer-c", registry.DHT, time.Now())
		}
	}
	cfg := DefaultConfig()
	cfg.CheckShare = 0 // checks run behind calls, with costs of their own
	d := New(cfg, table, c, c, c)
	tb.Cleanup(d.Close)
	return d, req
}

// BenchmarkCall is what dispatch adds to an exchange: one row of 1,024, one expert with three replicas.
func BenchmarkCall(b *testing.B) {
	benchmarkCall(b, 1)
}

// BenchmarkCall8Pairs is the same for a layer's eight experts at one peer.
func BenchmarkCall8Pairs(b *testing.B) {
	benchmarkCall(b, 8)
}

func benchmarkCall(b *testing.B, pairs int) {
	d, req := newInstant(b, pairs)
	b.ReportAllocs()
	for b.Loop() {
		answers, err := d.Call(b.Context(), req)
		if err != nil || answers[0].Err != nil {
			b.Fatal(err, answers[0].Err)
		}
	}
}

func TestCall_AllocatesLittle(t *testing.T) {
	for pairs, most := range map[int]float64{1: 10, 8: 30} {
		d, req := newInstant(t, pairs)
		allocs := testing.AllocsPerRun(100, func() {
			if _, err := d.Call(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		})
		require.LessOrEqual(t, allocs, most, "%d pairs", pairs)
	}
}
