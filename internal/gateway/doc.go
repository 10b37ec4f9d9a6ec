// Package gateway is a node's face to everyone who is no peer: HTTP, gRPC, health, metrics and the status page. It asks the node and
// its inference through the interfaces Inference and Node.
//
//	config.go     where it listens, who may talk to it
//	gateway.go    Open, Run; the interfaces
//	listener.go   connections: how many, and which bring noise
//	http.go       the HTTP server: one way in and out for every request
//	guard.go      Host, Origin, token
//	routes.go     which path is what
//	documents.go  health, metrics and the documents of /api/v1
//	call.go       POST /api/v1/call/NAME
//	bench.go      POST /api/v1/bench
//	events.go     progress of what takes long, as a stream
//	body.go       requests' bodies within limits
//	json.go       JSON's numbers to floats and back
//	grpc.go       the gRPC server, health, reflection
//	oip_model.go  the Open Inference Protocol: what a model is
//	oip_expert.go, oip_layer.go  how a single expert and a MoE layer are one
//	oip_http.go   its HTTP face: paths, bodies with binary tensors
//	oip_json.go   its JSON
//	oip_grpc.go   its gRPC face
//	oip_tensor.go, oip_params.go  tensors and parameters of both
//	page.go       the status page, from page/
//	errors.go     failures to HTTP's and gRPC's statuses
//	metrics.go    what is counted
package gateway
