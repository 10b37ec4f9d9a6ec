package p2p

import (
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Delays between the dials to one peer. When all dials under way have failed, libp2p starts the next at once, so these are
// paid only where an address swallows packets.
const (
	// nextFamilyDelay is RFC 8305's: the second of two addresses waits about one round trip for the first.
	nextFamilyDelay = 250 * time.Millisecond
	// quicDelay: a TCP and TLS handshake half around the world takes 0.7 s; QUIC is for when TCP does not get through.
	quicDelay = time.Second
	// relayDelay: whoever can be dialled directly is not talked to through a relay.
	relayDelay = 2 * time.Second
)

// rankDials orders the addresses of one peer: TCP, then QUIC, then relays. libp2p's own ranker prefers QUIC, which tells that a
// peer was killed only after 5 to 30 s, where TCP says so at once and moves 2.3 times the bytes on loopback (design.md, Liveness).
// Hole punching does not come here: libp2p dials without delays then.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var tcp, quic, relay []ma.Multiaddr
	for _, a := range addrs {
		switch {
		case isRelay(a):
			relay = append(relay, a)
		case isTCP(a):
			tcp = append(tcp, a)
		default:
			quic = append(quic, a)
		}
	}
	ranked := make([]network.AddrDelay, 0, len(addrs))
	var start time.Duration
	for _, group := range []struct {
		addrs []ma.Multiaddr
		delay time.Duration // after the first dial of all, if there was an earlier group
	}{{tcp, 0}, {quic, quicDelay}, {relay, relayDelay}} {
		if len(ranked) > 0 {
			start = group.delay
		}
		ranked = appendGroup(ranked, group.addrs, start)
	}
	return ranked
}

// appendGroup ranks addresses of one transport: near ones (loopback, private) at once, of the public ones the first at once and
// the others a little later.
func appendGroup(ranked []network.AddrDelay, addrs []ma.Multiaddr, start time.Duration) []network.AddrDelay {
	first := true
	for _, a := range addrs {
		delay := start
		if manet.IsPublicAddr(a) {
			if !first {
				delay += nextFamilyDelay
			}
			first = false
		}
		ranked = append(ranked, network.AddrDelay{Addr: a, Delay: delay})
	}
	return ranked
}

func isTCP(a ma.Multiaddr) bool   { return hasProtocol(a, ma.P_TCP) }
func isQUIC(a ma.Multiaddr) bool  { return hasProtocol(a, ma.P_QUIC_V1) }
func isRelay(a ma.Multiaddr) bool { return hasProtocol(a, ma.P_CIRCUIT) }

func hasProtocol(a ma.Multiaddr, code int) bool {
	found := false
	ma.ForEach(a, func(c ma.Component) bool {
		found = c.Protocol().Code == code
		return !found
	})
	return found
}
