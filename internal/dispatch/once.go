package dispatch

import (
	"context"
	"sync"
)

// oncePer is what is done behind calls once at a time for each key. The zero value is ready.
type oncePer[K comparable] struct {
	mu    sync.Mutex
	under map[K]struct{} // under way
}

// start runs f behind the calls, unless it is under way for the key, or for as many keys as most, or d is closed.
func (o *oncePer[K]) start(d *Dispatcher, key K, most int, f func(ctx context.Context)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, already := o.under[key]; already || len(o.under) >= most {
		return
	}
	if o.under == nil {
		o.under = make(map[K]struct{})
	}
	if d.goBehind(func(ctx context.Context) {
		defer o.end(key)
		f(ctx)
	}) {
		o.under[key] = struct{}{}
	}
}

func (o *oncePer[K]) end(key K) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.under, key)
}
