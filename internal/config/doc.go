// Package config is the one place where a node's configuration is read: default < file < environment < flags.
//
//	config.go    Config, section by section, each key with what it does; Default
//	expert.go    the experts' entries, in the file and as `--expert` SPEC
//	values.go    sizes, references to experts, selections of layers and experts
//	load.go      Load: the four layers, one over the other
//	decode.go    YAML nodes into Go values: strict, every value with the line that it came from
//	validate.go  what cannot work, all of it at once
//	parts.go     what each part of the node is told
//	document.go  the commented file that `kwaaid config default` prints
//	problem.go   Problem: which key, which line, what is wrong
//
// The types here are what an operator writes. A key joins the schema as a field with the tags `yaml` (its name) and `doc`
// (its comment in the default file); reading it from file, environment and flags, its line in errors, and its place in
// configs/kwaaid.yaml follow from the field. What would not work belongs into validate.go, with a file in testdata that
// has it wrong.
package config
