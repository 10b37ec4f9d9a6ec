package discovery

import (
	"fmt"
	"time"
)

// Status is what the service knows about itself.
type Status struct {
	Mode      string   // ModeServer or ModeClient, as it is now
	Peers     int      // in the DHT's routing table
	Announced int      // ready experts whose announcement somebody acknowledged in the last 30 minutes
	Rounds    int      // rounds of announcing that ran
	Settled   bool     // a round ran with every expert that is ready now, alone on a swarm of its own too; without Hosted: joining is over
	Degraded  []string // what is wrong, for people
}

// Status returns what is known now.
func (s *Service) Status() Status {
	now := time.Now()
	st := Status{Mode: ModeClient, Peers: s.tableSize()}
	if s.gate.isServing() {
		st.Mode = ModeServer
	}
	for _, b := range s.bootstraps {
		if p := s.problem(b, now); p != "" {
			st.Degraded = append(st.Degraded, p)
		}
	}
	if s.hosted == nil {
		select {
		case <-s.joining:
			st.Settled = true
		default:
		}
		return st
	}
	ready, _ := s.hosted.Ready()
	a := s.announcer
	a.mu.Lock()
	defer a.mu.Unlock()
	st.Rounds, st.Announced = a.rounds, a.count(now)
	st.Settled = a.rounds > 0
	for _, id := range ready {
		st.Settled = st.Settled && a.tried[id]
	}
	select {
	case <-a.withdrawn:
	default:
		if a.err != nil {
			st.Degraded = append(st.Degraded, fmt.Sprintf("announcing: %v", a.err))
		}
	}
	return st
}
