package discovery

import (
	"context"
	"strings"
	"sync"

	"github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// memory is a datastore for nodes without a data directory. It finds the records of one key without looking at the others, which
// go-datastore's map does not: groups holds the last parts of the keys under everything before them. Safe for concurrent use.
type memory struct {
	mu     sync.RWMutex
	groups map[string]map[string][]byte
}

func newMemory() *memory { return &memory{groups: map[string]map[string][]byte{}} }

// cut splits a key at its last slash.
func cut(key datastore.Key) (group, part string) {
	s := key.String()
	i := strings.LastIndexByte(s, '/')
	return s[:i], s[i+1:]
}

func (m *memory) Get(_ context.Context, key datastore.Key) ([]byte, error) {
	group, part := cut(key)
	m.mu.RLock()
	defer m.mu.RUnlock()
	value, ok := m.groups[group][part]
	if !ok {
		return nil, datastore.ErrNotFound
	}
	return value, nil
}

func (m *memory) Has(ctx context.Context, key datastore.Key) (bool, error) {
	_, err := m.Get(ctx, key)
	return err == nil, nil
}

func (m *memory) GetSize(ctx context.Context, key datastore.Key) (int, error) {
	value, err := m.Get(ctx, key)
	return len(value), err
}

func (m *memory) Put(_ context.Context, key datastore.Key, value []byte) error {
	m.put(key, value)
	return nil
}

func (m *memory) put(key datastore.Key, value []byte) {
	group, part := cut(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.groups[group] == nil {
		m.groups[group] = map[string][]byte{}
	}
	m.groups[group][part] = value
}

func (m *memory) Delete(_ context.Context, key datastore.Key) error {
	group, part := cut(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.groups[group], part)
	if len(m.groups[group]) == 0 {
		delete(m.groups, group)
	}
	return nil
}

// Query answers from a copy, so that the store may change while the results are read.
func (m *memory) Query(_ context.Context, q query.Query) (query.Results, error) {
	prefix := strings.TrimSuffix(datastore.NewKey(q.Prefix).String(), "/")
	var entries []query.Entry
	add := func(group string) {
		for part, value := range m.groups[group] {
			entries = append(entries, query.Entry{Key: group + "/" + part, Value: value, Size: len(value)})
		}
	}
	m.mu.RLock()
	if _, ok := m.groups[prefix]; ok {
		add(prefix)
	}
	if strings.Count(prefix, "/") < 2 { // not the group of one key's records, but all of them
		for group := range m.groups {
			if strings.HasPrefix(group, prefix+"/") {
				add(group)
			}
		}
	}
	m.mu.RUnlock()
	q.Prefix = ""
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, entries)), nil
}

func (m *memory) Batch(context.Context) (datastore.Batch, error) {
	return datastore.NewBasicBatch(m), nil
}

func (*memory) Sync(context.Context, datastore.Key) error { return nil }
func (*memory) Close() error                              { return nil }
