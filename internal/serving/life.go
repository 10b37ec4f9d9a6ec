package serving

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Offer is an expert that is to be hosted.
type Offer struct {
	ID      expert.ID
	Name    string // MODEL[@REVISION]/LAYER/INDEX; empty where it has none
	Bytes   int64  // memory that it is going to take, as far as is known before it is loaded
	Replace bool   // takes the place of the expert that is hosted under the ID, if there is one

	// Load reads the expert. An expert that is an io.Closer is closed once its last call was answered; one that is Versatile
	// answers calls in all its orders of operations.
	Load func(ctx context.Context) (expert.Expert, error)
}

// Loading is an expert that was announced with Begin. Run has to be called once.
type Loading struct {
	host   *Host
	offer  Offer
	hosted *hosted
}

// Begin registers an expert in state loading, so that its callers hear NOT_READY rather than NOT_FOUND, and reserves its
// memory. It refuses with ErrExists where another expert has the ID (unless that one failed, or is to be replaced), with a
// MemoryError where the memory does not suffice, and with ErrClosed when the host stops. An expert that is to be replaced
// takes calls until the new one is ready.
func (h *Host) Begin(offer Offer) (*Loading, error) {
	if err := h.budget.reserve(offer.Bytes); err != nil {
		return nil, fmt.Errorf("%s %w", offer.ID, err)
	}
	e := &hosted{id: offer.ID, name: offer.Name, reserved: offer.Bytes, loading: true, gone: make(chan struct{})}

	unloaded, err := h.register(e, offer.Replace)
	h.unload(unloaded)
	if err != nil {
		h.budget.release(offer.Bytes, true)
		return nil, fmt.Errorf("%s: %w", offer.ID, err)
	}
	return &Loading{host: h, offer: offer, hosted: e}, nil
}

// register puts a loading expert under its ID, unless it waits there for the one that it replaces. It returns a failed one
// that has to be unloaded.
func (h *Host) register(e *hosted, replace bool) (unloaded *hosted, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return nil, ErrClosed
	}
	old, exists := h.experts[e.id]
	failed := exists && old.state == expert.StateFailed
	if exists && !failed && !replace {
		return nil, ErrExists
	}
	h.move(e, expert.StateLoading, "")
	if exists && !failed {
		return nil, nil
	}
	h.experts[e.id] = e
	if failed {
		unloaded = h.retire(old)
	}
	return unloaded, nil
}

// Run loads the expert and asks it for its canary. On success it takes calls from now on; on failure it stays listed as
// failed, without its memory, and the error says why (but an expert that was to replace another leaves that one in its place).
// When ctx ends, or the expert is removed meanwhile, it goes without a trace.
func (l *Loading) Run(ctx context.Context) error {
	h, e := l.host, l.hosted
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.mu.Lock()
	gone := e.retired
	if !gone {
		e.stop = cancel
	}
	h.mu.Unlock()
	if gone {
		return fmt.Errorf("%s: %w", e.id, errUnloaded)
	}

	impl, took, err := l.load(ctx)
	left, err := h.settle(ctx, e, impl, took, err)
	for _, u := range left {
		h.unload(u)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", e.id, err)
	}
	return nil
}

// settle takes an expert into service, or marks it failed, or lets it go. It returns what has to be unloaded.
func (h *Host) settle(ctx context.Context, e *hosted, impl expert.Expert, took time.Duration, err error) ([]*hosted, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.stop, e.impl = nil, impl
	current := h.experts[e.id]
	switch {
	case e.retired || h.draining:
		return []*hosted{h.retire(e)}, errUnloaded
	case err != nil && (ctx.Err() != nil || current != e):
		return []*hosted{h.retire(e)}, err
	case err != nil:
		h.move(e, expert.StateFailed, err.Error())
		// What it took is given back now; the entry alone stays.
		shell := &hosted{impl: impl, reserved: e.reserved, loading: true, gone: make(chan struct{})}
		e.impl, e.reserved, e.loading = nil, 0, false
		return []*hosted{shell}, err
	}
	h.budget.loaded(e.reserved)
	e.loading = false
	e.open(took)
	h.experts[e.id] = e
	h.move(e, expert.StateReady, "")
	if current != nil && current != e {
		return []*hosted{h.retire(current)}, nil
	}
	return nil, nil
}

// Versatile is an expert that can compute in several orders of operations (numerics), so that callers can have answers of other
// hosts checked by it.
type Versatile interface {
	expert.Expert
	// Variants returns the expert in each order that it can compute in besides its Spec's. They share its weights and live as
	// long as it does.
	Variants() []expert.Expert
}

// open makes the expert's lanes; took is what a pass of a single row took. Called with Host.mu held.
func (e *hosted) open(took time.Duration) {
	impls := []expert.Expert{e.impl}
	if v, ok := e.impl.(Versatile); ok {
		impls = append(impls, v.Variants()...)
	}
	e.lanes = make([]lane, len(impls))
	for i, impl := range impls {
		e.lanes[i] = lane{hosted: e, impl: impl, numerics: impl.Spec().Numerics}
		e.lanes[i].cost.add(took, 1)
	}
}

