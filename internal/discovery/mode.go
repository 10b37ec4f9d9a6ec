package discovery

import (
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// gate is the host that the DHT gets: the DHT believes that it serves, and the gate decides whether the world can see that. So a
// node changes between server and client as its reachability changes, by our rules and without a new DHT.
type gate struct {
	host.Host

	mu      sync.Mutex
	handler network.StreamHandler
	kad     protocol.ID
	serving bool
}

// SetStreamHandler keeps the DHT's handler until the node serves.
func (g *gate) SetStreamHandler(kad protocol.ID, handler network.StreamHandler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kad, g.handler = kad, handler
}

// serve opens or shuts the gate, and tells whether that was a change. Peers learn of it through identify.
func (g *gate) serve(on bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.serving == on || g.handler == nil {
		return false
	}
	g.serving = on
	if on {
		g.Host.SetStreamHandler(g.kad, g.handler)
		return true
	}
	g.RemoveStreamHandler(g.kad)
	for _, c := range g.Network().Conns() {
		for _, st := range c.GetStreams() {
			if st.Protocol() == g.kad && st.Stat().Direction == network.DirInbound {
				_ = st.Reset()
			}
		}
	}
	return true
}

func (g *gate) isServing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.serving
}

// shouldServe says whether this node is a DHT server: as configured, or with ModeAuto
//
//   - not when it listens nowhere;
//   - while it meets nobody from outside (it is alone, or all peers and bootstrap peers have loopback or private addresses): yes,
//     for in such a swarm everybody can dial everybody, and AutoNAT would never say so;
//   - else when it is known to be reachable. A client that counts as a server makes the walks of others wait for it.
func (s *Service) shouldServe() bool {
	switch s.cfg.DHT {
	case ModeServer:
		return true
	case ModeClient:
		return false
	}
	if !slices.ContainsFunc(s.host.Network().ListenAddresses(), hasIP) { // libp2p lists a bare /p2p-circuit for whoever can use relays
		return false
	}
	return !s.meetsPublic() || s.reachability() == network.ReachabilityPublic
}

// meetsPublic tells whether any peer that we talk to, or will by its configured address, is outside our own networks. Names say
// nothing before they are resolved.
func (s *Service) meetsPublic() bool {
	for _, b := range s.bootstraps {
		if slices.ContainsFunc(b.info.Addrs, isPublicIP) {
			return true
		}
	}
	return slices.ContainsFunc(s.host.Network().Conns(), func(c network.Conn) bool { return isPublicIP(c.RemoteMultiaddr()) })
}

func hasIP(a ma.Multiaddr) bool {
	_, err := manet.ToIP(a)
	return err == nil
}

func isPublicIP(a ma.Multiaddr) bool { return hasIP(a) && manet.IsPublicAddr(a) }
