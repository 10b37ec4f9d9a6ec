package doctor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
)

// Check is one thing that was looked at.
type Check struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Skipped bool   `json:"skipped,omitempty"` // it could not be looked at; OK is true then, and Detail says why
	Detail  string `json:"detail"`            // what was found
	Remedy  string `json:"remedy"`            // what to do; with OK it is advice, which may be left
}

// Report is all that was looked at.
type Report struct {
	Checks []Check `json:"checks"`
}

// Failed counts the checks that failed.
func (r Report) Failed() (n int) {
	for _, c := range r.Checks {
		if !c.OK {
			n++
		}
	}
	return n
}

// Node is the running node. api.Client is one. An error that matches api.ErrNoNode says that nobody is there.
type Node interface {
	Status(ctx context.Context) (api.Status, error)
	Ready(ctx context.Context) (api.Readiness, error)
	Checkup(ctx context.Context) (api.Checkup, error)
}

// Patient is what is examined.
type Patient struct {
	Config    *config.Config // nil where it cannot be read
	ConfigErr error          // why
	Node      Node
	API       string    // where Node is, for messages
	Expected  bool      // the operator said that a node runs at API, so that none is a failure
	Built     time.Time // when this program was made; zero: not known
}

// nodeTimeout bounds each question to the node but the checkup.
const nodeTimeout = 5 * time.Second

// checkupTimeout is above what a checkup takes at most: a walk, and as many canaries as fit 10 s.
const checkupTimeout = 30 * time.Second

// examination is a patient and what is known of it so far.
type examination struct {
	Patient
	now     time.Time
	running bool // a node answers
	nodeErr error
	status  api.Status
	ready   api.Readiness
	checkup *api.Checkup // nil: the node gave none, checkupErr says why
	// checkupErr: why there is no checkup, though a node answers.
	checkupErr error
	dials      []dial
}

// Examine makes all checks, in an order in which the first that failed usually explains those after it.
func Examine(ctx context.Context, p Patient) Report {
	e := &examination{Patient: p, now: time.Now()}
	e.ask(ctx)
	if e.checkup != nil {
		e.dials = dialAll(ctx, e.checkup.Peer, e.checkup.Announced)
	}
	return Report{Checks: []Check{
		e.configuration(), e.node(), e.degraded(), e.data(), e.key(), e.disk(), e.ports(), e.addresses(), e.swarm(), e.dht(), e.experts(),
		e.clock(), e.files(), e.memory(), e.buffers(),
	}}
}

// ask asks the node everything.
func (e *examination) ask(ctx context.Context) {
	short, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	if e.ready, e.nodeErr = e.Node.Ready(short); e.nodeErr != nil {
		return
	}
	if e.status, e.nodeErr = e.Node.Status(short); e.nodeErr != nil {
		return
	}
	e.running = true
	long, cancel := context.WithTimeout(ctx, checkupTimeout)
	defer cancel()
	c, err := e.Node.Checkup(long)
	if err != nil {
		e.checkupErr = err
		return
	}
	e.checkup = &c
}

func fine(name, format string, args ...any) Check {
	return Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...)}
}

func failed(name, remedy, format string, args ...any) Check {
	return Check{Name: name, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func advice(name, remedy, format string, args ...any) Check {
	return Check{Name: name, OK: true, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func skipped(name, format string, args ...any) Check {
	return Check{Name: name, OK: true, Skipped: true, Detail: "not checked: " + fmt.Sprintf(format, args...)}
}

// needsNode is what becomes of a check that only a running node's account of itself can answer.
func (e *examination) needsNode(name string) Check {
	if e.checkupErr != nil {
		return skipped(name, "the node did not examine itself: %v", e.checkupErr)
	}
	return skipped(name, "only a running node knows")
}

// node says whether a node answers.
func (e *examination) node() Check {
	const name = "node"
	switch {
	case e.running && !e.ready.Ready:
		return failed(name, "wait until it is ready: `kwaaid healthcheck` tells; its log says what it is doing", "it answers at %s and is not ready: %s", e.API, list(e.ready.Reasons))
	case e.running:
		return fine(name, "%s answers at %s, ready, up %v, version %s", e.status.Peer, e.API,
			time.Duration(e.status.UptimeS*float64(time.Second)).Round(time.Second), e.status.Version)
	case !errors.Is(e.nodeErr, api.ErrNoNode):
		return failed(name, "is it a kwaaid of this version at that address, and is the token right (--api-token)? A node that hangs says so at /healthz", "%s: %v", e.API, e.nodeErr)
	}
	if pid, held := e.holder(); held {
		return failed(name, "name its API address with --api, as its first log line has it; if that is right, it hangs: `systemctl restart kwaaid`, or end it",
			"process %s runs on the data directory, and nobody answers at %s", pid, e.API)
	}
	if e.Expected {
		return failed(name, "start one with `kwaaid run`, or name another address with --api", "nobody answers at %s", e.API)
	}
	return skipped(name, "none runs at %s; what follows is what one would meet. Start it with `kwaaid run`", e.API)
}

// degraded lists what does not work as it should though the node serves.
func (e *examination) degraded() Check {
	const name = "degraded"
	switch {
	case !e.running:
		return e.needsNode(name)
	case len(e.ready.Degraded) > 0:
		return failed(name, "bootstrap: is that node up, its port open, its /p2p/ ID the present one? An expert that failed: its line in the log says why; `kwaaid unload` and `kwaaid load` try again",
			"%s", list(e.ready.Degraded))
	default:
		return fine(name, "nothing")
	}
}
