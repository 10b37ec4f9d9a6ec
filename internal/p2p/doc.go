// Package p2p makes the libp2p host that everything else talks through: who this node is, which transports and limits it
// has, in which order it dials, what it tells others about its addresses, and who is connected.
//
//	config.go    what an operator can set, with defaults and checks
//	host.go      New, Run, Close; connected and disconnected peers, round trips
//	listen.go    listening, and errors that name the address
//	addrs.go     which addresses are announced; whether others can dial this node
//	nat.go       relays, hole punching, UPnP, AutoNAT
//	dial.go      the order of dials: TCP first
//	transports.go TCP and QUIC: a dead peer is known by its refusal of TCP
//	secure.go    TLS, with one system call for each write of the muxer
//	quiet_*.go   sockets that do not wake the runtime's watchman; watchman.go wakes it where it is needed
//	limits.go    connection manager and resource manager, every field set
//	identity.go  the node's key: made, read, imported
//	datadir.go   the data directory and its lock (lock_*.go)
//	forget.go    addresses that are good no more
//	logs.go      the libraries' logs into ours
//	metrics.go   Prometheus metrics
package p2p
