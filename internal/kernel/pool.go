package kernel

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// Pool is the workers that all products of a process share: one per CPU, the calling goroutine counted among them. It is safe for concurrent
// use, and idle workers sleep. A call alone uses all of them; concurrent calls share them, each making progress in its own goroutine.
type Pool struct {
	set     *kernels
	threads int
	calls   sync.Pool // of *call
	// active counts goroutines that compute: callers, and workers that help one. More than threads is too many: workers leave.
	active    atomic.Int32
	opened    atomic.Int64 // counts calls that workers could help
	lingering atomic.Int32 // workers that watch opened
	ended     atomic.Int64 // when a call ended last, in Unix nanoseconds
	lone      atomic.Int32 // calls in a row that no other was beside when they began

	mu     sync.Mutex
	wake   sync.Cond // of workers, on mu: there may be a call to help
	open   []*call   // calls that have phases to come
	closed bool
	done   sync.WaitGroup
}

// NewPool makes a pool of that many threads, or of as many as the process may use (GOMAXPROCS, which heeds limits of a cgroup) where threads
// is 0. Its workers end with Close.
func NewPool(threads int) *Pool { return newPool(threads, PathAuto) }

// newPool makes a pool that computes in one given way; it panics if this machine cannot.
func newPool(threads int, path Path) *Pool {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	p := &Pool{threads: threads, set: kernelsFor(path)}
	p.wake.L = &p.mu
	p.calls.New = func() any { return p.newCall() }
	for range threads - 1 {
		p.done.Go(p.work)
	}
	return p
}

// Resolve returns n, or for Fast the numerics that is the quickest on this machine.
func (p *Pool) Resolve(n Numerics) Numerics {
	if n != Fast {
		return n
	}
	if p.set.path == PathBF16 {
		return Dot
	}
	return Exact
}

// Close ends the workers once they have left what they help with. Calls after it still work, each in its own goroutine alone. Twice is fine.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wake.Broadcast()
	p.done.Wait()
}

func (p *Pool) newCall() *call {
	c := &call{set: p.set, scratch: make([][]float32, p.threads)}
	for i := range c.scratch {
		c.scratch[i] = make([]float32, chunkRows*panel)
	}
	for phase := range c.lanes {
		c.lanes[phase] = make([]lane, p.threads)
	}
	c.schedule.changed.L = &c.schedule.mu
	return c
}

func (p *Pool) take() *call { return p.calls.Get().(*call) }

func (p *Pool) put(c *call) {
	c.ffn, c.x, c.y = nil, nil, nil
	p.calls.Put(c)
}

// schedule hands out the tasks of a call, phase after phase. Neighbouring tasks read neighbouring weights, and memory is read fastest in order: so a
// phase is cut into lanes, one for each thread, and who has done its own lane helps with the others.
type schedule struct {
	alone bool // not worth a second thread
	tasks [phases]int
	lanes [phases][]lane
	ended [phases]atomic.Int64 // tasks done

	seats   seats // of those who take part
	parting bool  // they are to be on different CPUs

	mu       sync.Mutex
	changed  sync.Cond // on mu: a phase ended
	sleepers atomic.Int32

	// Guarded by the pool's mu: participant 0 is the caller, the others are helpers. A helper that left may come back as another participant
	// only when its number is free again.
	helpers int
	free    []int
	joined  int
}

// lane counts the tasks begun in it. Each has a cache line of its own.
type lane struct {
	begun atomic.Int64
	_     [cacheLine - 8]byte
}

func (s *schedule) reset(tasks [phases]int) {
	s.tasks = tasks
	for phase := range phases {
		for i := range s.lanes[phase] {
			s.lanes[phase][i].begun.Store(0)
		}
		s.ended[phase].Store(0)
	}
	s.helpers, s.joined, s.free = 0, 0, s.free[:0]
	s.seats.reset()
}

