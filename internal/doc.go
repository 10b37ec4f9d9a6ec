// Package internal is the map of the house: it holds no code, but the guard of its floors (arch_test.go).
//
// Packages stand on floors, and imports point to a lower floor, never sideways. What a package needs of one beside or above
// it, it states as a small interface of its own; node hands it whoever can.
//
//	floor  package     what is there
//	  -    proto       (in ../proto) messages of the stream protocol and of the Open Inference Protocol
//	  0    codec       floats to bytes and back: f32, bf16, f16, fp8, MXFP4
//	  0    kernel      products of packed weights, activation functions, the worker pool
//	  0    npy         NumPy's array files
//	  0    sdnotify    what systemd wants to hear of a service
//	  1    expert      the words all others use: ID, name, manifest, digest, Expert and its kinds, error sentinels
//	  2    checkpoint  safetensors read strictly, the layouts of the model families
//	  2    wire        frames in and out; the one table that maps statuses to sentinels and back
//	  2    registry    pure: who hosts what, health, breakers; Pick and Report
//	  2    api         the JSON documents of /api/v1 and --json, and a client for them
//	  3    p2p         the libp2p host: identity, transports, resource limits
//	  3    discovery   the DHT: announcing, resolving, the cache of peers seen
//	  3    rpc         /kwaai/expert/1.0.0, both sides
//	  3    serving     hosted experts: load, canary, queue, batch, admit, drain
//	  3    dispatch    one call from start to answer: ask the registry, call, retry, hedge, stop in time
//	  3    moe         plan.go pure (gate, top-k, grouping, combine), and what sends the groups
//	  3    averaging   plan.go pure (matchmaking, parts), and the rounds
//	  3    gateway     HTTP, gRPC, health, metrics, the status page
//	  4    config      default < file < environment < flags; gathers each part's own Config
//	  4    swarmtest   for tests only: hosts on loopback or in a simulated network
//	  5    node        the only package that knows everyone: build, Run, ordered stop
//	  6    demo        a whole swarm on this machine
//	  6    doctor      what operators get wrong, each with its remedy
//	  7    cmd         (in ../cmd) one file per command
//
// A package of this list may not be there yet; a package that is there has to be in the list, and in arch_test.go's floors.
package internal
