package main

import (
	"fmt"
	"io"
	"time"
)

type statusCmd struct{}

// Run prints the node's account of itself.
func (c *statusCmd) Run(a *app) error {
	n := a.node()
	defer n.Close()
	s, err := n.Status(a.ctx)
	if err != nil {
		return err
	}
	return a.print(s, func(w io.Writer) {
		ready := "ready"
		switch {
		case s.Draining:
			ready = "draining"
		case !s.Ready:
			ready = "not ready"
		}
		fmt.Fprintf(w, "%s, %s\n", s.Peer, ready)
		for _, d := range s.Degraded {
			fmt.Fprintf(w, "  degraded   %s\n", d)
		}
		fmt.Fprintf(w, "  swarm      %s, %d peers, DHT %s, reachability %s\n", s.Swarm, s.Peers, s.DHT, s.Reachability)
		fmt.Fprintf(w, "  experts    %d hosted, %d ready, %d announced\n", s.Experts.Hosted, s.Experts.Ready, s.Experts.Announced)
		fmt.Fprintf(w, "  load       %d rows queued, %d calls under way\n", s.Load.QueuedRows, s.Load.Inflight)
		fmt.Fprintf(w, "  calls      %d made in %d attempts, %d failed, %d by fallbacks; %d hedges, %d refused; %d pings missed\n",
			s.Calls.Calls, s.Calls.Attempts, s.Calls.Failed, s.Calls.Fallbacks, s.Calls.Hedges, s.Calls.HedgesRefused, s.Calls.PingsMissed)
		for _, r := range s.Resting {
			fmt.Fprintf(w, "  resting    %s with %d experts: %s\n", r.Peer, r.Experts, r.Why)
		}
		fmt.Fprintf(w, "  memory     %s of weights, budget %s\n", bytesText(float64(s.Memory.Weights)), bytesText(float64(s.Memory.Budget)))
		fmt.Fprintf(w, "  version    %s, up %v\n", s.Version, time.Duration(s.UptimeS*float64(time.Second)).Round(time.Second))
		for _, addr := range s.Addrs {
			fmt.Fprintf(w, "  address    %s/p2p/%s\n", addr, s.Peer)
		}
	})
}
