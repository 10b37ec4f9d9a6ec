package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/demo"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

// everyListen is the default of `listen` with free ports: TCP and QUIC, all interfaces.
var everyListen = []string{
	"--listen", "/ip4/0.0.0.0/tcp/0", "--listen", "/ip4/0.0.0.0/udp/0/quic-v1", "--listen", "/ip6/::/tcp/0", "--listen", "/ip6/::/udp/0/quic-v1",
}

// ward is a swarm with one node that calls, and hosts of the same experts that things happen to.
type ward struct {
	t       testing.TB
	caller  *demo.Host
	hosts   []*demo.Host
	args    [][]string         // with which each host was started
	proxies []*swarmtest.Proxy // before each host, where there are any
	truth   truth
}

// question is a call whose right answer is known: an expert, and the seed of the rows that it is sent.
type question struct {
	expert string
	seed   uint64
}

// truth holds what an expert answers where it is hosted, without the network: the hash of its output.
type truth map[question]string

// seeds is how many different inputs each expert is asked.
const seeds = 4

// rowsAsked is how many rows each call sends.
const rowsAsked = 2

// learn asks a host about one of its own experts.
func (k truth) learn(ctx context.Context, h *demo.Host, name string) error {
	for seed := range uint64(seeds) {
		res, _, err := h.Client.Call(ctx, api.CallRequest{Name: name, Rows: rowsAsked, Seed: seed})
		if err != nil {
			return fmt.Errorf("asking %s about its own expert: %w", h.Peer, err)
		}
		if res.AnsweredBy.Where != api.WhereLocal {
			return fmt.Errorf("%s does not host %s", h.Peer, name)
		}
		k[question{name, seed}] = res.SHA256
	}
	return nil
}

// chaosSpec is the expert that most of these tests ask: cheap, and with weights, so that a wrong answer shows.
const chaosSpec = "id=7,kind=glu,hidden=64,inner=96,seed=7"

// care is how a ward is set up.
type care struct {
	listen []string   // flags of every node; nil: TCP on loopback
	specs  [][]string // the experts of each host
	front  bool       // a proxy with faults stands before each host, and nobody dials the caller
	config string     // of the caller, as YAML
}

// admit starts the hosts and a caller that joins by the first of them, waits until all are ready, and has the hosts say what is true.
func admit(t testing.TB, c care) *ward {
	t.Helper()
	w := &ward{t: t, truth: truth{}}
	t.Cleanup(w.discharge)
	for i, list := range c.specs {
		args := append([]string{"--data", t.TempDir()}, c.listen...)
		for _, s := range list {
			args = append(args, "--expert", s)
		}
		if i > 0 {
			args = append(args, "--bootstrap", w.hosts[0].Addrs[0])
		}
		if c.front {
			// The node has to know the proxy's address, and the proxy the node's.
			w.proxies = append(w.proxies, swarmtest.NewProxy(t, uint64(i)))
			args = append(args, "--announce", w.proxies[i].Multiaddr())
		}
		w.args = append(w.args, args)
		w.hosts = append(w.hosts, launchNode(t, args...))
		if c.front {
			s, err := w.hosts[i].Client.Status(t.Context())
			require.NoError(t, err)
			w.proxies[i].SetTarget(tcpAddr(t, s.Addrs[0]))
		}
	}
	caller := append([]string{"--bootstrap", w.hosts[0].Addrs[0]}, c.listen...)
	if c.front {
		c.config += "\ndht: client\n"
	}
	if c.config != "" {
		path := filepath.Join(t.TempDir(), "caller.yaml")
		require.NoError(t, os.WriteFile(path, []byte(c.config), 0o600))
		caller = append(caller, "--config", path)
	}
	w.caller = launchNode(t, caller...)
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	require.NoError(t, w.caller.WaitReady(ctx))
	for i, h := range w.hosts {
		require.NoError(t, h.WaitReady(ctx))
		for _, s := range c.specs[i] {
			name, _, _ := strings.Cut(strings.TrimPrefix(s, "id="), ",")
			if _, known := w.truth[question{name, 0}]; !known {
				require.NoError(t, w.truth.learn(ctx, h, name))
			}
		}
	}
	return w
}

// discharge ends all processes at once: how they stop is for other tests.
func (w *ward) discharge() {
	var ends sync.WaitGroup
	for _, h := range append(w.hosts, w.caller) {
		if h != nil {
			ends.Go(h.Kill)
		}
	}
	ends.Wait()
}

// meet waits until the caller knows n providers of an expert.
func (w *ward) meet(name string, n int) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		r, err := w.caller.Client.Resolve(w.t.Context(), name)
		return err == nil && len(r.Providers) >= n
	}, 30*time.Second, 50*time.Millisecond, "%s is known from %d hosts", name, n)
}

// host returns the host with that peer ID.
func (w *ward) host(peer string) *demo.Host {
	w.t.Helper()
	for _, h := range w.hosts {
		if h.Peer == peer {
			return h
		}
	}
	require.Fail(w.t, "no host", "%s answered, which is none of the hosts", peer)
	return nil
}

// proxyOf returns the proxy before a host.
func (w *ward) proxyOf(h *demo.Host) *swarmtest.Proxy {
	w.t.Helper()
	return w.proxies[slices.Index(w.hosts, h)]
}

// record is what callers met.
type record struct {
	mu      sync.Mutex
	calls   int
	wrong   int
	errs    []error
	slowest float64       // ms, as the node measures it
	tried   []api.Attempt // by the slowest
	last    string        // the peer that answered last
}

// ask makes one call and notes what came of it.
func (r *record) ask(ctx context.Context, w *ward, q question) {
	res, _, err := w.caller.Client.Call(ctx, api.CallRequest{Name: q.expert, Rows: rowsAsked, Seed: q.seed})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if err != nil {
		r.errs = append(r.errs, err)
		return
	}
	if res.SHA256 != w.truth[q] {
		r.wrong++
	}
	if res.MS > r.slowest {
		r.slowest, r.tried = res.MS, res.Attempts
	}
	r.last = res.AnsweredBy.Peer
}

// inUse is the peer that answered last.
func (r *record) inUse() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *record) made() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// fine wants every call answered, and rightly.
func (r *record) fine(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Zero(t, r.wrong, "wrong answers among %d", r.calls)
	require.Empty(t, r.errs, "failed calls among %d", r.calls)
}

// asking makes calls from a number of clients, and does something to the host in use once a quarter of them is made; nil: nothing.
func (w *ward) asking(t testing.TB, clients, calls int, strike func(h *demo.Host)) *record {
	t.Helper()
	r := &record{}
	var begun sync.Mutex
	left := calls
	next := func() (int, bool) {
		begun.Lock()
		defer begun.Unlock()
		left--
		return left, left >= 0
	}
	struck := make(chan struct{})
	var once sync.Once
	if strike == nil {
		once.Do(func() { close(struck) })
	}
	var g errgroup.Group
	for range clients {
		g.Go(func() error {
			for {
				n, ok := next()
				if !ok {
					return nil
				}
				if r.made() >= calls/4 {
					once.Do(func() {
						// Beside the calls: the host ends in the middle of some of them, or between two.
						h := w.host(r.inUse())
						go func() {
							defer close(struck)
							strike(h)
						}()
					})
				}
				r.ask(t.Context(), w, question{"7", uint64(n) % seeds})
			}
		})
	}
	require.NoError(t, g.Wait())
	<-struck
	return r
}