// laneTasks returns the first task of a lane and the one after its last.
func (s *schedule) laneTasks(phase, i int) (first, end int) {
	n := len(s.lanes[phase])
	return (s.tasks[phase]*i + n - 1) / n, (s.tasks[phase]*(i+1) + n - 1) / n
}

// take begins a task of a lane; false if there is none left.
func (s *schedule) take(phase, i int) (task int, ok bool) {
	first, end := s.laneTasks(phase, i)
	begun := &s.lanes[phase][i].begun
	if int(begun.Load()) >= end-first {
		return 0, false
	}
	task = first + int(begun.Add(1)) - 1
	return task, task < end
}

// left tells whether a phase has tasks that nobody began.
func (s *schedule) left(phase int) bool {
	for i := range s.lanes[phase] {
		first, end := s.laneTasks(phase, i)
		if int(s.lanes[phase][i].begun.Load()) < end-first {
			return true
		}
	}
	return false
}

// alone tells whether it is always one call at a time, of which the latest begins with so many goroutines active.
func (p *Pool) alone(active int32) bool {
	if active > 1 {
		p.lone.Store(0)
		return false
	}
	return p.lone.Add(1) >= aloneLeast
}

// run computes c in this goroutine, with the help of workers that are idle.
func (p *Pool) run(c *call) {
	active := p.active.Add(1)
	shared := !c.alone && p.threads > 1
	c.parting = p.alone(active) && c.rows >= partLeast && c.rows <= partMost && time.Now().UnixNano()-p.ended.Load() > int64(rest)
	if shared {
		p.mu.Lock()
		p.open = append(p.open, c)
		p.mu.Unlock()
		p.opened.Add(1)
		wanted := p.threads - int(active) - int(p.lingering.Load())
		for range wanted {
			p.wake.Signal()
		}
		if wanted > 0 {
			// The scheduler lets others steal the goroutine that was readied last only after a sleep (50 us on Linux). Stepping aside, it runs
			// here at once, and this goroutine is what the woken thread finds.
			runtime.Gosched()
			if c.parting {
				c.seats.sit(false)
			}
		}
	}
	for phase := range phases {
		c.participate(phase, 0, nil)
		c.await(phase, 0)
	}
	if shared {
		p.mu.Lock()
		for i, o := range p.open {
			if o == c {
				p.open = append(p.open[:i], p.open[i+1:]...)
				break
			}
		}
		p.mu.Unlock()
		c.awaitHelpers(p)
	}
	p.leave()
}

// leave counts one active goroutine less, and wakes a worker if another call could use it.
func (p *Pool) leave() {
	p.ended.Store(time.Now().UnixNano())
	if int(p.active.Add(-1)) < p.threads {
		p.mu.Lock()
		waiting := len(p.open) > 0
		p.mu.Unlock()
		if waiting {
			p.wake.Signal()
		}
	}
}

// participate does tasks of a phase until none is left, those of its own lane first, or until leave says so.
func (c *call) participate(phase, participant int, leave func() bool) bool {
	lanes := len(c.lanes[phase])
	for i := range lanes {
		for leave == nil || !leave() {
			task, ok := c.schedule.take(phase, (participant+i)%lanes)
			if !ok {
				break
			}
			c.do(phase, task, participant)
			if c.ended[phase].Add(1) == int64(c.tasks[phase]) && c.sleepers.Load() > 0 {
				c.mu.Lock()
				c.changed.Broadcast()
				c.mu.Unlock()
			}
		}
	}
	return leave == nil || !leave()
}

const (
	// patience is how long await looks before it sleeps: about what it takes to put a thread to sleep and to wake it again. All others are
	// in the middle of their last tasks by then, which take about as long where time matters.
	patience = 20 * time.Microsecond
	// looks is how many of them go between two at the clock, which takes as long as a few. A pause is 10 ns on one CPU, 50 on another.
	looks = 64
	// rest is how long no call is there before threads are asleep, CPUs idle: then the threads of the next one part.
	rest = 10 * patience
	// partLeast, partMost are the rows of a call whose threads part: fewer wait for memory, which one thread nearly fills, and who calls so may call several
	// hosts of one machine, which would be in each other's way; a call of more takes so long that the scheduler sees to it.
	partLeast, partMost = 4, 16
	// aloneLeast calls in a row are alone where threads part: others that come meanwhile would find them where they did not choose to be.
	aloneLeast = 8
)

