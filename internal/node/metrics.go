package node

import (
	"context"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kwaai/kwaaid/internal/registry"
)

// collector tells Prometheus what the node knows of itself and of its peers, as it is when it is asked.
type collector struct {
	node                                     *Node
	build, ready, degraded, breaker, resting *prometheus.Desc
	weights, budget, uptime                  *prometheus.Desc
	expertRows, balance                      *prometheus.Desc
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

		expertRows: desc("kwaai_moe_expert_rows_total", "Rows that each expert of a layer was chosen for, by its index; of layers that were called.", "layer", "index"),
		balance:    desc("kwaai_moe_balance", "Rows of a layer's busiest expert over the mean of all since the node started: 1 is even.", "layer"),
	}
}

// restingReasons are the values of the label reason: those of resting.
var restingReasons = [...]string{"misbehaved", "draining", "unreachable", "full", "silent", "failing"}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.build, c.ready, c.degraded, c.uptime, c.weights, c.budget, c.breaker, c.resting, c.expertRows, c.balance} {
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
	if layers, err := n.Layers(context.Background()); err == nil { // nor does this
		for _, l := range layers {
			if l.Balance == 0 {
				continue // a checkpoint may have thousands of experts, and this node may route none of them
			}
			gauge(c.balance, l.Balance, l.Layer)
			for i, rows := range l.RowsPerExpert {
				to <- prometheus.MustNewConstMetric(c.expertRows, prometheus.CounterValue, float64(rows), l.Layer, strconv.Itoa(i))
			}
		}
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
