// Package api holds the JSON documents of /api/v1 and of the commands' --json, and a client for them: one set of types on
// both sides. The gateway serves them, a node fills them in, the commands print them.
//
//	call.go    one forward pass: request, result, attempts
//	layer.go   the same of a MoE layer
//	node.go    status, experts, peers, resolve
//	checkup.go a node's findings about itself, for the doctor
//	bench.go   load made by the node itself, with progress
//	errors.go  the error document, as a Go error
//	client.go  the client of a node's HTTP address
package api
