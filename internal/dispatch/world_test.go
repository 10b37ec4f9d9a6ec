package dispatch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/mr-tron/base58"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hidden is the width of all rows here.
const hidden = 4

// world is what a Dispatcher meets: peers that behave as told, a DHT, this node. Its peers' experts are the identity.
type world struct {
	table *registry.Table

	mu    sync.Mutex
	peers map[peer.ID]behaviour
	pings map[peer.ID]func(ctx context.Context) error
	dht   map[expert.ID][]peer.ID
	lag   time.Duration // of a look-up
	here  map[expert.ID]expert.Hosted
	local behaviour
	asked []string // "peer: experts", in the order of the calls
	walks int

	forgetful bool // asked is not kept
}

// behaviour is how a peer answers an exchange.
type behaviour func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error)

// newWorld returns a world and a Dispatcher in it, which ends with the test.
func newWorld(t testing.TB, cfg Config, options ...Option) (*world, *Dispatcher) {
	w := &world{
		table: registry.New(registry.DefaultLimits(), time.Now()),
		peers: map[peer.ID]behaviour{}, pings: map[peer.ID]func(context.Context) error{},
		dht: map[expert.ID][]peer.ID{}, here: map[expert.ID]expert.Hosted{}, local: identity,
		lag: time.Millisecond,
	}
	dice := &lockedDice{r: rand.New(rand.NewPCG(1, 2))}
	d := New(cfg, w.table, w, w, (*localWorld)(w), append([]Option{withDice(dice)}, options...)...)
	t.Cleanup(d.Close)
	return w, d
}

// withDice makes choices repeatable. The dice must be safe for concurrent use.
func withDice(dice registry.Dice) Option { return func(d *Dispatcher) { d.dice = dice } }

