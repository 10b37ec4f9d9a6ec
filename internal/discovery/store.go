package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	leveldb "github.com/ipfs/go-ds-leveldb"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-base32"
	"github.com/rs/zerolog"
	"github.com/syndtr/goleveldb/leveldb/filter"
	"github.com/syndtr/goleveldb/leveldb/opt"
)

const (
	// maxRecordsPerPeer: a host with two models of 48 layers of 128 experts has 12,288.
	maxRecordsPerPeer = 16384
	// maxRecords of about 130 bytes take some 35 MB on disk.
	maxRecords = 1 << 18
)

// store keeps the provider records that others asked this node to keep, on disk or in memory. It bounds them per peer and in all: a record
// over a bound is not stored. kad-dht buffers up to 320 records above it, so bounds are exact but for those.
type store struct {
	datastore.Batching
	self string // our own records, which are bounded by what we host

	mu      sync.Mutex
	perPeer map[string]int // records by the peer's part of the key
	total   int
	refused int
}

// openStore opens the store in a data directory, or in memory where dir is empty.
func openStore(dir string, self peer.ID, log zerolog.Logger) (*store, error) {
	s := &store{Batching: newMemory(), self: peerPart(self), perPeer: map[string]int{}}
	if dir == "" {
		return s, nil
	}
	db, err := openLevelDB(filepath.Join(dir, "dht"), log)
	if err != nil {
		return nil, fmt.Errorf("DHT records: %w", err)
	}
	s.Batching = db
	if err := s.count(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// openLevelDB opens a database, or begins it anew when it is damaged beyond LevelDB's own repair: every record in it is announced
// again within minutes. It is kept small, as a DHT server's records are few, and its writes need not survive a power cut.
func openLevelDB(path string, log zerolog.Logger) (*leveldb.Datastore, error) {
	options := &leveldb.Options{
		WriteBuffer: 1 * opt.MiB, BlockCacheCapacity: 1 * opt.MiB, OpenFilesCacheCapacity: 32,
		Filter: filter.NewBloomFilter(10), NoSync: true,
	}
	db, err := leveldb.NewDatastore(path, options)
	if err == nil {
		return db, nil
	}
	log.Warn().Err(err).Str("path", path).Msg("stored DHT records cannot be read, beginning anew")
	if err := os.RemoveAll(path); err != nil {
		return nil, err
	}
	return leveldb.NewDatastore(path, options)
}

// count takes stock of what is on disk.
func (s *store) count() error {
	results, err := s.Query(context.Background(), query.Query{KeysOnly: true})
	if err != nil {
		return fmt.Errorf("DHT records: %w", err)
	}
	defer results.Close() //nolint:errcheck // read to its end
	for r := range results.Next() {
		if r.Error != nil {
			return fmt.Errorf("DHT records: %w", r.Error)
		}
		s.perPeer[partOf(datastore.RawKey(r.Key))]++
		s.total++
	}
	return nil
}

// full tells whether a peer has as many records here as it may.
func (s *store) full(p peer.ID) bool {
	part := peerPart(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	return part != s.self && (s.perPeer[part] >= maxRecordsPerPeer || s.total >= maxRecords)
}

// reserve counts a new record, if there is room for it.
func (s *store) reserve(part string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if part != s.self && (s.perPeer[part] >= maxRecordsPerPeer || s.total >= maxRecords) {
		s.refused++
		return false
	}
	s.perPeer[part]++
	s.total++
	return true
}

func (s *store) release(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.perPeer[part]--; s.perPeer[part] <= 0 {
		delete(s.perPeer, part)
	}
}

// Put stores a record unless it is over a bound.
func (s *store) Put(ctx context.Context, key datastore.Key, value []byte) error {
	b, err := s.Batch(ctx)
	if err != nil {
		return err
	}
	if err := b.Put(ctx, key, value); err != nil {
		return err
	}
	return b.Commit(ctx)
}

// Delete removes a record.
func (s *store) Delete(ctx context.Context, key datastore.Key) error {
	b, err := s.Batch(ctx)
	if err != nil {
		return err
	}
	if err := b.Delete(ctx, key); err != nil {
		return err
	}
	return b.Commit(ctx)
}

// Batch collects changes; counts follow when they are committed. A batch names a key once, as kad-dht's do.
func (s *store) Batch(ctx context.Context) (datastore.Batch, error) {
	b, err := s.Batching.Batch(ctx)
	if err != nil {
		return nil, err
	}
	return &batch{Batch: b, store: s}, nil
}

type batch struct {
	datastore.Batch
	store          *store
	added, removed []string // peers' parts of the keys
}

func (b *batch) Put(ctx context.Context, key datastore.Key, value []byte) error {
	known, err := b.store.Has(ctx, key)
	if err != nil {
		return err
	}
	if !known {
		if !b.store.reserve(partOf(key)) {
			return nil
		}
		b.added = append(b.added, partOf(key))
	}
	return b.Batch.Put(ctx, key, value)
}

func (b *batch) Delete(ctx context.Context, key datastore.Key) error {
	known, err := b.store.Has(ctx, key)
	if err != nil {
		return err
	}
	if known {
		b.removed = append(b.removed, partOf(key))
	}
	return b.Batch.Delete(ctx, key)
}

func (b *batch) Commit(ctx context.Context) error {
	err := b.Batch.Commit(ctx)
	gone := b.removed
	if err != nil {
		gone = b.added
	}
	for _, part := range gone {
		b.store.release(part)
	}
	b.added, b.removed = nil, nil
	return err
}

// partOf returns the last part of a record's key, which names the provider.
func partOf(key datastore.Key) string {
	s := key.String()
	return s[strings.LastIndexByte(s, '/')+1:]
}

// peerPart writes a peer as kad-dht does at the end of a record's key.
func peerPart(p peer.ID) string { return base32.RawStdEncoding.EncodeToString([]byte(p)) }
