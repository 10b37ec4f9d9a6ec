package p2p

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// What others learn of our addresses. Loopback ones are announced only when every listen address is one. Private ones have to be
// among the host's addresses, since libp2p asks for one list, whoever is told; that they stay on their network is seen to where
// the other side is known:
//
//   - identify on the receiving side drops private addresses that come over a public connection (libp2p does that);
//   - discovery tells a public peer only public ones when it announces, and drops private addresses from what a public peer says.
//
// So a private address learnt from a public peer never gets into the peerstore, and is not dialled.

// announced returns the addresses factory for the configured addresses; announce replaces all that libp2p finds.
func announced(listen, announce []ma.Multiaddr) func([]ma.Multiaddr) []ma.Multiaddr {
	loopback := allLoopback(listen)
	return func(found []ma.Multiaddr) []ma.Multiaddr {
		switch {
		case len(announce) > 0:
			return slices.Clone(announce)
		case loopback:
			return found
		default:
			return slices.DeleteFunc(slices.Clone(found), manet.IsIPLoopback)
		}
	}
}

func allLoopback(addrs []ma.Multiaddr) bool {
	return len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) })
}

// Reachability tells whether others can dial this node, as far as is known: AutoNAT's finding if there is one; public when the
// operator announces a public address, or somebody has dialled this node directly from one; private when it listens nowhere or
// on loopback only.
func (h *Host) Reachability() network.Reachability {
	if r := network.Reachability(h.autonat.Load()); r != network.ReachabilityUnknown {
		return r
	}
	switch {
	case len(h.listen) == 0 || h.loopback:
		return network.ReachabilityPrivate
	case slices.ContainsFunc(h.announce, manet.IsPublicAddr) || h.dialled.Load():
		return network.ReachabilityPublic
	default:
		return network.ReachabilityUnknown
	}
}

// noteInbound takes a direct connection from a public address as proof that we can be dialled. Not so with hole punching: of two
// peers that dial each other at once, one looks as if it had been dialled.
func (h *Host) noteInbound(c network.Conn) {
	stat := c.Stat()
	if stat.Direction == network.DirInbound && !stat.Limited && !h.nat.HolePunching &&
		!isRelay(c.RemoteMultiaddr()) && manet.IsPublicAddr(c.RemoteMultiaddr()) {
		h.dialled.Store(true)
	}
}

// ListenAddrs returns the addresses that are really listened on, wildcards resolved to those of the interfaces, loopback included.
func (h *Host) ListenAddrs() []ma.Multiaddr {
	addrs, err := h.Network().InterfaceListenAddresses()
	if err != nil { // the interfaces cannot be read: the addresses as they were given
		return h.Network().ListenAddresses()
	}
	return addrs
}
