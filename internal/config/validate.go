package config

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/p2p"
)

// Validate reports all that cannot work, as Problems without lines; it changes nothing.
func (c *Config) Validate() error { return c.problems().err() }

// problems returns all that cannot work. Each part of the node knows best about its own configuration; here stands what
// concerns several of them, no part, or one element of a list.
func (c *Config) problems() Problems {
	var ps Problems
	c.checkAddresses(&ps)
	c.checkPorts(&ps)
	oneOf(&ps, "log.level", c.Log.Level, "trace", "debug", "info", "warn", "error")
	oneOf(&ps, "log.format", c.Log.Format, "auto", "console", "json")
	c.checkExperts(&ps)
	c.checkLayers(&ps)
	c.checkReferences(&ps)
	c.checkCalls(&ps)
	c.checkServing(&ps)
	all := paths(reflect.TypeFor[Config](), "")
	ps.addAll(c.P2P().Validate(), all, "")
	ps.addAll(c.Discovery().Validate(), all, "")
	ps.addAll(c.Gateway().Validate(), all, "")
	ps.addAll(c.Dispatch().Validate(), all, "calls", "checks")
	ps.addAll(c.ServingHost().Validate(), all, "serving")
	ps.addAll(c.RPCServer().Validate(), all, "limits", "serving")
	return ps
}

// paths returns the keys of a section, those of sections within it too, with their paths from above.
func paths(t reflect.Type, above string) []string {
	var all []string
	for field := range t.Fields() {
		path := join(above, field.Tag.Get("yaml"))
		all = append(all, path)
		if field.Type.Kind() == reflect.Struct {
			all = append(all, paths(field.Type, path)...)
		}
	}
	return all
}

// checkAddresses checks each address where the node listens, that it announces, and by which it joins.
func (c *Config) checkAddresses(ps *Problems) {
	part := p2p.DefaultConfig()
	for i, s := range c.Listen {
		path := element("listen", i)
		part.Listen = []string{s}
		if addr, err := multiaddr.NewMultiaddr(s); err == nil && has(addr, multiaddr.P_P2P) {
			ps.add(path, "%s: leave out /p2p/ and what follows: the node's own key says who it is", s)
		} else if err := part.Validate(); err != nil {
			ps.add(path, "%s", withoutKey(err, "listen"))
		} else if slices.Contains(c.Listen[:i], s) {
			ps.add(path, "%s is listed twice", s)
		}
	}
	part = p2p.DefaultConfig()
	for i, s := range c.Announce {
		path := element("announce", i)
		part.Announce = []string{s}
		switch addr, err := multiaddr.NewMultiaddr(s); {
		case err == nil && manet.IsIPUnspecified(addr):
			ps.add(path, "%s: nobody can dial an address of zeros; give the one at which others reach this node", s)
		case err == nil && has(addr, multiaddr.P_P2P) && !has(addr, multiaddr.P_CIRCUIT):
			ps.add(path, "%s: leave out /p2p/ and what follows: it is added", s)
		default:
			if err := part.Validate(); err != nil {
				ps.add(path, "%s", withoutKey(err, "announce"))
			}
		}
	}
	checkPeers(ps, "bootstrap", c.Bootstrap)
	if c.DHT == discovery.ModeServer && len(c.Listen) == 0 {
		ps.add("dht", "server needs an address to listen on: others could not ask it")
	}
}

// checkPorts reports a port that two faces of the node ask for.
func (c *Config) checkPorts(ps *Problems) {
	var taken []socket
	for i, s := range c.Listen {
		if addr, err := multiaddr.NewMultiaddr(s); err == nil && has(addr, multiaddr.P_TCP) {
			if tcp, err := manet.ToNetAddr(addr); err == nil {
				at, _ := netip.ParseAddrPort(tcp.String())
				taken = append(taken, socket{element("listen", i), at})
			}
		}
	}
	for _, face := range []struct{ path, addr string }{{"api", c.API}, {"grpc", c.GRPC}} {
		host, port, err := net.SplitHostPort(face.addr)
		if err != nil {
			continue // gateway says so
		}
		n, _ := strconv.ParseUint(port, 10, 16)
		own := socket{face.path, netip.AddrPortFrom(hostAddr(host), uint16(n))}
		for _, other := range taken {
			if own.clashes(other) {
				ps.add(face.path, "port %s is taken by %s already", port, other.path)
				break
			}
		}
		taken = append(taken, own)
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

// checkLayers checks each entry as one of experts, whose rules for checkpoints it shares.
func (c *Config) checkLayers(ps *Problems) {
	for i, l := range c.Layers {
		path := element("layers", i)
		if l.Checkpoint == "" {
			ps.add(path, "expected a checkpoint: the directory with config.json and the router's tensors")
			continue
		}
		for _, p := range l.checkpoint().problems() {
			ps.add(join(path, p.Path), "%s", p.Message)
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
		checkPeers(ps, path, c.Remotes[ref])
	}
}

func (c *Config) checkCalls(ps *Problems) {
	oneOf(ps, "calls.codec", c.Calls.Codec, "f32", "bf16", "f16")
	oneOf(ps, "calls.combine", c.Calls.Combine, "caller", "peer")
	for _, v := range []struct {
		key   string
		value int64
	}{{"top_k", int64(c.Calls.TopK)}, {"k_min", int64(c.Calls.KMin)}, {"timeout_after_k_min", int64(c.Calls.TimeoutAfterKMin)}} {
		if v.value < 0 {
			ps.add(join("calls", v.key), "is below 0")
		}
	}
}

func (c *Config) checkServing(ps *Problems) {
	if s := c.Serving; s.QueueBytes < s.MaxFrame {
		ps.add("serving.queue_bytes", "%v is below max_frame (%v): a request of that size could never be admitted", s.QueueBytes, s.MaxFrame)
	}
	oneOf(ps, "serving.numerics", c.Serving.Numerics, "exact", "dot", "tile", "fast")
}

// checkPeers checks addresses that must say which peer they lead to.
func checkPeers(ps *Problems, path string, addrs []string) {
	for i, s := range addrs {
		if _, err := discovery.ParsePeers([]string{s}); err != nil {
			ps.add(element(path, i), "%v", err)
		}
	}
}

// withoutKey returns what a part says of one of its keys.
func withoutKey(err error, key string) string {
	var ps Problems
	ps.addAll(err, []string{key}, "")
	return ps[0].Message
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
	if !slices.Contains(expected, got) {
		ps.add(path, "%q: expected %s", got, list(expected))
	}
}

// element is the path of a list's element.
func element(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// sortedRefs orders references as they are written, so that problems come in the same order each time.
func sortedRefs(refs func(yield func(Ref) bool)) []Ref {
	return slices.SortedFunc(refs, func(a, b Ref) int { return cmp.Compare(a.String(), b.String()) })
}
