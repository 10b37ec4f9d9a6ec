package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/swarmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeNode answers from its fields.
type fakeNode struct {
	err     error
	ready   api.Readiness
	status  api.Status
	checkup api.Checkup
}

func (f *fakeNode) Ready(context.Context) (api.Readiness, error) { return f.ready, f.err }
func (f *fakeNode) Status(context.Context) (api.Status, error)   { return f.status, f.err }
func (f *fakeNode) Checkup(context.Context) (api.Checkup, error) { return f.checkup, f.err }

// healthy is a node with a real host to dial, and two experts in a swarm of four.
func healthy(t *testing.T) (*fakeNode, *config.Config) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	key, err := p2p.LoadOrMakeIdentity(dir)
	require.NoError(t, err)
	h, err := p2p.New(key, swarmtest.TCPConfig())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	id, err := peer.IDFromPrivateKey(key)
	require.NoError(t, err)
	addr := h.Addrs()[0].String()
	cfg := config.Default()
	cfg.Data = dir
	return &fakeNode{
		ready: api.Readiness{Ready: true},
		status: api.Status{
			Peer: id.String(), Addrs: []string{addr}, Swarm: "kwaai", Ready: true, Peers: 3, Reachability: "private", DHT: "server",
			Experts: api.ExpertCounts{Hosted: 2, Ready: 2, Announced: 2}, Memory: api.Memory{Weights: 1 << 20, Budget: 1 << 30},
		},
		checkup: api.Checkup{
			Peer: id.String(), Time: time.Now(), Data: dir, Listen: []string{addr}, Announced: []string{addr}, Bootstrap: []string{},
			Connections: 512, OpenFiles: 40, MaxFiles: 65536, Walk: api.WalkCheck{Peers: 3, MS: 2},
			Experts: []api.ExpertCheck{{Expert: 7, State: expert.StateReady, MS: 1}, {Expert: 8, State: expert.StateReady, MS: 3}},
		},
	}, cfg
}

// named returns the check of that name.
func (r Report) named(t *testing.T, name string) Check {
	t.Helper()
	for _, c := range r.Checks {
		if c.Name == name {
			return c
		}
	}
	require.Fail(t, "no such check", name)
	return Check{}
}

func TestExamine_FindsNothingWrongWithAHealthyNode(t *testing.T) {
	n, cfg := healthy(t)
	r := Examine(t.Context(), Patient{Config: cfg, Node: n, API: "there"})
	for _, c := range r.Checks {
		require.True(t, c.OK, "%+v", c)
		require.NotEmpty(t, c.Detail, c.Name)
		if c.Name != "UDP buffers" && c.Name != "clock" {
			require.False(t, c.Skipped, "%+v", c)
		}
	}
	require.Zero(t, r.Failed())
}

