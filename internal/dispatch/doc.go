// Package dispatch makes calls: it asks the registry who is to compute, asks them, and tries others until there is an answer or the
// deadline is over. A call is a batch of rows with many (expert, rows) pairs; the pairs that go to one peer share an exchange. A call
// of a single expert is the case of one pair, and takes the same way.
//
//	dispatch.go  Dispatcher, and what it needs of others: Finder, Caller, Local
//	config.go    its tunables
//	request.go   Request, Answer, and what is checked before anything is sent
//	call.go      one call: plan, run, settle, until every pair is decided
//	settle.go    what the end of an exchange means for its pairs
//	sum.go       outputs that come added up, and how they are checked
//	seek.go      what is done for a pair that nobody can be asked for: look-up, fallback, another walk, a reason
//	outcome.go   what an error means for the call, and what it teaches the registry
//	lookup.go    walks of the DHT, one at a time for each expert
//	watch.go     what is done while an exchange is silent: hedge, ping, retry
//	budget.go    how many hedges there may be
//	liveness.go  pings, and who is dialled before a call needs it
//	once.go      what is done behind calls once at a time
//	check.go     answers that are compared with those of another host
//	counts.go    what is counted, for a node's own account
//	metrics.go   what is counted, for Prometheus
//
// The first exchange runs in the caller's goroutine; others have goroutines that end before Call returns.
package dispatch
