// Package registry knows who hosts what and how well each host does, and chooses whom to ask. It is pure policy: it holds no clock,
// no dice and no I/O. Time and dice are passed in, so that a script can test every decision and a log can replay it.
//
//	limits.go    what bounds the table
//	table.go     Table: the experts known and their providers, the peers known, and what is forgotten when they are too many
//	digest.go    which weights a call means
//	fallback.go  who stands in for whom
//	pick.go      Pick: power of two choices on the expected wait
//	wait.go      the expected wait of a provider
//	report.go    Report: what an outcome teaches
//	events.go    what is learned without a call: connections, pings, good-byes, convictions
//	breaker.go   closed, open, half-open with one probe
//	estimate.go  smoothed durations, success with a half-life, the p95 of an expert by rows
//	view.go      what people get to see
//
// Every Pick is answered by exactly one Report.
package registry
