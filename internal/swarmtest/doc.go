// Package swarmtest builds swarms for tests: real hosts on loopback, or hosts in a simulated network inside a synctest bubble.
// Everything takes a testing.TB and cleans up after itself.
//
//	loopback.go  hosts with TCP and QUIC on 127.0.0.1, with or without discovery
//	simnet.go    QUIC hosts in virtual time, and the weather between them: delay, loss, cuts
//	proxy.go     a TCP proxy with faults, to stand between processes: delay, corruption, freezes, half-open connections, cuts
//	hosted.go    a fake of what a node hosts
package swarmtest
