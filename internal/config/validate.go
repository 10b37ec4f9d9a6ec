package config

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kwaai/kwaaid/internal/expert"
)

// swarmName is what a swarm may be called: its name is a part of the DHT's protocol ID.
var swarmName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Validate reports all that cannot work, as Problems without lines; it changes nothing.
func (c *Config) Validate() error { return c.problems().err() }

// problems returns all that cannot work, in the order of the schema.
func (c *Config) problems() Problems {
	var ps Problems
	if !swarmName.MatchString(c.Swarm) {
		ps.add("swarm", "%q is no name of a swarm: expected up to 64 letters, digits and ._- with a letter or digit first", c.Swarm)
	}
	c.checkAddresses(&ps)
	c.checkFaces(&ps)
	oneOf(&ps, "log.level", c.Log.Level, "trace", "debug", "info", "warn", "error")
	oneOf(&ps, "log.format", c.Log.Format, "auto", "console", "json")
	c.checkExperts(&ps)
	c.checkReferences(&ps)
	c.checkCalls(&ps)
	c.checkServing(&ps)
	return ps
}

// checkAddresses checks where the node listens, what it announces and whom it joins by.
func (c *Config) checkAddresses(ps *Problems) {
	for i, s := range c.Listen {
		addr, err := multiaddr.NewMultiaddr(s)
		switch path := element("listen", i); {
		case err != nil:
			ps.add(path, "%q is no multiaddr: expected one such as /ip4/0.0.0.0/tcp/7577 (%v)", s, err)
		case has(addr, multiaddr.P_P2P):
			ps.add(path, "%s: leave out /p2p/ and what follows: the node's own key says who it is", s)
		case !listens(addr):
			ps.add(path, "%s: expected an IP address with /tcp/PORT or /udp/PORT/quic-v1", s)
		case slices.Contains(c.Listen[:i], s):
			ps.add(path, "%s is listed twice", s)
		}
	}
	for i, s := range c.Announce {
		addr, err := multiaddr.NewMultiaddr(s)
		switch path := element("announce", i); {
		case err != nil:
			ps.add(path, "%q is no multiaddr: expected one such as /ip4/203.0.113.7/tcp/7577 (%v)", s, err)
		case manet.IsIPUnspecified(addr):
			ps.add(path, "%s: nobody can dial an address of zeros; give the one at which others reach this node", s)
		case has(addr, multiaddr.P_P2P) && !has(addr, multiaddr.P_CIRCUIT):
			ps.add(path, "%s: leave out /p2p/ and what follows: it is added", s)
		}
	}
	for i, s := range c.Bootstrap {
		checkPeer(ps, element("bootstrap", i), s)
	}
	oneOf(ps, "dht", c.DHT, "auto", "server", "client")
	if c.DHT == "server" && len(c.Listen) == 0 {
		ps.add("dht", "server needs an address to listen on: others could not ask it")
	}
	if c.NAT.HolePunching && !c.NAT.Relay {
		ps.add("nat.hole_punching", "needs nat.relay: the two sides arrange the punch through a relay")
	}
}

