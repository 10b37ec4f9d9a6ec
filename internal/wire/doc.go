// Package wire writes and reads the frames of /kwaai/expert/1.0.0. It does no I/O of its own choosing: readers and writers are
// handed in, and every decoder checks what a peer claims against Limits before it takes memory.
//
//	status.go   the one table between statuses, error sentinels and names
//	limits.go   what a frame may claim
//	frame.go    the frame's outer shape: length, header, payload
//	fields.go   protobuf's fields, in and out
//	tensor.go   what a header says about a tensor
//	request.go  the header from caller to host
//	reply.go    the header from host to caller
//	describe.go the payload of the reply to describe
//	payload.go  float32 rows to bytes and back
//	errors.go   what a frame can have wrong
package wire