// lockedDice are repeatable.
type lockedDice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func (d *lockedDice) IntN(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

// do changes the world while others look at it.
func (w *world) do(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// provide puts peers with a behaviour into the world and the registry.
func (w *world) provide(id expert.ID, b behaviour, peers ...peer.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range peers {
		w.peers[p] = b
		w.table.AddProvider(id, p, registry.DHT, time.Now())
	}
}

// connect has this node be connected to peers.
func (w *world) connect(peers ...peer.ID) {
	for _, p := range peers {
		w.table.Connected(p, time.Now())
	}
}

// announce puts peers into the DHT alone.
func (w *world) announce(id expert.ID, b behaviour, peers ...peer.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range peers {
		w.peers[p] = b
		w.dht[id] = append(w.dht[id], p)
	}
}

func (w *world) host(id expert.ID, state expert.State) {
	w.here[id] = expert.Hosted{ID: id, State: state, Spec: expert.Spec{
		Kind: "identity", Hidden: hidden, DType: "f32", Digest: digestX, Numerics: "exact-1",
	}}
}

// Call answers as the peer's behaviour says; a peer that is not there cannot be dialled.
func (w *world) Call(ctx context.Context, p peer.ID, x *tensor.Dense, pairs []expert.Pair, _ codec.DType) ([]expert.Result, expert.Load, error) {
	w.mu.Lock()
	b := w.peers[p]
	line := []string{string(p) + ":"}
	for _, pair := range pairs {
		line = append(line, pair.Expert.String())
	}
	if !w.forgetful {
		w.asked = append(w.asked, strings.Join(line, " "))
	}
	w.mu.Unlock()
	if b == nil {
		return nil, expert.Load{}, expert.ErrDialFailed
	}
	results, err := b(ctx, x, pairs)
	return results, expert.Load{}, err
}

// Ping is answered within a millisecond unless the world says otherwise.
func (w *world) Ping(ctx context.Context, p peer.ID) (time.Duration, error) {
	w.mu.Lock()
	ping := w.pings[p]
	w.mu.Unlock()
	began := time.Now()
	if ping == nil {
		time.Sleep(time.Millisecond)
		return time.Since(began), nil
	}
	err := ping(ctx)
	return time.Since(began), err
}

// Find knows what the DHT holds.
func (w *world) Find(ctx context.Context, id expert.ID) ([]peer.AddrInfo, error) {
	return w.Walk(ctx, id)
}

// Walk takes its time.
func (w *world) Walk(ctx context.Context, id expert.ID) ([]peer.AddrInfo, error) {
	w.mu.Lock()
	w.walks++
	lag := w.lag
	w.mu.Unlock()
	select {
	case <-time.After(lag):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []peer.AddrInfo
	for _, p := range w.dht[id] {
		found = append(found, peer.AddrInfo{ID: p})
	}
	return found, nil
}

// localWorld is this node in the world.
type localWorld world

func (w *localWorld) Has(id expert.ID) (expert.Hosted, bool) {
	h, ok := w.here[id]
	return h, ok
}

func (w *localWorld) Local(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) []expert.Result {
	results, err := w.local(ctx, x, pairs)
	if err != nil {
		results = make([]expert.Result, len(pairs))
		for i := range results {
			results[i].Err = err
		}
	}
	return results
}

var (
	digestX = expert.Digest{'x'}
	digestY = expert.Digest{'y'}
)

// identity answers at once, in exact-1.
func identity(_ context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
	results := answerWith(x, pairs, func(v float32) float32 { return v })
	for i := range pairs {
		if !pairs[i].Takes(results[i].Numerics) {
			results[i] = expert.Result{Err: expert.ErrUnimplemented}
		}
	}
	return results, nil
}

func answerWith(x *tensor.Dense, pairs []expert.Pair, f func(float32) float32) []expert.Result {
	results := make([]expert.Result, len(pairs))
	width := x.Shape()[1]
	for i, p := range pairs {
		var y []float32
		in := x.Float32s()
		if p.Rows == nil {
			y = append(y, in...)
		}
		for _, r := range p.Rows {
			y = append(y, in[int(r)*width:][:width]...)
		}
		for k := range y {
			y[k] = f(y[k])
		}
		results[i] = expert.Result{Output: expert.NewRows(y, width), Digest: digestX, Numerics: "exact-1"}
	}
	return results
}

// after answers as b does, later.
func after(delay time.Duration, b behaviour) behaviour {
	return func(ctx context.Context, x *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
		select {
		case <-time.After(delay):
			return b(ctx, x, pairs)
		case <-ctx.Done():
			return nil, endOf(ctx)
		}
	}
}

// frozen never answers.
func frozen(ctx context.Context, _ *tensor.Dense, _ []expert.Pair) ([]expert.Result, error) {
	<-ctx.Done()
	return nil, endOf(ctx)
}

// silent misses a ping.
func silent(ctx context.Context) error {
	<-ctx.Done()
	return endOf(ctx)
}

// endOf is what the protocol's client makes of a context's end.
func endOf(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return expert.ErrTimeout
	}
	return expert.ErrCancelled
}

// breaks ends the exchange with an error.
func breaks(err error) behaviour {
	return func(context.Context, *tensor.Dense, []expert.Pair) ([]expert.Result, error) { return nil, err }
}

// refuses answers every pair with an error.
func refuses(err error) behaviour {
	return func(_ context.Context, _ *tensor.Dense, pairs []expert.Pair) ([]expert.Result, error) {
		results := make([]expert.Result, len(pairs))
		for i := range results {
			results[i].Err = err
		}
		return results, nil
	}
}

// rows returns a batch of ascending numbers.
func rows(n int) *tensor.Dense {
	v := make([]float32, n*hidden)
	for i := range v {
		v[i] = float32(i)
	}
	return expert.NewRows(v, hidden)
}

// one makes a call of a single expert for one row.
func one(t testing.TB, d *Dispatcher, id expert.ID) Answer {
	t.Helper()
	answers, err := d.Call(t.Context(), Request{X: rows(1), Pairs: []expert.Pair{{Expert: id}}})
	require.NoError(t, err)
	require.Len(t, answers, 1)
	checkAnswer(t, &answers[0])
	return answers[0]
}

func checkAnswer(t testing.TB, a *Answer) {
	t.Helper()
	require.Equal(t, a.Err == nil, a.Output != nil, "exactly one of output and error")
}

// tried tells what was tried, such as "expert-42 peer-a: stream reset".
func tried(a Answer) (list []string) {
	for _, at := range a.Attempts {
		who := "here"
		if id, err := base58.Decode(at.Peer); err == nil && len(id) > 0 {
			who = string(id)
		}
		list = append(list, fmt.Sprintf("%s %s: %v", at.Expert, who, at.Err))
	}
	return list
}

// requireNothingUnderWay holds when no call is: every pick was reported, once what goes on behind calls and takes no time is over.
func requireNothingUnderWay(t testing.TB, w *world) {
	t.Helper()
	synctest.Wait()
	for _, p := range w.table.Peers(time.Now()) {
		require.Zero(t, p.Inflight, "peer %s", string(p.Peer))
	}
}
