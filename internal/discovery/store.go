package discovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

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
//
// A write that fails, because the disk is full, ends LevelDB's log for as long as the database is open, and without its own records no
// expert of this node can be announced. So from then on records are kept in memory, those on disk among them.
type store struct {
	log  zerolog.Logger
	disk datastore.Batching // nil: in memory from the start
	at   atomic.Pointer[recordSet]
	move sync.Once
}

// recordSet is what a store keeps in one place, counted.
type recordSet struct {
	datastore.Batching
	self string // our own records, which are bounded by what we host

	mu      sync.Mutex
	perPeer map[string]int // records by the peer's part of the key
	total   int
	refused int
}

// openStore opens the store in a data directory, or in memory where dir is empty.
func openStore(dir string, self peer.ID, log zerolog.Logger) (*store, error) {
	s := &store{log: log}
	if dir == "" {
		s.at.Store(newRecordSet(newMemory(), peerPart(self)))
		return s, nil
	}
	db, err := openLevelDB(filepath.Join(dir, "dht"), log)
	if err != nil {
		return nil, fmt.Errorf("DHT records: %w", err)
	}
	s.disk = db
	r := newRecordSet(db, peerPart(self))
	if err := r.count(context.Background()); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.at.Store(r)
	return s, nil
}

func newRecordSet(b datastore.Batching, self string) *recordSet {
	return &recordSet{Batching: b, self: self, perPeer: map[string]int{}}
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
func (r *recordSet) count(ctx context.Context) error {
	return r.each(ctx, query.Query{KeysOnly: true}, func(e query.Entry) {
		r.perPeer[partOf(datastore.RawKey(e.Key))]++
		r.total++
	})
}

func (r *recordSet) each(ctx context.Context, q query.Query, do func(query.Entry)) error {
	results, err := r.Query(ctx, q)
	if err != nil {
		return fmt.Errorf("DHT records: %w", err)
	}
	defer results.Close() //nolint:errcheck // read to its end
	for e := range results.Next() {
		if e.Error != nil {
			return fmt.Errorf("DHT records: %w", e.Error)
		}
		do(e.Entry)
	}
	return nil
}

// full tells whether a peer has as many records here as it may.
func (s *store) full(p peer.ID) bool {
	r := s.at.Load()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over(peerPart(p))
}

// over is called with mu held.
func (r *recordSet) over(part string) bool {
	return part != r.self && (r.perPeer[part] >= maxRecordsPerPeer || r.total >= maxRecords)
}

// reserve counts a new record, if there is room for it.
func (r *recordSet) reserve(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over(part) {
		r.refused++
		return false
	}
	r.perPeer[part]++
	r.total++
	return true
}

func (r *recordSet) release(parts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, part := range parts {
		r.total--
		if r.perPeer[part]--; r.perPeer[part] <= 0 {
			delete(r.perPeer, part)
		}
	}
}

// apply makes all changes or none. A record over a bound is left out.
func (r *recordSet) apply(ctx context.Context, changes []change) error {
	var added, removed []string
	err := func() error {
		b, err := r.Batch(ctx)
		if err != nil {
			return err
		}
		for _, c := range changes {
			known, err := r.Has(ctx, c.key)
			switch part := partOf(c.key); {
			case err != nil:
			case c.gone:
				if known {
					removed = append(removed, part)
				}
				err = b.Delete(ctx, c.key)
			case known:
				err = b.Put(ctx, c.key, c.value)
			case r.reserve(part):
				added = append(added, part)
				err = b.Put(ctx, c.key, c.value)
			}
			if err != nil {
				return err
			}
		}
		return b.Commit(ctx)
	}()
	if err != nil {
		r.release(added)
		return err
	}
	r.release(removed)
	return nil
}

// apply makes changes where the records are, and if that is a disk that takes none, in memory.
func (s *store) apply(ctx context.Context, changes []change) error {
	r := s.at.Load()
	err := r.apply(ctx, changes)
	if err == nil || r.Batching != s.disk || ctx.Err() != nil {
		return err
	}
	s.move.Do(func() { s.at.Store(s.inMemory(context.WithoutCancel(ctx), r, err)) }) // for all, whoever was first
	return s.at.Load().apply(ctx, changes)
}

// inMemory copies what can be read of records that cannot be written because of err.
func (s *store) inMemory(ctx context.Context, r *recordSet, err error) *recordSet {
	s.log.Error().Err(err).Msg("DHT records cannot be written, keeping them in memory until the next start: is the disk full? see kwaaid doctor")
	m := newMemory()
	if err := r.each(ctx, query.Query{}, func(e query.Entry) { m.put(datastore.RawKey(e.Key), e.Value) }); err != nil {
		s.log.Warn().Err(err).Msg("DHT records cannot be read either, waiting for others to announce again")
	}
	copied := newRecordSet(m, r.self)
	if err := copied.count(ctx); err != nil {
		s.log.Warn().Err(err).Msg("DHT records cannot be counted")
	}
	return copied
}

// Get is datastore's, like the others below.
func (s *store) Get(ctx context.Context, key datastore.Key) ([]byte, error) {
	return s.at.Load().Get(ctx, key)
}

// Has tells whether there is such a record.
func (s *store) Has(ctx context.Context, key datastore.Key) (bool, error) {
	return s.at.Load().Has(ctx, key)
}

// GetSize returns the length of a record.
func (s *store) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	return s.at.Load().GetSize(ctx, key)
}

// Query finds records.
func (s *store) Query(ctx context.Context, q query.Query) (query.Results, error) {
	return s.at.Load().Query(ctx, q)
}

// Sync waits until records are on disk.
func (s *store) Sync(ctx context.Context, prefix datastore.Key) error {
	return s.at.Load().Sync(ctx, prefix)
}

// Close lets go of the disk.
func (s *store) Close() error {
	if s.disk == nil {
		return nil
	}
	return s.disk.Close()
}

// Put stores a record unless it is over a bound.
func (s *store) Put(ctx context.Context, key datastore.Key, value []byte) error {
	return s.apply(ctx, []change{{key: key, value: value}})
}

// Delete removes a record.
func (s *store) Delete(ctx context.Context, key datastore.Key) error {
	return s.apply(ctx, []change{{key: key, gone: true}})
}

// Batch collects changes; counts follow when they are committed. A batch names a key once, as kad-dht's do.
func (s *store) Batch(context.Context) (datastore.Batch, error) { return &batch{store: s}, nil }

// change is a record to store, or one to remove.
type change struct {
	key   datastore.Key
	value []byte
	gone  bool
}

type batch struct {
	store   *store
	changes []change
}

func (b *batch) Put(_ context.Context, key datastore.Key, value []byte) error {
	b.changes = append(b.changes, change{key: key, value: value})
	return nil
}

func (b *batch) Delete(_ context.Context, key datastore.Key) error {
	b.changes = append(b.changes, change{key: key, gone: true})
	return nil
}

func (b *batch) Commit(ctx context.Context) error {
	changes := b.changes
	b.changes = nil
	return b.store.apply(ctx, changes)
}

// partOf returns the last part of a record's key, which names the provider.
func partOf(key datastore.Key) string {
	s := key.String()
	return s[strings.LastIndexByte(s, '/')+1:]
}

// peerPart writes a peer as kad-dht does at the end of a record's key.
func peerPart(p peer.ID) string { return base32.RawStdEncoding.EncodeToString([]byte(p)) }
