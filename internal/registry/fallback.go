package registry

import (
	"slices"

	"github.com/kwaai/kwaaid/internal/expert"
)

// SetFallbacks says who stands in for an expert that nobody answers for, in order. The expert itself and whoever is listed twice
// are left out. A fallback's own fallbacks are not followed, so there are no circles. No fallbacks: forgets the list.
func (t *Table) SetFallbacks(id expert.ID, fallbacks []expert.ID) {
	var list []expert.ID
	for _, f := range fallbacks {
		if f != id && !slices.Contains(list, f) {
			list = append(list, f)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(list) == 0 {
		delete(t.fallbacks, id)
		return
	}
	t.fallbacks[id] = list
}

// Fallbacks returns who stands in for an expert, in order: those whose hidden size is not known to differ. The slice is the caller's.
func (t *Table) Fallbacks(id expert.ID, hidden int) []expert.ID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []expert.ID
	for _, f := range t.fallbacks[id] {
		if e := t.experts[f]; e != nil && e.hidden != 0 && int(e.hidden) != hidden {
			continue
		}
		list = append(list, f)
	}
	return list
}
