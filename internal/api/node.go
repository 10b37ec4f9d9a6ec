package api

import "github.com/kwaai/kwaaid/internal/expert"

// Status is this node's account of itself.
type Status struct {
	Peer         string       `json:"peer"`
	Addrs        []string     `json:"addrs"` // the real listen addresses, loopback included, without /p2p
	Swarm        string       `json:"swarm"`
	Version      string       `json:"version"`
	Ready        bool         `json:"ready"`
	Degraded     []string     `json:"degraded"` // reasons; a degraded node still serves
	UptimeS      float64      `json:"uptime_s"`
	Peers        int          `json:"peers"`
	Reachability string       `json:"reachability"` // public, private or unknown
	DHT          string       `json:"dht"`          // server or client
	Experts      ExpertCounts `json:"experts"`
	Load         Load         `json:"load"`
	Memory       Memory       `json:"memory"`
	Calls        Calls        `json:"calls"`
	Resting      []Resting    `json:"resting"` // known hosts that are asked nothing now; the first 100
	Draining     bool         `json:"draining"`
}

// ExpertCounts counts this node's own experts.
type ExpertCounts struct {
	Hosted    int `json:"hosted"`
	Ready     int `json:"ready"`
	Announced int `json:"announced"`
}

// Load is how busy this node's experts are.
type Load struct {
	QueuedRows int    `json:"queued_rows"`
	Inflight   int    `json:"inflight"` // exchanges and local calls under way
	Rows       uint64 `json:"rows"`     // computed by this node's experts since it started
}

// Memory is what weights take and may take, in bytes.
type Memory struct {
	Weights int64 `json:"weights"`
	Budget  int64 `json:"budget"`
}

// Calls is what the calls that this node made did since it started. A layer's call counts once for each expert that it asks.
type Calls struct {
	Calls         int64 `json:"calls"`
	Failed        int64 `json:"failed"`    // of them, those without an answer
	Fallbacks     int64 `json:"fallbacks"` // of them, those that a fallback answered
	Attempts      int64 `json:"attempts"`
	Hedges        int64 `json:"hedges"`         // second hosts that were asked because the first was slow
	HedgesRefused int64 `json:"hedges_refused"` // those that were not, because the budget was used up
	PingsMissed   int64 `json:"pings_missed"`
}

// Resting is a host of experts that is asked nothing now.
type Resting struct {
	Peer    string  `json:"peer"`
	Why     string  `json:"why"` // full, failing, silent (it missed a ping), unreachable, draining, misbehaved
	Seconds float64 `json:"seconds,omitempty"`
	Experts int     `json:"experts"` // that it is known to host
}

// Expert is one expert that is known here.
type Expert struct {
	Expert    expert.ID    `json:"expert"`
	Name      string       `json:"name,omitempty"`
	Kind      string       `json:"kind"`
	Hidden    int          `json:"hidden"`
	Inner     int          `json:"inner,omitempty"`
	DType     string       `json:"dtype"`
	Digest    string       `json:"digest"`
	Numerics  string       `json:"numerics,omitempty"`
	Where     Where        `json:"where"` // local or remote
	State     expert.State `json:"state"`
	Error     string       `json:"error,omitempty"` // why the state is failed
	Providers int          `json:"providers"`
	Rows      uint64       `json:"rows,omitempty"` // computed here since it was loaded; local experts only
}

// Peer is a connected peer and what is known of it.
type Peer struct {
	Peer    string   `json:"peer"`
	Addrs   []string `json:"addrs"`
	RTTMS   *float64 `json:"rtt_ms"` // null: not measured yet
	Experts int      `json:"experts"`
	Breaker string   `json:"breaker"` // closed, open or half-open
	Success float64  `json:"success"` // smoothed share of calls that went well, 0 to 1
	Agent   string   `json:"agent,omitempty"`

	// What its last replies and this node's own calls say; absent where nothing is under way or known.
	Inflight   int      `json:"inflight,omitempty"`    // calls of this node to it that are under way
	QueuedRows int      `json:"queued_rows,omitempty"` // rows of others in its queue
	LatencyMS  *float64 `json:"latency_ms,omitempty"`  // smoothed time of an answer
	RestingS   float64  `json:"resting_s,omitempty"`   // until it is asked again
	Resting    string   `json:"resting,omitempty"`     // why; see Resting
}

// Resolved says who hosts an expert, this node included.
type Resolved struct {
	Expert    expert.ID  `json:"expert"`
	Name      string     `json:"name,omitempty"`
	Key       string     `json:"key"` // provider key in the DHT, a CIDv1 in base32
	Providers []Provider `json:"providers"`
}

// Provider is one host of an expert.
type Provider struct {
	Peer    string   `json:"peer"`
	Addrs   []string `json:"addrs"`  // without /p2p
	Source  string   `json:"source"` // local, dht, static or cache
	AgeS    float64  `json:"age_s"`
	Breaker string   `json:"breaker"` // closed, open or half-open
	RTTMS   *float64 `json:"rtt_ms"`  // null: not measured yet
}

// ExpertList is the document of load and unload: the experts that were meant.
type ExpertList struct {
	Experts []Expert `json:"experts"`
}

// LoadRequest asks a node to host more experts, one SPEC as in `--expert` and in the configuration's experts.
type LoadRequest struct {
	Spec string `json:"spec"`
}

// LoadProgress is how far the loading of one entry of `experts` is.
type LoadProgress struct {
	Name       string  `json:"name"` // of the model, or of the expert
	Done       int     `json:"done"` // experts that are loaded or failed; the last progress has all
	Total      int     `json:"total"`
	Bytes      int64   `json:"bytes"`       // of weights that were read or drawn
	BytesTotal int64   `json:"bytes_total"` // about: a file is a little larger than its weights
	TookS      float64 `json:"took_s"`
}

// Readiness is the body of /readyz.
type Readiness struct {
	Ready    bool     `json:"ready"`
	Reasons  []string `json:"reasons,omitempty"`  // why it is not ready
	Degraded []string `json:"degraded,omitempty"` // what does not work as it should, though it is ready
}
