// Package moe routes the rows of a MoE layer to experts and puts the layer's output together.
//
//	rule.go      Rule, a family's way of choosing and weighing experts, as data
//	families.go  the rules of all families, read from config.json
//	plan.go      Gate: choice and weights for rows
//	group.go     rows by expert, their sum, and what is left of it when an expert is missing
//	balance.go   the load-balancing loss
//	exp.go       the functions under it, the same bits on every machine
//	shape.go     rows and sequences of 1-D, 2-D and 3-D input
//	logits.go    the gate's products with rows, on all CPUs
//	load.go      a gate out of a checkpoint
//	exec.go      Layer: a call, with the experts wherever they are
//	metrics.go   what is counted
//
// All but the last four are pure: no goroutines, no clock, no I/O.
package moe
