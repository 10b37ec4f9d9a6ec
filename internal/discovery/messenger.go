package discovery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-msgio"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

const (
	// requestTimeout bounds one question to one peer, the dial included. Whoever needs longer is not worth the wait: a walk asks many.
	requestTimeout = 10 * time.Second
	// announceTimeout bounds telling one peer of all the keys that it is to keep.
	announceTimeout = time.Minute
	// maxIdle streams are kept open per peer. A walk asks each peer once at a time, and seldom two walks meet at one.
	maxIdle = 2
	// idleFor is how long an idle stream is used again; kad-dht's servers end it after a minute.
	idleFor = 50 * time.Second
	// writeBuffer holds some 20 announcements.
	writeBuffer = 4096
)

// errNotStored: the peer took the announcement and does not know of it afterwards.
var errNotStored = errors.New("the peer did not keep the record")

// messenger sends DHT messages over pooled streams. kad-dht's own sends one at a time to each peer, tells nobody whether a record
// was kept, and hands addresses on as they come; this one lets several questions go to a peer at once, has announcements
// acknowledged, and keeps addresses on their network. It is safe for concurrent use.
type messenger struct {
	host     host.Host
	protocol protocol.ID

	mu   sync.Mutex
	idle map[peer.ID][]*line // the latest used last
}

// line is one open stream, used by one exchange at a time.
type line struct {
	network.Stream
	r      msgio.ReadCloser
	used   time.Time
	reused bool
}

func newMessenger(h host.Host, p protocol.ID) *messenger {
	return &messenger{host: h, protocol: p, idle: map[peer.ID][]*line{}}
}

