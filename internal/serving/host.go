package serving

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Host holds experts under IDs and answers calls to them. It is safe for concurrent use. It has no goroutine while it has
// nothing to compute.
type Host struct {
	cfg     Config
	log     zerolog.Logger
	metrics *Metrics
	budget  *budget
	epoch   time.Time // when it was made

	buffers bufferPool // of inputs
	outputs memoryPool
	tickets sync.Pool // of *Ticket

	mu       sync.Mutex // guards all below, and what says so in hosted, Ticket, job, lane and batch
	experts  map[expert.ID]*hosted
	changed  chan struct{} // closed, and replaced, when the set of ready experts changes
	draining bool
	drained  chan struct{} // closed once draining and taken is 0

	// Invariant: 0 <= queued <= cfg.QueueRows, 0 <= bytes <= cfg.QueueBytes, and all three are 0 when no ticket is out.
	taken  int   // tickets with an admitted pair, not yet released
	queued int   // rows admitted and not yet released
	bytes  int64 // of these rows, as input and output

	// Invariant, outside the critical sections: a slot is free only if no lane waits.
	slots     int // free ones
	width     int // all slots: how many passes run at the same time
	line      line
	gathering *gathering // the lane that waits for callers; nil when none does
	last      *lane      // whose pass ended last
	busy      busyClock
	done      uint64 // rows computed, by experts that have gone too
	speed     rate   // of all experts together, in time of the busy clock
}

// hosted is one expert under its ID. What Begin sets never changes; impl and spec are set once, before it is ready. The rest
// is guarded by Host.mu.
type hosted struct {
	id   expert.ID
	name string
	impl expert.Expert // nil while loading, and when that failed
	spec expert.Spec
	// One lane per order of operations that the expert can compute in, its own first; empty until it is ready.
	lanes []lane

	state    expert.State
	problem  string
	reserved int64         // of the budget
	refs     int           // admitted pairs not yet released, passes and canaries under way
	rows     int           // rows of those pairs
	done     uint64        // rows computed
	loading  bool          // its memory still counts as pending
	stop     func()        // ends Run; nil when that is not under way
	retired  bool          // once refs is 0 it goes
	unloaded bool          // it does
	gone     chan struct{} // closed once it has
}

// Option is something that a host can do without.
type Option func(*Host)

// WithLogger makes the host log what it handles itself: panics, and experts that fail behind the callers' backs.
func WithLogger(log zerolog.Logger) Option { return func(h *Host) { h.log = log } }

// WithMetrics makes the host count.
func WithMetrics(m *Metrics) Option { return func(h *Host) { h.metrics = m } }

// New returns a host without experts. The error is cfg's.
func New(cfg Config, opts ...Option) (*Host, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("serving: %w", err)
	}
	h := &Host{
		cfg:     cfg,
		log:     zerolog.Nop(),
		budget:  newBudget(cfg.Memory, machineMemory),
		experts: make(map[expert.ID]*hosted),
		changed: make(chan struct{}),
		drained: make(chan struct{}),
		width:   runtime.GOMAXPROCS(0), // a slot per CPU that Go may use
		epoch:   time.Now(),
	}
	h.tickets.New = func() any { return &Ticket{host: h, done: make(chan struct{}, 1)} }
	for _, opt := range opts {
		opt(h)
	}
	h.slots = h.width
	return h, nil
}

// now reads the host's clock.
func (h *Host) now() moment { return moment(time.Since(h.epoch)) }

// Has returns what is hosted under an ID, in whatever state; false when nothing is.
func (h *Host) Has(id expert.ID) (expert.Hosted, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.experts[id]
	if !ok {
		return expert.Hosted{}, false
	}
	return h.describe(e), true
}

// List returns all experts in whatever state, by ascending ID.
func (h *Host) List() []expert.Hosted {
	h.mu.Lock()
	out := make([]expert.Hosted, 0, len(h.experts))
	for _, e := range h.experts {
		out = append(out, h.describe(e))
	}
	h.mu.Unlock()
	slices.SortFunc(out, func(a, b expert.Hosted) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Ready returns the experts that take calls, by ascending ID, and a channel that is closed when that set next changes: ask
// again then. A host that drains has none.
func (h *Host) Ready() ([]expert.ID, <-chan struct{}) {
	h.mu.Lock()
	ids := make([]expert.ID, 0, len(h.experts))
	for id, e := range h.experts {
		if e.state == expert.StateReady && !h.draining {
			ids = append(ids, id)
		}
	}
	changed := h.changed
	h.mu.Unlock()
	slices.Sort(ids)
	return ids, changed
}

// Load says how busy the host is: rows × service time is when it expects to be idle. It costs next to nothing.
func (h *Host) Load() expert.Load {
	h.mu.Lock()
	defer h.mu.Unlock()
	return expert.Load{QueuedRows: h.queued, ServiceTime: h.speed.perRow()}
}

// Inflight returns how many calls were taken on and are not answered yet, those of this node too.
func (h *Host) Inflight() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken
}

// Rows returns how many rows the host has computed, and of these those of each expert that is here now.
func (h *Host) Rows() (total uint64, byExpert map[expert.ID]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	byExpert = make(map[expert.ID]uint64, len(h.experts))
	for id, e := range h.experts {
		byExpert[id] = e.done
	}
	return h.done, byExpert
}

// Describe returns the host's part of its node's description: all but the version and the measured speed. FreeMemory is 0
// where it isn't known.
func (h *Host) Describe() expert.Description {
	free, _ := h.budget.free()
	h.mu.Lock()
	draining := h.draining
	h.mu.Unlock()
	return expert.Description{Experts: h.List(), FreeMemory: free, Load: h.Load(), Draining: draining}
}

// describe is called with mu held.
func (h *Host) describe(e *hosted) expert.Hosted {
	out := expert.Hosted{ID: e.id, Name: e.name, State: e.state, Problem: e.problem, Spec: e.spec}
	if h.draining && e.state == expert.StateReady {
		out.State = expert.StateDraining
	}
	return out
}

// move puts an expert into a state; problem says why it failed, if it did. Called with mu held.
func (h *Host) move(e *hosted, to expert.State, problem string) {
	from := e.state
	e.state, e.problem = to, problem
	h.metrics.moved(from, to)
	if (from == expert.StateReady) != (to == expert.StateReady) {
		h.notify()
	}
}

// notify wakes those who wait for the set of ready experts to change. Called with mu held.
func (h *Host) notify() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// retryAfter estimates when a refused caller may come again: when the queue is half empty, so that it doesn't run dry while
// callers rest, or when there is room for needed rows, if that is later. Called with mu held.
func (h *Host) retryAfter(needed int) time.Duration {
	const (
		unknown  = 100 * time.Millisecond // nothing was computed yet: some passes of a large expert
		shortest = time.Millisecond       // callers rest no shorter; longer than a short queue takes, and it would run dry
		longest  = 5 * time.Second        // beyond it the estimate says nothing
	)
	if h.speed.rows == 0 {
		return unknown
	}
	return min(max(h.speed.of(max(h.queued/2, needed)), shortest), longest)
}