// checkFaces checks the addresses of api and grpc and whether strangers could use them.
func (c *Config) checkFaces(ps *Problems) {
	var taken []socket
	for i, s := range c.Listen {
		if addr, err := multiaddr.NewMultiaddr(s); err == nil && has(addr, multiaddr.P_TCP) {
			if tcp, err := manet.ToNetAddr(addr); err == nil {
				ap, _ := netip.ParseAddrPort(tcp.String())
				taken = append(taken, socket{element("listen", i), ap})
			}
		}
	}
	for _, face := range []struct{ path, addr string }{{"api", c.API}, {"grpc", c.GRPC}} {
		host, port, err := net.SplitHostPort(face.addr)
		if err != nil {
			ps.add(face.path, "%q is no address: expected HOST:PORT such as 127.0.0.1:7575", face.addr)
			continue
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			ps.add(face.path, "%q: the port is a number from 0 to 65535, 0 for any that is free", face.addr)
		}
		own := socket{face.path, netip.AddrPortFrom(hostAddr(host), uint16(n))}
		for _, other := range taken {
			if own.clashes(other) {
				ps.add(face.path, "port %s is taken by %s already", port, other.path)
				break
			}
		}
		taken = append(taken, own)
		if !own.at.Addr().IsLoopback() && c.APIToken == "" && !c.Insecure {
			ps.add(face.path, "%s can be reached from other machines: set api_token, or insecure: true if something in front of it checks who calls", face.addr)
		}
	}
	if strings.IndexFunc(c.APIToken, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		ps.add("api_token", "has blanks, or letters beyond ASCII, which an HTTP header cannot carry")
	}
	if c.Insecure && c.APIToken != "" {
		ps.add("insecure", "contradicts api_token: with a token, calls without it are refused")
	}
}

// checkExperts checks each entry, and that no two single ones have one ID.
func (c *Config) checkExperts(ps *Problems) {
	at := map[expert.ID]string{}
	for i, e := range c.Experts {
		path := element("experts", i)
		for _, p := range e.problems() {
			ps.add(join(path, p.Path), "%s", p.Message)
		}
		if id, single := e.ExpertID(); single && e.Checkpoint == "" {
			if other, twice := at[id]; twice {
				ps.add(path, "%s is %s already", id, other)
			}
			at[id] = path
		}
	}
}

// checkReferences checks fallbacks and remotes. The same expert under two keys would leave one of them out of sight.
func (c *Config) checkReferences(ps *Problems) {
	seen := map[expert.ID]Ref{}
	for _, from := range sortedRefs(maps.Keys(c.Fallbacks)) {
		path := join("fallbacks", from.String())
		if other, twice := seen[from.ID]; twice {
			ps.add(path, "is the same expert as %s", other)
		}
		seen[from.ID] = from
		listed := map[expert.ID]bool{}
		for i, to := range c.Fallbacks[from] {
			switch {
			case to.ID == from.ID:
				ps.add(element(path, i), "an expert cannot stand in for itself")
			case listed[to.ID]:
				ps.add(element(path, i), "%s is listed twice", to)
			}
			listed[to.ID] = true
		}
	}
	clear(seen)
	for _, ref := range sortedRefs(maps.Keys(c.Remotes)) {
		path := join("remotes", ref.String())
		if other, twice := seen[ref.ID]; twice {
			ps.add(path, "is the same expert as %s", other)
		}
		seen[ref.ID] = ref
		for i, s := range c.Remotes[ref] {
			checkPeer(ps, element(path, i), s)
		}
	}
}

func (c *Config) checkCalls(ps *Problems) {
	if c.Calls.Timeout < time.Millisecond {
		ps.add("calls.timeout", "%v is under 1ms: no call could be answered in time", c.Calls.Timeout)
	}
	if c.Calls.MaxRetries < 0 || c.Calls.MaxRetries > 100 {
		ps.add("calls.max_retries", "%d: expected 0 to 100", c.Calls.MaxRetries)
	}
	oneOf(ps, "calls.codec", c.Calls.Codec, "f32", "bf16", "f16")
	if !(c.Checks.Share >= 0 && c.Checks.Share <= 1) { // NaN as well
		ps.add("checks.share", "%v: expected a fraction of the calls, 0 to 1", c.Checks.Share)
	}
}