// SendRequest asks a peer and returns its answer. Addresses in it that do not belong on the network between us are dropped.
func (m *messenger) SendRequest(ctx context.Context, p peer.ID, req *pb.Message) (*pb.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var reply *pb.Message
	err := m.exchange(ctx, p, func(l *line) error {
		start := time.Now()
		if err := writeMessages(l, req); err != nil {
			return err
		}
		var err error
		if reply, err = readMessage(l); err != nil {
			return err
		}
		m.host.Peerstore().RecordLatency(p, time.Since(start))
		reply.CloserPeers = reply.CloserPeers[:min(len(reply.CloserPeers), maxFound)]
		reply.ProviderPeers = reply.ProviderPeers[:min(len(reply.ProviderPeers), maxFound)]
		remote := l.Conn().RemoteMultiaddr()
		keepOnNetwork(reply.CloserPeers, remote)
		keepOnNetwork(reply.ProviderPeers, remote)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// SendMessage sends a message that has no answer.
func (m *messenger) SendMessage(ctx context.Context, p peer.ID, req *pb.Message) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return m.exchange(ctx, p, func(l *line) error { return writeMessages(l, req) })
}

// Announce tells a peer that this node provides the keys, and waits until it has them: a server handles the messages of a stream
// in order and ends the stream over one that it refuses, so when the last key can be read back, all were taken.
func (m *messenger) Announce(ctx context.Context, p peer.ID, keys []multihash.Multihash) error {
	ctx, cancel := context.WithTimeout(ctx, announceTimeout)
	defer cancel()
	self := m.host.ID()
	return m.exchange(ctx, p, func(l *line) error {
		addrs := onNetwork(m.host.Addrs(), l.Conn().RemoteMultiaddr())
		if len(addrs) == 0 {
			return fmt.Errorf("none of this node's addresses can be dialled from the network of %s", l.Conn().RemoteMultiaddr())
		}
		records := pb.RawPeerInfosToPBPeers([]peer.AddrInfo{{ID: self, Addrs: addrs}})
		messages := make([]*pb.Message, 0, len(keys)+1)
		for _, key := range keys {
			msg := pb.NewMessage(pb.Message_ADD_PROVIDER, key, 0)
			msg.ProviderPeers = records
			messages = append(messages, msg)
		}
		messages = append(messages, pb.NewMessage(pb.Message_GET_PROVIDERS, keys[len(keys)-1], 0))
		if err := writeMessages(l, messages...); err != nil {
			return err
		}
		reply, err := readMessage(l)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(reply.ProviderPeers, func(p *pb.Message_Peer) bool { return string(p.Id) == string(self) }) {
			return errNotStored
		}
		return nil
	})
}

// exchange runs fn on a stream to p. A stream out of the pool may have been ended by the other side meanwhile, so if it fails
// there, fn runs once more on a new one. When ctx ends, the stream is reset at once, whatever fn waits for.
func (m *messenger) exchange(ctx context.Context, p peer.ID, fn func(*line) error) error {
	for {
		l, err := m.take(ctx, p)
		if err != nil {
			return err
		}
		reused := l.reused
		stop := context.AfterFunc(ctx, func() { _ = l.Reset() })
		err = fn(l)
		switch {
		case !stop(): // ctx ended, and the reset runs or ran
			return errors.Join(context.Cause(ctx), err)
		case err == nil:
			m.put(p, l)
			return nil
		}
		_ = l.Reset()
		if !reused || errors.Is(err, errNotStored) {
			return err
		}
		m.drop(p) // the others are as old
	}
}

// take returns an idle stream to p, or opens one.
func (m *messenger) take(ctx context.Context, p peer.ID) (*line, error) {
	m.mu.Lock()
	lines := m.idle[p]
	for len(lines) > 0 {
		l := lines[len(lines)-1]
		lines = lines[:len(lines)-1]
		m.idle[p] = lines
		if time.Since(l.used) < idleFor {
			m.mu.Unlock()
			l.reused = true
			return l, nil
		}
		defer l.Reset() //nolint:errcheck // it is given up, outside the mutex
	}
	m.mu.Unlock()
	st, err := m.host.NewStream(ctx, p, m.protocol)
	if err != nil {
		return nil, err
	}
	return &line{Stream: st, r: msgio.NewVarintReaderSize(st, network.MessageSizeMax)}, nil
}

func (m *messenger) put(p peer.ID, l *line) {
	l.used = time.Now()
	m.mu.Lock()
	keep := len(m.idle[p]) < maxIdle && !l.Conn().IsClosed() // OnDisconnect, once it was there, does not come again
	if keep {
		m.idle[p] = append(m.idle[p], l)
	}
	m.mu.Unlock()
	if !keep {
		_ = l.Close()
	}
}

// drop gives up the idle streams to p.
func (m *messenger) drop(p peer.ID) {
	m.mu.Lock()
	lines := m.idle[p]
	delete(m.idle, p)
	m.mu.Unlock()
	for _, l := range lines {
		_ = l.Reset()
	}
}

// OnDisconnect forgets the streams of a connection that is gone.
func (m *messenger) OnDisconnect(_ context.Context, p peer.ID) { m.drop(p) }

// Close ends all idle streams.
func (m *messenger) Close() {
	m.mu.Lock()
	peers := make([]peer.ID, 0, len(m.idle))
	for p := range m.idle {
		peers = append(peers, p)
	}
	m.mu.Unlock()
	for _, p := range peers {
		m.drop(p)
	}
}

func writeMessages(l *line, messages ...*pb.Message) error {
	w := bufio.NewWriterSize(l, writeBuffer)
	for _, msg := range messages {
		if _, err := protodelim.MarshalTo(w, msg); err != nil {
			return err
		}
	}
	return w.Flush()
}

func readMessage(l *line) (*pb.Message, error) {
	data, err := l.r.ReadMsg()
	if err != nil {
		l.r.ReleaseMsg(data)
		return nil, err
	}
	defer l.r.ReleaseMsg(data)
	msg := new(pb.Message)
	return msg, proto.Unmarshal(data, msg)
}

// keepOnNetwork drops, from what the peer at remote told us of others, the addresses that make no sense here.
func keepOnNetwork(peers []*pb.Message_Peer, remote ma.Multiaddr) {
	for _, p := range peers {
		if p != nil {
			p.Addrs = slices.DeleteFunc(p.Addrs, func(b []byte) bool {
				a, err := ma.NewMultiaddrBytes(b)
				return err != nil || !belongs(a, remote)
			})
		}
	}
}

// onNetwork returns those of our addresses that the peer at remote may be told.
func onNetwork(addrs []ma.Multiaddr, remote ma.Multiaddr) []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return !belongs(a, remote) })
}

// belongs tells whether address a may pass between us and the peer at remote, as identify does it: everything on this machine,
// no loopback address on a private network, only public ones between public addresses. A private address that a public peer
// tells belongs to some other network; to dial it would knock on a stranger's door.
func belongs(a, remote ma.Multiaddr) bool {
	switch {
	case manet.IsIPLoopback(remote):
		return true
	case manet.IsPublicAddr(remote):
		return manet.IsPublicAddr(a)
	default:
		return !manet.IsIPLoopback(a)
	}
}
