package rpc

import (
	"context"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Handler decides and runs. Its methods are called by many exchanges at once.
type Handler interface {
	// Admit decides the fate of every pair before the payload is read: it is cheap, does no I/O and does not block. The pairs' rows
	// are within the batch. It keeps no reference to pairs after the Admission's Release.
	Admit(rows, hidden int, pairs []expert.Pair) Admission
	// Describe says what this host has.
	Describe() expert.Description
	// Load says how busy this host is; it is asked for every reply.
	Load() expert.Load
}

// Admission is what a Handler promised to one request. Its methods are called one after the other.
type Admission interface {
	// Refused holds an error for each pair that is not admitted and nil for the others; a nil slice admits all. The errors match
	// status sentinels.
	Refused() []error
	// Run computes the admitted pairs and returns one result for each pair, also for the refused ones. It ends early when ctx ends:
	// at the caller's deadline, or when the caller is gone. x [rows, hidden] is float32, row-major; it may be changed by nobody, an
	// output may be x itself. When Run has returned, nothing may use x any more but its results.
	Run(ctx context.Context, x *tensor.Dense) []expert.Result
	// Release gives back what Admit reserved. It is called exactly once, on every path, when the results are no longer used.
	Release()
}
