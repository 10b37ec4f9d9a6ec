package swarmtest

import (
	"slices"
	"sync"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Hosted is a set of ready experts that a test changes as it likes; it answers discovery's interface of that name.
type Hosted struct {
	mu      sync.Mutex
	ids     []expert.ID
	changed chan struct{}
}

// NewHosted begins with the given experts ready.
func NewHosted(ids ...expert.ID) *Hosted {
	return &Hosted{ids: slices.Clone(ids), changed: make(chan struct{})}
}

// Set replaces the ready experts.
func (h *Hosted) Set(ids ...expert.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ids = slices.Clone(ids)
	close(h.changed)
	h.changed = make(chan struct{})
}

// Ready returns the ready experts, and a channel that is closed when that changes.
func (h *Hosted) Ready() ([]expert.ID, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ids), h.changed
}
