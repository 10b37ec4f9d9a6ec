package node

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kwaai/kwaaid/internal/registry"
)

// collector tells Prometheus what the node knows of itself and of its peers, as it is when it is asked.
type collector struct {
	node                                     *Node
	build, ready, degraded, breaker, resting *prometheus.Desc
	weights, budget, uptime                  *prometheus.Desc
}

func newCollector(n *Node) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &collector{
		node:     n,
		build:    desc("kwaai_build_info", "Always 1; the labels say what runs.", "version", "go"),
		ready:    desc("kwaai_node_ready", "1 when the node is ready, as /readyz says."),
		degraded: desc("kwaai_node_degraded_reasons", "How many things do not work as they should, though the node serves; `kwaaid status` names them."),
		uptime:   desc("kwaai_node_uptime_seconds", "Since the node started."),
		weights:  desc("kwaai_node_weights_bytes", "Memory that the weights of hosted experts take."),
		budget:   desc("kwaai_node_memory_budget_bytes", "Memory that weights may take."),
		breaker:  desc("kwaai_registry_peers", "Known hosts of experts by the state of their breakers.", "breaker"),
		resting:  desc("kwaai_registry_resting_peers", "Known hosts that are asked nothing now, by the reason.", "reason"),
	}
}

// restingReasons are the values of the label reason: those of resting.
var restingReasons = [...]string{"misbehaved", "draining", "unreachable", "full"}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.ready, c.degraded, c.uptime, c.weights, c.budget, c.breaker, c.resting} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	n := c.node
	gauge(c.build, 1, n.version, runtime.Version())
	gauge(c.uptime, time.Since(n.started).Seconds())
	if s, err := n.Status(context.Background()); err == nil { // it waits for nothing
		ready := 0.0
		if s.Ready {
			ready = 1
		}
		gauge(c.ready, ready)
		gauge(c.degraded, float64(len(s.Degraded)))
		gauge(c.weights, float64(s.Memory.Weights))
		gauge(c.budget, float64(s.Memory.Budget))
	}
	breakers := map[registry.BreakerState]int{}
	reasons := map[string]int{}
	for _, v := range n.table.Peers(time.Now()) {
		breakers[v.Breaker]++
		why, _ := resting(v)
		reasons[why]++
	}
	for _, s := range []registry.BreakerState{registry.Closed, registry.Open, registry.HalfOpen} {
		gauge(c.breaker, float64(breakers[s]), s.String())
	}
	for _, why := range restingReasons {
		gauge(c.resting, float64(reasons[why]), why)
	}
}
