package discovery_test

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

const benchHosts = 16

// warm lets every node announce once, so that all are connected, as they are minutes after their start.
func warm(b *testing.B, nodes []*swarmtest.Node) {
	b.Helper()
	for i, n := range nodes {
		_, err := n.Discovery.Declare(b.Context(), expert.ID(1<<32+i))
		require.NoError(b, err)
	}
}

// report adds the median and the 99th percentile to a benchmark's figures.
func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[int(q*float64(len(took)-1))]) / float64(time.Millisecond)
	}
	b.ReportMetric(at(0.50), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
}

// BenchmarkFind measures a look-up of an expert that is not in the cache, until the first provider is known. A DHT client asks: in a
// swarm of 16 every server keeps every record, and would find it at home. The walk that goes on behind the look-up is waited for
// outside the measure.
func BenchmarkFind(b *testing.B) {
	const experts = 64
	nodes := swarmtest.Swarm(b, benchHosts-1, func(i int) []expert.ID {
		if i != 1 {
			return nil
		}
		return sequence(0, experts)
	})
	client := swarmtest.NewNode(b, swarmtest.NewHost(b, swarmtest.TCPConfig()), nil, func(cfg *discovery.Config) {
		cfg.DHT, cfg.Bootstrap = discovery.ModeClient, swarmtest.Addrs(b, nodes[0].Host)
	})
	swarmtest.Eventually(b, func() bool { return client.Discovery.Status().Peers == benchHosts-1 }, "the client does not meet all")
	warm(b, nodes)
	swarmtest.Eventually(b, func() bool { return nodes[1].Discovery.Status().Announced == experts }, "not announced")
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		finder, id := client.Discovery, expert.ID(n%experts)
		b.StopTimer()
		finder.Forget(id)
		b.StartTimer()
		start := time.Now()
		found, err := finder.Find(b.Context(), id)
		took = append(took, time.Since(start))
		b.StopTimer()
		require.NoError(b, err)
		require.Len(b, found, 1)
		<-finder.WalkEnded(id)
		b.StartTimer()
	}
	report(b, took)
}

// BenchmarkFindCached measures a look-up that the cache answers.
func BenchmarkFindCached(b *testing.B) {
	nodes := swarmtest.Swarm(b, 3, func(i int) []expert.ID { return sequence(i, 1) })
	swarmtest.Eventually(b, func() bool { return nodes[1].Discovery.Status().Announced == 1 }, "not announced")
	_, err := nodes[2].Discovery.Walk(b.Context(), 1)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if found, err := nodes[2].Discovery.Find(b.Context(), 1); err != nil || len(found) != 1 {
			b.Fatal(found, err)
		}
	}
}

// BenchmarkDeclare measures the announcement of one expert, until every peer that is to keep its record has acknowledged it.
func BenchmarkDeclare(b *testing.B) {
	nodes := swarmtest.Swarm(b, benchHosts, nil)
	warm(b, nodes)
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		node := nodes[n%benchHosts].Discovery
		start := time.Now()
		done, err := node.Declare(b.Context(), expert.ID(n))
		took = append(took, time.Since(start))
		require.NoError(b, err)
		require.Equal(b, 1, done)
	}
	report(b, took)
}

// BenchmarkDeclareMany measures a round of announcing with 1,000 experts.
func BenchmarkDeclareMany(b *testing.B) {
	const experts = 1000
	nodes := swarmtest.Swarm(b, benchHosts, nil)
	warm(b, nodes)
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		start := time.Now()
		done, err := nodes[n%benchHosts].Discovery.Declare(b.Context(), sequence(0, experts)...)
		took = append(took, time.Since(start))
		require.NoError(b, err)
		require.Equal(b, experts, done)
	}
	report(b, took)
}

// sequence returns n experts from the given one on.
func sequence(from, n int) []expert.ID {
	ids := make([]expert.ID, n)
	for i := range ids {
		ids[i] = expert.ID(from + i)
	}
	return ids
}
