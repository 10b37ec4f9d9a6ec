package p2p

import (
	"net"
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

// advertise is the host's addresses factory: of the addresses that libp2p finds it picks those that others are told. A public
// address that peers see us under, but no interface has, is a router's: it is told only once we are known to be reachable, so that a
// node that nobody can dial never looks as if it could be. With AutoNAT or UPnP libp2p finds that out itself.
func (h *Host) advertise(found []ma.Multiaddr) []ma.Multiaddr {
	switch {
	case len(h.announce) > 0:
		return slices.Clone(h.announce)
	case h.loopback:
		return found
	}
	all := found
	found = slices.DeleteFunc(slices.Clone(found), manet.IsIPLoopback)
	if len(found) == 0 { // a machine without a network: whoever hears this is on it
		return all
	}
	if h.nat.AutoNAT || h.nat.UPnP || h.Reachability() == network.ReachabilityPublic {
		return found
	}
	own := interfaceIPs()
	return slices.DeleteFunc(found, func(a ma.Multiaddr) bool {
		ip, err := manet.ToIP(a)
		return err == nil && !isRelay(a) && manet.IsPublicAddr(a) && !slices.ContainsFunc(own, ip.Equal)
	})
}

// interfaceIPs lists the addresses of this machine; none where they cannot be read.
func interfaceIPs() []net.IP {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	ips := make([]net.IP, 0, len(addrs))
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ips = append(ips, n.IP)
		}
	}
	return ips
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
		addrs = h.Network().ListenAddresses()
	}
	return slices.DeleteFunc(slices.Clone(addrs), isRelay) // with relays libp2p lists a bare /p2p-circuit
}
