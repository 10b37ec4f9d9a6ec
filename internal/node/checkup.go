package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/serving"
)

const (
	// canariesTimeout bounds how long a checkup asks the node's experts: a large one answers its canary in some milliseconds.
	canariesTimeout = 10 * time.Second
	// canaryTimeout bounds one of them.
	canaryTimeout = 5 * time.Second
)

// Checkup has the node examine itself: it walks the DHT once, and asks its experts, in an order drawn anew each time.
func (n *Node) Checkup(ctx context.Context) (api.Checkup, error) {
	c := api.Checkup{
		Peer: n.self.String(), PID: os.Getpid(), Data: n.data.Path, Listen: append([]string{}, n.cfg.Listen...),
		Announced: addrStrings(n.host.Addrs()), Bootstrap: append([]string{}, n.cfg.Bootstrap...), Connections: n.cfg.Limits.Connections,
	}
	c.OpenFiles, c.MaxFiles = openFiles()
	c.Walk = n.checkWalk(ctx)
	c.Experts, c.Left = n.checkExperts(ctx)
	c.Time = time.Now()
	return c, context.Cause(ctx)
}

// checkWalk walks for an expert that nobody has: found or not, everybody who would know is asked.
func (n *Node) checkWalk(ctx context.Context) api.WalkCheck {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	begun := time.Now()
	_, err := n.finder.Walk(ctx, expert.ID(rand.Uint64()))
	w := api.WalkCheck{Peers: n.finder.Status().Peers, MS: millis(time.Since(begun))}
	if err != nil {
		w.Error = err.Error()
	}
	return w
}

// checkExperts asks as many of the hosted experts as the time allows.
func (n *Node) checkExperts(ctx context.Context) (checks []api.ExpertCheck, left int) {
	ctx, cancel := context.WithTimeout(ctx, canariesTimeout)
	defer cancel()
	checks = []api.ExpertCheck{}
	list := n.serving.List()
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, h := range list {
		c := api.ExpertCheck{Expert: h.ID, Name: h.Name, State: h.State}
		switch {
		case h.State == expert.StateFailed:
			c.Error = h.Problem
		case h.State != expert.StateReady:
		case ctx.Err() != nil:
			left++
			continue
		default:
			begun := time.Now()
			if err := n.canary(ctx, h); err != nil {
				c.Error = err.Error()
			}
			c.MS = millis(time.Since(begun))
		}
		checks = append(checks, c)
	}
	return checks, left
}

// errCanary: an expert does not answer as when it was loaded.
var errCanary = errors.New("the canary failed")

// canary asks an expert what it had to answer when it was loaded, through the queue in which calls wait: a batch, and its last row alone.
func (n *Node) canary(ctx context.Context, h expert.Hosted) error {
	ctx, cancel := context.WithTimeoutCause(ctx, canaryTimeout, fmt.Errorf("%w: no answer within %v", errCanary, canaryTimeout))
	defer cancel()
	x := serving.CanaryInput(h.Hidden)
	last := len(x) - h.Hidden
	together, err := n.ownAnswer(ctx, h, x)
	if err != nil {
		return err
	}
	alone, err := n.ownAnswer(ctx, h, x[last:])
	if err != nil {
		return err
	}
	for _, v := range together {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return fmt.Errorf("%w: the output holds NaN or Inf", errCanary)
		}
	}
	for i, v := range alone {
		if math.Float32bits(v) != math.Float32bits(together[last+i]) {
			return fmt.Errorf("%w: a row's result is another one in a batch than alone", errCanary)
		}
	}
	return nil
}

func (n *Node) ownAnswer(ctx context.Context, h expert.Hosted, x []float32) ([]float32, error) {
	res := n.serving.Local(ctx, expert.NewRows(x, h.Hidden), []expert.Pair{{Expert: h.ID}})
	if res[0].Err != nil {
		return nil, res[0].Err
	}
	y, err := expert.Rows(res[0].Output, h.Hidden)
	if err == nil && len(y) != len(x) {
		err = fmt.Errorf("%w: %d values came for %d", errCanary, len(y), len(x))
	}
	return y, err
}

// openFiles returns how many file descriptors this process holds and may hold; -1 where that cannot be told.
func openFiles() (open, most int) {
	open = -1
	if list, err := os.ReadDir(filepath.FromSlash("/proc/self/fd")); err == nil {
		open = len(list) - 1 // without the one that was open to read them
	}
	return open, maxFiles()
}