// load reads the expert, corrects what is reserved for it, and runs its canary. The expert is returned with an error, too.
func (l *Loading) load(ctx context.Context) (expert.Expert, time.Duration, error) {
	if ctx.Err() != nil {
		return nil, 0, ctxError(ctx)
	}
	impl, err := l.offer.Load(ctx)
	if err != nil {
		return nil, 0, err
	}
	spec := impl.Spec()
	if more := spec.Bytes - l.offer.Bytes; more > 0 {
		if err := l.host.budget.reserve(more); err != nil {
			return impl, 0, err
		}
	} else {
		l.host.budget.release(-more, true)
	}
	l.host.mu.Lock()
	l.hosted.spec, l.hosted.reserved = spec, spec.Bytes
	l.host.mu.Unlock()
	took, err := canary(ctx, impl, spec)
	return impl, took, err
}

// Remove unloads an expert: from now on its callers hear NOT_READY, and once those it had taken on are answered it is gone.
// Remove waits for that; when ctx ends first, the expert goes without it. The error matches ErrNotFound, or is ctx's.
func (h *Host) Remove(ctx context.Context, id expert.ID) error {
	h.mu.Lock()
	e, ok := h.experts[id]
	if !ok {
		h.mu.Unlock()
		return fmt.Errorf("%s: %w", id, expert.ErrNotFound)
	}
	unloaded := h.retire(e)
	h.mu.Unlock()
	h.unload(unloaded)
	select {
	case <-e.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s is still answering: %w", id, ctxError(ctx))
	}
}

// prove runs the canary of an expert to which the caller holds a reference, and gives that back.
func (h *Host) prove(ctx context.Context, e *hosted) error {
	_, err := canary(ctx, e.impl, e.spec)
	judged := err == nil || ctx.Err() == nil
	h.mu.Lock()
	switch {
	case !judged || e.retired:
	case err != nil:
		h.move(e, expert.StateFailed, err.Error())
	case e.state == expert.StateFailed:
		h.move(e, expert.StateReady, "")
	}
	unloaded := h.unref(e, 1)
	h.mu.Unlock()
	h.unload(unloaded)
	if err != nil {
		return fmt.Errorf("%s: %w", e.id, err)
	}
	return nil
}

// Drain stops taking calls, which from now on hear NOT_READY, and waits until those that were taken on are answered: until
// ctx ends or the drain time of the configuration is over. The error then says how much was left. There is no way back.
func (h *Host) Drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Drain)
	defer cancel()
	h.stopTaking()
	select {
	case <-h.drained:
		return nil
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.taken == 0 {
			return nil
		}
		return fmt.Errorf("%d calls with %d rows were not answered: %w", h.taken, h.queued, ctxError(ctx))
	}
}

// Close takes no more calls and unloads all experts, each once its last call was answered; it does not wait for that. Call
// Drain before. Twice is fine.
func (h *Host) Close() {
	h.stopTaking()
	h.mu.Lock()
	unloaded := make([]*hosted, 0, len(h.experts))
	for _, e := range h.experts {
		unloaded = append(unloaded, h.retire(e))
	}
	h.mu.Unlock()
	for _, e := range unloaded {
		h.unload(e)
	}
}

// stopTaking refuses calls and experts from now on, and ends loading.
func (h *Host) stopTaking() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.draining {
		return
	}
	h.draining = true
	h.notify()
	for _, e := range h.experts {
		if e.stop != nil {
			e.stop()
		}
	}
	if h.taken == 0 {
		close(h.drained)
	}
}

// retire takes an expert out of service. It returns the expert if nobody uses it any more: then unload it, once mu is given
// back. Called with mu held.
func (h *Host) retire(e *hosted) *hosted {
	if !e.retired {
		e.retired = true
		h.move(e, expert.StateDraining, "")
	}
	if e.stop != nil {
		e.stop() // Run finds out, and retires it again
		return nil
	}
	return h.unref(e, 0)
}

// unref gives n references back. It returns the expert if it is retired and that was the last: then unload it, once mu is
// given back. Called with mu held.
func (h *Host) unref(e *hosted, n int) *hosted {
	e.refs -= n
	if !e.retired || e.refs > 0 || e.stop != nil || e.unloaded {
		return nil
	}
	e.unloaded = true
	if h.experts[e.id] == e {
		delete(h.experts, e.id)
	}
	h.move(e, "", "")
	return e
}

// unload gives an expert's memory back; nil is nothing to do. It may unmap files, so mu is not held.
func (h *Host) unload(e *hosted) {
	if e == nil {
		return
	}
	if c, ok := e.impl.(io.Closer); ok {
		_ = c.Close() // nothing was written, so nothing can be lost
	}
	h.budget.release(e.reserved, e.loading)
	close(e.gone)
}
