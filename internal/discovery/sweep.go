package discovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	kb "github.com/libp2p/go-libp2p-kbucket"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"golang.org/x/sync/errgroup"

	"github.com/kwaai/kwaaid/internal/expert"
)

// kad-dht's provider package groups keys by region too. It is made for IPFS: a schedule of its own over hours, in a datastore, no
// acknowledgements, and nobody is told what came of a round. What is below is all that we need of it.

const (
	// replicas is how many peers keep a record: Kademlia's k, kad-dht's default bucket.
	replicas = 20
	// minRegion is how many of the peers found have to lie in a region before its keys share them. A walk ends when the 3 peers
	// nearest to a key have answered, so 8 leave room for some that are gone.
	minRegion = 8
	// sweepers work on parts of the key space side by side: with a second for a look-up and one to tell 20 peers, 6,144 keys in a
	// swarm of 10,000 (some 800 regions) take 4 minutes, under the 10 between two rounds.
	sweepers = 8
	// keysPerSweeper is worth a sweeper of its own.
	keysPerSweeper = 32
	// maxTelling is how many peers are told at once, by all sweepers together.
	maxTelling = 64
)

// record is one expert to announce, with the places of its key: hash is what the DHT is asked, where its point in the key space.
type record struct {
	id    expert.ID
	hash  multihash.Multihash
	where kb.ID
}

// sortedRecords returns the records in the order of the key space, so that neighbours have most peers in common.
func sortedRecords(ids []expert.ID) []record {
	records := make([]record, len(ids))
	for i, id := range ids {
		hash := Key(id).Hash()
		records[i] = record{id: id, hash: hash, where: kb.ConvertKey(string(hash))}
	}
	slices.SortFunc(records, func(a, b record) int { return bytes.Compare(a.where, b.where) })
	return records
}

// covered returns how many of the leading records (sorted) belong to the peers that were found nearest to the first one. All peers
// in the subtree around the first key that excludes the farthest of those found are among them. So a key in that subtree has them
// as its nearest as well, and where the subtree has minRegion peers or more, the others found will do for the rest of its replicas.
// Fewer than replicas peers are all that there are: they get every key.
func covered(records []record, found []peer.ID) int {
	if len(found) < replicas {
		return len(records)
	}
	first := records[0].where
	shared := make([]int, len(found)) // leading bits in common with the first key
	for i, p := range found {
		shared[i] = kb.CommonPrefixLen(first, kb.ConvertPeerID(p))
	}
	farthest := slices.Min(shared)
	inside := 0
	for _, n := range shared {
		if n > farthest {
			inside++
		}
	}
	n := 1
	for inside >= minRegion && n < len(records) && kb.CommonPrefixLen(first, records[n].where) > farthest {
		n++
	}
	return n
}

// sweep announces experts to the peers nearest to their keys and returns those that at least one peer acknowledged. When there is
// nobody else, our own store is all that can know, and every expert counts as announced: whoever comes asks us.
func (s *Service) sweep(ctx context.Context, ids []expert.ID) (done map[expert.ID]bool, err error) {
	records := sortedRecords(ids)
	done = make(map[expert.ID]bool, len(ids))
	for _, r := range records {
		if err := s.dht.ProviderStore().AddProvider(ctx, r.hash, peer.AddrInfo{ID: s.host.ID()}); err != nil {
			return done, fmt.Errorf("own DHT store: %w", err)
		}
	}
	if s.alone() {
		for _, r := range records {
			done[r.id] = true
		}
		return done, nil
	}

	var mu sync.Mutex
	var first error // of the regions that failed
	telling := make(chan struct{}, maxTelling)
	var group errgroup.Group
	for part := range slices.Chunk(records, max(keysPerSweeper, (len(records)+sweepers-1)/sweepers)) {
		group.Go(func() error {
			for len(part) > 0 && ctx.Err() == nil {
				peers, err := s.dht.GetClosestPeers(ctx, string(part[0].hash))
				n := 1
				if err == nil {
					n = covered(part, peers)
					err = s.tell(ctx, peers, part[:n], telling)
				}
				mu.Lock()
				if err == nil {
					for _, r := range part[:n] {
						done[r.id] = true
					}
				} else if first == nil {
					first = err
				}
				mu.Unlock()
				part = part[n:]
			}
			return nil
		})
	}
	_ = group.Wait() // the parts never fail as such
	if ctx.Err() != nil {
		return done, context.Cause(ctx)
	}
	return done, first
}

// tell sends records to peers, all at once, and is content when one of them acknowledges.
func (s *Service) tell(ctx context.Context, peers []peer.ID, records []record, telling chan struct{}) error {
	keys := make([]multihash.Multihash, len(records))
	for i, r := range records {
		keys[i] = r.hash
	}
	errs := make([]error, len(peers))
	var wg sync.WaitGroup
	for i, p := range peers {
		select {
		case telling <- struct{}{}:
		case <-ctx.Done():
			errs[i] = context.Cause(ctx)
			continue
		}
		wg.Go(func() {
			defer func() { <-telling }()
			errs[i] = s.messages.Announce(ctx, p, keys)
			s.metrics.sent(errs[i])
			if errs[i] != nil {
				s.log.Debug().Err(errs[i]).Stringer("peer", p).Int("records", len(keys)).Msg("peer did not take the records")
			}
		})
	}
	wg.Wait()
	if i := slices.Index(errs, nil); i >= 0 {
		return nil
	}
	if len(errs) == 0 {
		return errors.New("no peer of the DHT could be found")
	}
	return fmt.Errorf("none of %d peers took the records: %w", len(peers), errs[0])
}