func TestExamine_NamesWhatIsWrongAndWhatToDo(t *testing.T) {
	for name, story := range map[string]struct {
		check string
		says  string
		spoil func(t *testing.T, n *fakeNode, p *Patient)
	}{
		"a configuration that cannot be read": {"configuration", "listen", func(_ *testing.T, _ *fakeNode, p *Patient) {
			p.Config, p.ConfigErr = nil, errors.New("line 3: listen: no multiaddr")
		}},
		"not ready": {"node", "being loaded", func(_ *testing.T, n *fakeNode, _ *Patient) {
			n.ready = api.Readiness{Reasons: []string{"experts are being loaded"}}
		}},
		"degraded": {"degraded", "bootstrap", func(_ *testing.T, n *fakeNode, _ *Patient) { n.ready.Degraded = []string{"bootstrap X: refused"} }},
		"nobody where one is expected": {"node", "nobody answers at there", func(_ *testing.T, n *fakeNode, p *Patient) {
			n.err, p.Expected = fmt.Errorf("%w at there", api.ErrNoNode), true
		}},
		"a token that is refused": {"node", "token", func(_ *testing.T, n *fakeNode, _ *Patient) { n.err = errors.New("this needs a token") }},
		"a directory that others can write": {"data directory", "0777", func(t *testing.T, n *fakeNode, _ *Patient) {
			require.NoError(t, os.Chmod(n.checkup.Data, 0o777))
		}},
		"a key that others can read": {"key", "0644", func(t *testing.T, n *fakeNode, _ *Patient) {
			require.NoError(t, os.Chmod(p2p.IdentityPath(n.checkup.Data), 0o644))
		}},
		"a damaged key": {"key", "damaged", func(t *testing.T, n *fakeNode, _ *Patient) {
			require.NoError(t, os.WriteFile(p2p.IdentityPath(n.checkup.Data), []byte("no key"), 0o600))
		}},
		"a key that was replaced": {"key", "replaced", func(t *testing.T, n *fakeNode, _ *Patient) {
			require.NoError(t, os.Remove(p2p.IdentityPath(n.checkup.Data)))
			_, err := p2p.LoadOrMakeIdentity(n.checkup.Data)
			require.NoError(t, err)
		}},
		"an address that leads nowhere": {"addresses", "/tcp/1", func(_ *testing.T, n *fakeNode, _ *Patient) {
			n.checkup.Announced = append(n.checkup.Announced, "/ip4/127.0.0.1/tcp/1")
		}},
		"an address of another node": {"addresses", "nobody answers as this node", func(t *testing.T, n *fakeNode, _ *Patient) {
			n.checkup.Announced = []string{swarmtest.NewHost(t, swarmtest.TCPConfig()).Addrs()[0].String()}
		}},
		"no address": {"addresses", "nobody can call it", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.Announced = nil }},
		"loopback in a swarm of other machines": {"addresses", "from this one only", func(_ *testing.T, n *fakeNode, _ *Patient) {
			n.checkup.Bootstrap = []string{"/ip4/203.0.113.7/tcp/7577/p2p/" + n.checkup.Peer}
		}},
		"nobody to join by": {"swarm", "to join by", func(_ *testing.T, n *fakeNode, _ *Patient) {
			n.status.Peers, n.checkup.Bootstrap = 0, []string{"/ip4/127.0.0.1/tcp/2/p2p/" + n.checkup.Peer}
		}},
		"a walk that fails":          {"DHT", "not joined", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.Walk.Error = "not joined" }},
		"peers of another swarm":     {"DHT", "routing table", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.Walk.Peers = 0 }},
		"an expert that is broken":   {"experts", "expert-8", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.Experts[1].Error = "the output holds NaN" }},
		"experts that nobody finds":  {"experts", "1 of 2", func(_ *testing.T, n *fakeNode, _ *Patient) { n.status.Experts.Announced = 1 }},
		"too few files":              {"open files", "1024", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.Connections, n.checkup.MaxFiles = 4096, 1024 }},
		"files run out":              {"open files", "990 of 1000", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.OpenFiles, n.checkup.MaxFiles = 990, 1000 }},
		"a clock before the program": {"clock", "before this program", func(_ *testing.T, _ *fakeNode, p *Patient) { p.Built = time.Now().Add(time.Hour) }},
		"a node with another clock":  {"clock", "differ", func(_ *testing.T, n *fakeNode, _ *Patient) { n.checkup.Time = time.Now().Add(-time.Hour) }},
		"a clock that was put back": {"clock", "put back", func(t *testing.T, n *fakeNode, _ *Patient) {
			later := time.Now().Add(time.Hour)
			require.NoError(t, os.Chtimes(p2p.IdentityPath(n.checkup.Data), later, later))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			n, cfg := healthy(t)
			p := Patient{Config: cfg, Node: n, API: "there"}
			story.spoil(t, n, &p)
			r := Examine(t.Context(), p)
			c := r.named(t, story.check)
			require.False(t, c.OK, "%+v", c)
			require.Contains(t, c.Detail+c.Remedy, story.says)
			require.NotEmpty(t, c.Remedy)
			require.Positive(t, r.Failed())
		})
	}
}

func TestExamine_WithoutANodeChecksWhatOneWouldMeet(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	cfg := config.Default()
	cfg.Data = filepath.Join(t.TempDir(), "not", "yet")
	cfg.Listen, cfg.API, cfg.GRPC = []string{"/ip4/127.0.0.1/tcp/0"}, "127.0.0.1:0", "127.0.0.1:0"
	p := Patient{Config: cfg, Node: &fakeNode{err: api.ErrNoNode}, API: "there"}
	r := Examine(t.Context(), p)
	require.Zero(t, r.Failed(), "%+v", r)
	require.True(t, r.named(t, "node").Skipped)
	require.True(t, r.named(t, "experts").Skipped)
	require.False(t, r.named(t, "ports").Skipped)
	require.NoDirExists(t, cfg.Data, "looking changes nothing")

	cfg.GRPC = taken.Addr().String()
	c := Examine(t.Context(), p).named(t, "ports")
	require.False(t, c.OK)
	require.Contains(t, c.Detail, "grpc")

	// Somebody runs on the data directory, and does not answer.
	cfg.GRPC = "127.0.0.1:0"
	held, err := p2p.OpenDataDir(cfg.Data)
	require.NoError(t, err)
	defer held.Close()
	_, err = p2p.LoadOrMakeIdentity(cfg.Data)
	require.NoError(t, err)
	c = Examine(t.Context(), p).named(t, "node")
	require.False(t, c.OK)
	require.Contains(t, c.Detail, strconv.Itoa(os.Getpid()))
}