// vigil is a wait that goes on as long as patience lasts.
type vigil struct {
	begun time.Time
	n     int
}

// goesOn counts a look and tells whether another is due.
func (v *vigil) goesOn() bool {
	if v.n%looks == 0 {
		if v.n == 0 {
			v.begun = time.Now()
		} else if time.Since(v.begun) > patience {
			return false
		}
	}
	v.n++
	return true
}

// await blocks until all tasks of a phase are done. Meanwhile it has the CPU fetch what this participant will read first in the next phase.
func (c *call) await(phase, participant int) {
	finished := func() bool { return c.ended[phase].Load() == int64(c.tasks[phase]) }
	ahead := c.firstWeights(phase+1, participant)
	for v := (vigil{}); v.goesOn(); {
		if finished() {
			return
		}
		if len(ahead) < fetchAtOnce {
			pause()
			continue
		}
		prefetch(unsafe.Pointer(&ahead[0]), fetchAtOnce/cacheLine)
		ahead = ahead[fetchAtOnce:]
	}
	c.sleepers.Add(1)
	c.mu.Lock()
	for !finished() {
		c.changed.Wait()
	}
	c.mu.Unlock()
	c.sleepers.Add(-1)
}

// awaitHelpers blocks until no worker looks at c any more; none can come, since c is not among the open calls.
func (c *call) awaitHelpers(p *Pool) {
	p.mu.Lock()
	for c.helpers > 0 {
		p.mu.Unlock()
		runtime.Gosched()
		p.mu.Lock()
	}
	p.mu.Unlock()
}

// work is the life of a worker: it helps the open call that has the fewest helpers, until the pool is closed.
func (p *Pool) work() {
	tooMany := func() bool { return int(p.active.Load()) > p.threads }
	p.mu.Lock()
	defer p.mu.Unlock()
	lingered := false
	for {
		c := p.needy()
		switch {
		case c == nil && p.closed:
			return
		case c == nil && lingered:
			p.wake.Wait()
			continue
		case c == nil:
			p.linger()
			lingered = true
			continue
		}
		participant := c.join()
		p.active.Add(1)
		p.mu.Unlock()
		if c.parting {
			c.seats.sit(true)
		}
		for phase := range phases {
			if !c.participate(phase, participant, tooMany) {
				break
			}
			if phase < phases-1 {
				c.await(phase, participant)
			}
		}
		p.mu.Lock()
		c.helpers--
		c.free = append(c.free, participant)
		p.active.Add(-1)
		lingered = false
	}
}

// linger waits a moment for another call, once after each call: for some 20 us, see patience. Experts are called one after the other, and the next
// call should not wait until a thread is awake. Other goroutines come first. It is called with mu held.
func (p *Pool) linger() {
	seen := p.opened.Load()
	p.lingering.Add(1)
	p.mu.Unlock()
	for v := (vigil{}); p.opened.Load() == seen && v.goesOn(); {
		if v.n%looks == 0 {
			runtime.Gosched()
		}
		pause()
	}
	p.lingering.Add(-1)
	p.mu.Lock()
}

// needy returns the open call with the fewest helpers that has tasks to give away, nil if there is none or no thread to spare.
func (p *Pool) needy() *call {
	var best *call
	if int(p.active.Load()) >= p.threads {
		return nil
	}
	for _, c := range p.open {
		if c.left(phases-1) && (best == nil || c.helpers < best.helpers) {
			best = c
		}
	}
	return best
}

// join makes a worker a participant. The pool's mu is held.
func (c *call) join() int {
	c.helpers++
	if n := len(c.free); n > 0 {
		participant := c.free[n-1]
		c.free = c.free[:n-1]
		return participant
	}
	c.joined++
	return c.joined
}
