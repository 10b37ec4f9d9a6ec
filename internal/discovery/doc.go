// Package discovery finds out who hosts which expert, and says what this node hosts: provider records in a Kademlia DHT of the
// swarm's own, announced again and again, looked up through a cache.
//
//	config.go    what an operator can set, with defaults and checks
//	service.go   New, Run, Close: the parts put together
//	key.go       the DHT's prefix and an expert's key
//	find.go      Find, Walk and Known: answers from the cache and from walks
//	walk.go      walks of the DHT, one per expert at a time
//	cache.go     providers found, with their age (pure)
//	announce.go  which experts are announced, and when
//	sweep.go     a round of announcing: keys grouped by region (pure), each group sent to its peers
//	messenger.go DHT messages: pooled streams, acknowledged announcements, addresses kept on their network
//	bootstrap.go joining: bootstrap peers, with backoff
//	peercache.go peers seen, remembered on disk
//	mode.go      DHT server or client
//	store.go     records kept for others, bounded per peer, on disk or in memory (memory.go)
//	status.go    what the service knows about itself
//	metrics.go   Prometheus metrics
package discovery
