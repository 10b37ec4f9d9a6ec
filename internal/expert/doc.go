// Package expert holds the words that all other packages use: what an expert is called, what it is, what it computes
// and how a call to it can fail.
//
//	id.go      ID, `expert-42`
//	name.go    names of a checkpoint's experts and layers, and the IDs that follow from them
//	expert.go  the Expert interface, and what hosts and callers say about experts
//	errors.go  the statuses of a call, as sentinels, and the errors that carry who and what
package expert
