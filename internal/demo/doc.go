// Package demo runs a whole swarm on one machine out of what the binary carries: child processes that host the experts of
// a small text model, calls through the DHT, hosts that die on the way.
//
//	demo.go    the story
//	record.go  what the callers see, and the figures made of it
//	host.go    one kwaaid child process (the end-to-end tests use it too); how it is frozen, per system, beside it
//	model.go   the built-in model, and what its experts answer
package demo
