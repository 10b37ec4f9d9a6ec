package demo

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// record collects what the callers see. Safe for concurrent use.
type record struct {
	begun time.Time

	mu       sync.Mutex
	calls    []span // bounded by the demo's time: some 100,000 in 20 s
	failed   int
	wrong    int
	firstErr error
	events   []event
}

type span struct{ start, end time.Duration }

type event struct {
	at   time.Duration
	what string
}

func (r *record) call(start time.Time, err error, wrong bool) {
	s := span{start.Sub(r.begun), time.Since(r.begun)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, s)
	if err != nil {
		r.failed++
		if r.firstErr == nil {
			r.firstErr = err
		}
	}
	if wrong {
		r.wrong++
	}
}

func (r *record) event(what string) {
	at := time.Since(r.begun)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{at, what})
}

func (r *record) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := Progress{Elapsed: time.Since(r.begun), Calls: len(r.calls), Failed: r.failed, Wrong: r.wrong}
	if n := len(r.events); n > 0 {
		p.Note, p.Noted = r.events[n-1].what, r.events[n-1].at
	}
	return p
}

// recoveryWindow is how long after a host's end a call may begin and still count as hit by it.
const recoveryWindow = time.Second

func (r *record) result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	res := Result{Calls: len(r.calls), Failed: r.failed, Wrong: r.wrong, Events: []string{}}
	if r.firstErr != nil {
		res.FirstError = r.firstErr.Error()
	}
	took := make([]time.Duration, 0, len(r.calls))
	var last, recovery time.Duration
	for _, c := range r.calls {
		took = append(took, c.end-c.start)
		last = max(last, c.end)
		if slices.ContainsFunc(r.events, func(e event) bool { return c.end >= e.at && c.start <= e.at+recoveryWindow }) {
			recovery = max(recovery, c.end-c.start)
		}
	}
	slices.Sort(took)
	if n := len(took); n > 0 {
		res.P50MS, res.P99MS = millis(took[n/2]), millis(took[n*99/100])
		res.CallsPerS = float64(n) / last.Seconds()
	}
	res.RecoveryMS = millis(recovery)
	for _, e := range r.events {
		res.Events = append(res.Events, fmt.Sprintf("%.1f s: %s", e.at.Seconds(), e.what))
	}
	return res
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
