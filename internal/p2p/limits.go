package p2p

import (
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/x/rate"
)

// Protocol is one of our own protocols, for the scopes of the resource manager.
type Protocol struct {
	ID      protocol.ID
	Service string // what its handler passes to SetService
}

const (
	// memory is how many bytes connections, streams and exchanges together may reserve, a peer half of them.
	memory = 1 << 30
	// graceConns is how far connections may pass the connection manager's mark while it trims: it does so every 10 s, and new
	// ones have a minute of grace.
	graceConns = 128
	// connsPerPeer: two peers that dial each other at once over TCP and QUIC make four, a reconnect doubles that.
	connsPerPeer = 8
	// housekeeping is the streams each way that a peer needs beside our protocols: DHT, identify, ping.
	housekeeping = 32
	// windowBytes is what yamux lets one stream's receive window grow to, accounted.
	windowBytes = 16 << 20
	// connGrace is how long a new connection is safe from trimming.
	connGrace = time.Minute
	// connsPerIP: an office or a rack of nodes behind one address. libp2p's default of 8 keeps most of them out.
	connsPerIP = 64
)

// connectionManager trims down to seven eighths of what is allowed, so that it does not trim for each new connection.
func connectionManager(l Limits) (*connmgr.BasicConnMgr, error) {
	return connmgr.NewConnManager(l.Connections-l.Connections/8, l.Connections, connmgr.WithGracePeriod(connGrace))
}

// resourceManager sets every scope that our traffic goes through, on top of libp2p's limits for its own services (identify, ping,
// relays), scaled to the same memory. In a limit for a protocol or service of ours, a field left out would block all.
func resourceManager(l Limits, protocols []Protocol) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)

	conns := l.Connections + graceConns
	perPeer := l.StreamsPerPeer + housekeeping
	stream := int64(windowBytes)
	if len(protocols) > 0 {
		stream = memory
	}
	limits := rcmgr.PartialLimitConfig{
		System: limit(conns*perPeer, conns, memory),
		// Connections and streams whose peer or protocol is not known yet: a sixteenth of everything, for a crowd that knocks at once.
		Transient: limit(max(256, conns*perPeer/16), max(64, conns/4), max(32<<20, memory/16)),
		// The DHT, and whatever has no limits of its own. kad-dht reads its messages without reserving memory.
		ProtocolDefault:     limit(conns*4, 0, memory/4),
		ProtocolPeerDefault: limit(housekeeping, 0, memory/16),
		ServiceDefault:      limit(conns*4, 0, memory/4),
		ServicePeerDefault:  limit(housekeeping, 0, memory/16),
		PeerDefault:         limit(perPeer*max(1, len(protocols)), connsPerPeer, memory/2),
		Conn:                limit(0, 1, memory/2),
		Stream:              limit(1, 0, stream),
		Protocol:            map[protocol.ID]rcmgr.ResourceLimits{},
		ProtocolPeer:        map[protocol.ID]rcmgr.ResourceLimits{},
		Service:             map[string]rcmgr.ResourceLimits{},
		ServicePeer:         map[string]rcmgr.ResourceLimits{},
	}
	for _, p := range protocols {
		all := limit(conns*l.StreamsPerPeer, 0, memory)
		one := limit(l.StreamsPerPeer, 0, memory/2)
		limits.Protocol[p.ID], limits.ProtocolPeer[p.ID] = all, one
		limits.Service[p.Service], limits.ServicePeer[p.Service] = all, one
	}

	opts := []rcmgr.Option{
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: connsPerIP}, {PrefixLength: 48, ConnCount: 4 * connsPerIP}}),
		rcmgr.WithConnRateLimiters(connRates()),
		// Its metrics are fed by a trace that formats the time at every reservation: a sixth of what an exchange costs.
		rcmgr.WithMetricsDisabled(),
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(scaling.Scale(memory, conns))), opts...)
}

// limit sets all fields of a scope: streams each way (and twice as many together), connections, memory in bytes. 0 streams or
// connections means that the scope never holds any.
func limit(streams, conns int, memory int64) rcmgr.ResourceLimits {
	or := func(n int) rcmgr.LimitVal {
		if n == 0 {
			return rcmgr.BlockAllLimit
		}
		return rcmgr.LimitVal(n)
	}
	return rcmgr.ResourceLimits{
		Streams: or(2 * streams), StreamsInbound: or(streams), StreamsOutbound: or(streams),
		Conns: or(conns), ConnsInbound: or(conns), ConnsOutbound: or(conns),
		FD:     or(conns), // one per TCP connection
		Memory: rcmgr.LimitVal64(memory),
	}
}

// connRates bounds new connections per public address. libp2p's own (16 at once, then one in 5 s) would lock out a rack of nodes
// behind one address for minutes when it restarts. Private networks and addresses that are not IP (relays) are not limited here.
func connRates() *rate.Limiter {
	perSubnet := rate.Limit{RPS: 4, Burst: 2 * connsPerIP}
	l := &rate.Limiter{
		SubnetRateLimiter: rate.SubnetLimiter{
			IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: perSubnet}},
			IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: perSubnet}},
			GracePeriod:      time.Minute,
		},
	}
	for _, prefix := range []string{"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10"} {
		l.NetworkPrefixLimits = append(l.NetworkPrefixLimits, rate.PrefixLimit{Prefix: netip.MustParsePrefix(prefix)})
	}
	return l
}
