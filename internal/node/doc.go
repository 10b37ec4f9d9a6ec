// Package node puts the parts together: it is the only package that knows everyone.
//
//	node.go      Node: build, Run, ordered stop
//	core.go      what a node and a client of one command have in common
//	client.go    Join: the swarm for one command, without a node
//	layers.go    MoE layers that this node routes
//	load.go      from the configuration's experts to hosted ones
//	call.go      one forward pass, as gateway and commands ask for it
//	bench.go     load from many concurrent callers
//	documents.go status, experts, peers, resolve
//	checkup.go   what the node finds when it examines itself
//	metrics.go   what it tells Prometheus of itself and of its peers
//	describe.go  what other hosts say about themselves
//	errors.go    failures as documents
package node
