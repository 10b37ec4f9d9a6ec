// Package expert holds the words that all other packages use: what an expert is called, what it is, what it computes
// and how a call to it can fail.
//
//	id.go      ID, `expert-42`
//	name.go    names of a checkpoint's experts and layers, and the IDs that follow from them
//	expert.go  the Expert interface, and what hosts and callers say about experts
//	errors.go  the statuses of a call, as sentinels, and the errors that carry who and what
//	sum.go     outputs that a host has added up
//	finite.go  NaN and Inf among rows
//
// The kinds of expert, on package kernel:
//
//	function.go  Function, all that an expert computes but for its weights
//	manifest.go  Manifest, function and hashes of the weights, whose SHA-256 is the digest
//	params.go    Params, the keys with which an operator describes a single expert
//	new.go       experts that need no file
//	draw.go      the generator of drawn weights, the same bytes everywhere
//	rows.go      tensors where they enter and leave
//	identity.go  kind identity
//	ffn.go       kinds mlp and glu
//	norm.go      the mlp's LayerNorm
package expert
