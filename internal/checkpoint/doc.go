// Package checkpoint reads experts and routers out of Hugging Face directories and single safetensors files.
//
// Families are recognised by their tensors: layout.go is a table of the ways in which experts are stored, and a new way is an
// entry there. Only the bytes of the experts that are asked for are read; they are hashed and packed in that one pass, so that
// files which change or go away later harm nobody. Files come from strangers: nothing in them is believed before it is checked
// against the file's size, and every error names file, tensor, what was expected and what was found.
//
//	header.go      the safetensors header, strictly
//	file.go        an open safetensors file
//	hashes.go      hashes of slices, remembered between runs
//	config.go      config.json, with the text model's section where there is one
//	activation.go  what config.json says of activations and float8 blocks
//	source.go      tensors by name over one file or the shards of an index
//	layout.go      the layouts, as data
//	sizes.go       shapes against the axes that a layout names
//	network.go     one feed-forward network in a layout: where its parts lie, what sizes they have
//	load.go        reading, hashing and packing one network
//	dtype.go       the number formats' names
//	checkpoint.go  Open: which blocks of a directory are MoE layers
//	layer.go       Layer: its experts, router and shared expert
//	select.go      choosing experts by layer and index
//	single.go      an expert in a file of its own
//
// Files and golden values for tests come from checkpointtest.
package checkpoint
