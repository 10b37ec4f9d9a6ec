// Package serving hosts experts and answers calls to them: it loads and proves them, decides at once which calls it takes,
// computes together what waits for the same expert, and gives up work that nobody waits for any more.
//
//	host.go      Host: what is hosted, and what a host says about itself
//	life.go      an expert's life: loading, ready, draining, gone; Drain and Close of the whole host
//	canary.go    the input that every expert has to answer before it counts as ready
//	config.go    Config, its defaults and its checks
//	admit.go     Admit: the fate of every pair of a call, before its payload is read
//	ticket.go    Ticket: a call that was taken on; Local, for calls from this node
//	run.go       a call's way through the queue
//	queue.go     lanes (what waits for one expert) and the line of lanes that wait for a slot; no I/O, no clock
//	batch.go     one pass over the rows of many calls: form, gather, compute, share out
//	compute.go   one call of an expert: panics caught, outputs checked
//	rows.go      selecting, gathering and checking rows; the memory of inputs and outputs
//	rate.go      how long a row takes
//	budget.go    the memory that experts may take
//	machine.go   the memory that a machine or its cgroups have left (machine_linux.go, machine_other.go)
//	metrics.go   what Prometheus sees
//	errors.go    errors beside those of package expert
//
// # Batches
//
// Calls to one expert wait in its lane. A pass takes everything that waits there when it starts, so that weights are read once for many calls. At most
// one pass per expert and one per slot (by default a slot per CPU) run at the same time; arithmetic spreads inside a pass over the process's worker pool.
//
// Callers that call in a loop are back soon after they were answered. So a pass waits for as many callers as were there at once lately, where their
// rows cost it next to nothing (up to 16), until as much time has gone by since the last pass as a pass takes; where they did not come, the passes
// after it do not wait, twice as many each time. A lone caller is not waited for: nobody else was there. Nor does a pass wait when other
// lanes have passes, or when a deadline would be at risk.
//
// A call that finds its expert idle and quick and a slot free computes in its own goroutine, on the caller's own rows: no
// copy, no hand-over, no allocation. All other passes run in goroutines that live as long as there is work, on copies of the
// rows where copying is lost in the pass: so a caller whose ctx ends leaves at once, whatever the pass does. Such a goroutine
// yields before it takes a batch, so that callers which are ready to run at that moment are in it. A pass is told to stop once
// all its callers have left.
//
// # Order
//
// Within a lane the oldest call comes first. Newest first would keep latency low under overload too, but it lets the oldest
// wait just to die; here a call that is expected to come too late is refused when it arrives (OVERLOADED, by the expert's
// measured rate and the call's deadline), so that the queue never grows older than its callers' patience, and a pass never
// grows longer than its members can wait. What expired or was cancelled before its pass is dropped from it. So goodput stays
// at capacity, however much is offered.
//
// Lanes take turns: a lane that has had its pass goes to the end of the line. A busy expert delays others by its one pass,
// never by its backlog, and it can't take the queue's last free rows from them (see Admit).
//
// # Harm
//
// Rows share a batch, not a fate. Inputs are checked per call; a pass that fails or panics is repeated call by call, and only
// the culprit gets the error. An expert that panicked must answer its canary again before it goes on.
package serving
