// Package rpc speaks /kwaai/expert/1.0.0: rows through the experts of another peer, and of this one for others. It does I/O and
// holds no policy: whom to ask is dispatch's to decide, what is served is its Handler's.
//
// A stream carries one exchange after another, one at a time. A cancelled exchange costs its stream.
//
//	client.go   Client: call, describe, ping, goodbye
//	exchange.go one exchange on one stream, the caller's side
//	pack.go     the rows of a batch that a request sends
//	pool.go     the open streams to each peer
//	server.go   Server: streams in, what is allowed on them
//	serve.go    one exchange on one stream, the host's side
//	handler.go  what a Server asks of whoever runs the experts
//	guard.go    the end of a stream that rests too long or moves too slowly
//	watch.go    the end of a stream, noticed while its request is computed
//	line.go     a stream with its read buffer; buffers that exchanges borrow
//	limits.go   what one peer may take of us
//	errors.go   what ended an exchange, as the sentinels of package expert; reset codes
//	trace.go    the trace context in a header
//	metrics.go  what both sides count
package rpc
