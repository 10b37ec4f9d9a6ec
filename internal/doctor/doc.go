// Package doctor checks what operators get wrong, and says for each what to do about it. It works with and without a running node; what
// it cannot see, it says.
//
//	doctor.go   Examine: the order of the checks, and what they are made of
//	local.go    what can be seen on this machine: configuration, data directory, key, disk, ports
//	node.go     what the running node says: ready, addresses, swarm, DHT, experts, limits
//	dial.go     dialling the node as a stranger would
//	clock.go    whether the clock can be right
//	disk_*.go, clock_*.go   what each system tells
package doctor
