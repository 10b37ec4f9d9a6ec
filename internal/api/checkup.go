package api

import (
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Checkup is what a node finds when it examines itself; what it means is for `kwaaid doctor` to say.
type Checkup struct {
	Peer        string    `json:"peer"`
	PID         int       `json:"pid"`
	Time        time.Time `json:"time"`      // by the node's clock
	Data        string    `json:"data"`      // its data directory
	Listen      []string  `json:"listen"`    // as configured
	Announced   []string  `json:"announced"` // addresses that others are told, without /p2p
	Bootstrap   []string  `json:"bootstrap"` // as configured
	Connections int       `json:"connections"`
	OpenFiles   int       `json:"open_files"` // -1: not known
	MaxFiles    int       `json:"max_files"`  // -1: not known

	Walk    WalkCheck     `json:"walk"`
	Experts []ExpertCheck `json:"experts"` // those that were asked
	Left    int           `json:"left"`    // ready experts that the time was not enough for
}

// WalkCheck is how a walk of the DHT for a key that nobody has went: it ends when all peers nearest to the key were asked.
type WalkCheck struct {
	Peers int     `json:"peers"` // in the routing table
	MS    float64 `json:"ms"`
	Error string  `json:"error,omitempty"`
}

// ExpertCheck is how a hosted expert answered its canary.
type ExpertCheck struct {
	Expert expert.ID    `json:"expert"`
	Name   string       `json:"name,omitempty"`
	State  expert.State `json:"state"`
	MS     float64      `json:"ms"`
	Error  string       `json:"error,omitempty"` // why the answer is not as it should be
}