func (c *Config) checkServing(ps *Problems) {
	s := c.Serving
	if s.MaxRows < 1 {
		ps.add("serving.max_rows", "%d is below 1: no request could be served", s.MaxRows)
	}
	if s.QueueRows < s.MaxRows {
		ps.add("serving.queue_rows", "%d is below max_rows (%d): a request of that size could never be admitted", s.QueueRows, s.MaxRows)
	}
	if s.MaxFrame < 64<<10 {
		ps.add("serving.max_frame", "%v is under 64KiB, which a header with many pairs can take alone", s.MaxFrame)
	}
	if s.QueueBytes < s.MaxFrame {
		ps.add("serving.queue_bytes", "%v is below max_frame (%v): a request of that size could never be admitted", s.QueueBytes, s.MaxFrame)
	}
	if s.Drain < time.Second {
		ps.add("serving.drain", "%v is under 1s: passes under way would be cut off", s.Drain)
	}
	oneOf(ps, "serving.numerics", s.Numerics, "exact")
	if c.Limits.Connections < 8 {
		ps.add("limits.connections", "%d is below 8: the DHT alone needs more", c.Limits.Connections)
	}
	if c.Limits.StreamsPerPeer < 4 {
		ps.add("limits.streams_per_peer", "%d is below 4: DHT, identify and ping would leave none for calls", c.Limits.StreamsPerPeer)
	}
	if c.Limits.RequestsPerPeer < 0 {
		ps.add("limits.requests_per_peer", "%d is below 0: 0 means no limit", c.Limits.RequestsPerPeer)
	}
}

// checkPeer checks an address that must say which peer it leads to.
func checkPeer(ps *Problems, path, s string) {
	const form = "/ip4/203.0.113.7/tcp/7577/p2p/12D3Koo..."
	addr, err := multiaddr.NewMultiaddr(s)
	if err != nil {
		ps.add(path, "%q is no multiaddr: expected one such as %s (%v)", s, form, err)
		return
	}
	info, err := peer.AddrInfoFromP2pAddr(addr)
	if err != nil {
		ps.add(path, "%s does not say which peer it is: expected /p2p/ with its ID at the end, as in %s", s, form)
		return
	}
	if len(info.Addrs) == 0 {
		ps.add(path, "%s does not say where the peer is: expected an address before /p2p/, as in %s", s, form)
	}
}

// listens tells whether we can listen on the address: an IP with TCP or QUIC.
func listens(addr multiaddr.Multiaddr) bool {
	if !has(addr, multiaddr.P_IP4) && !has(addr, multiaddr.P_IP6) {
		return false
	}
	return has(addr, multiaddr.P_TCP) || has(addr, multiaddr.P_QUIC_V1)
}

// has tells whether a multiaddr names a protocol.
func has(addr multiaddr.Multiaddr, protocol int) bool {
	return slices.ContainsFunc(addr, func(c multiaddr.Component) bool { return c.Protocol().Code == protocol })
}

// socket is a TCP port that a key of the configuration asks for; the address is not valid where a name stands for it.
type socket struct {
	path string
	at   netip.AddrPort
}

// clashes tells whether two sockets cannot both be listened on. Port 0 is any that is free.
func (s socket) clashes(other socket) bool {
	a, b := s.at.Addr(), other.at.Addr()
	return s.at.Port() == other.at.Port() && s.at.Port() != 0 && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// hostAddr returns the address of a host as it stands in HOST:PORT; an empty one means all. Names are not looked up:
// what they lead to may change.
func hostAddr(host string) netip.Addr {
	switch host {
	case "localhost":
		host = "127.0.0.1"
	case "":
		host = "::"
	}
	addr, _ := netip.ParseAddr(host)
	return addr.Unmap()
}

// oneOf reports a word that is not among those expected.
func oneOf(ps *Problems, path, got string, expected ...string) {
	if !contains(expected, got) {
		ps.add(path, "%q: expected %s", got, list(expected))
	}
}

// element is the path of a list's element.
func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// sortedRefs orders references as they are written, so that problems come in the same order each time.
func sortedRefs(refs func(yield func(Ref) bool)) []Ref {
	return slices.SortedFunc(refs, func(a, b Ref) int { return cmp.Compare(a.String(), b.String()) })
}
