package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/registry"
)

// resolveTimeout bounds the walk of the DHT behind `resolve`.
const resolveTimeout = 5 * time.Second

// askTimeout bounds how long `experts` and `peers` wait for hosts to describe themselves.
const askTimeout = 2 * time.Second

// Experts lists every expert known here: those hosted, and those of the peers.
func (c *core) Experts(ctx context.Context) ([]api.Expert, error) {
	c.askPeers(ctx)
	now := time.Now()
	list := []api.Expert{}
	hosted := map[expert.ID]int{}
	for _, h := range c.local.List() {
		hosted[h.ID] = len(list)
		list = append(list, hostedDocument(h))
	}
	for _, v := range c.table.Experts(now) {
		if i, ok := hosted[v.ID]; ok {
			list[i].Providers += v.Providers
			continue
		}
		list = append(list, remoteDocument(v))
	}
	slices.SortFunc(list, func(a, b api.Expert) int { return cmp.Compare(a.Expert, b.Expert) })
	return list, nil
}

// Expert returns one expert that is known here. Where none of its hosts has described it yet, they are asked.
func (c *core) Expert(ctx context.Context, name string) (api.Expert, error) {
	ref, err := parseExpert(name)
	if err != nil {
		return api.Expert{}, document(err, c.self)
	}
	v, known := c.table.Expert(ref.ID, time.Now())
	if h, ok := c.local.Has(ref.ID); ok {
		e := hostedDocument(h)
		e.Providers += v.Providers
		return e, nil
	}
	if known && (v.Hidden == 0 || v.Kind == "") {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		var hosts []peer.ID
		for _, p := range c.table.Providers(ref.ID, time.Now()) {
			hosts = append(hosts, p.Peer)
		}
		c.describer.all(ask, hosts)
		v, known = c.table.Expert(ref.ID, time.Now())
	}
	if !known {
		return api.Expert{}, document(fmt.Errorf("%w: this node knows no host of %s", expert.ErrNotFound, ref), c.self)
	}
	return remoteDocument(v), nil
}

// Answerable tells whether somebody could answer for an expert now: this node, a host that may be asked, or one of its fallbacks.
func (c *core) Answerable(name string) (bool, error) {
	ref, err := parseExpert(name)
	if err != nil {
		return false, document(err, c.self)
	}
	for _, id := range append([]expert.ID{ref.ID}, c.table.Fallbacks(ref.ID, c.table.Hidden(ref.ID))...) {
		if h, ok := c.local.Has(id); ok && h.State == expert.StateReady {
			return true, nil
		}
		if v, ok := c.table.Expert(id, time.Now()); ok && v.Reachable > 0 {
			return true, nil
		}
	}
	return false, nil
}

// remoteDocument is the document of an expert that others host.
func remoteDocument(v registry.ExpertView) api.Expert {
	e := api.Expert{
		Expert: v.ID, Name: v.Name, Kind: v.Kind, Hidden: v.Hidden, Inner: v.Inner, DType: v.DType, Numerics: v.Numerics,
		Where: api.WhereRemote, State: v.State, Providers: v.Providers,
	}
	if !v.Digest.IsZero() {
		e.Digest = v.Digest.String()
	}
	if v.State == expert.StateFailed {
		e.Error = "none of its hosts can be reached, or it fails there"
	}
	return e
}

// hostedDocument is the document of an expert of this node's own.
func hostedDocument(h expert.Hosted) api.Expert {
	e := api.Expert{
		Expert: h.ID, Name: h.Name, Kind: h.Kind, Hidden: h.Hidden, Inner: h.Inner, DType: h.DType, Numerics: h.Numerics,
		Where: api.WhereLocal, State: h.State, Error: h.Problem,
	}
	if !h.Digest.IsZero() {
		e.Digest = h.Digest.String()
	}
	if h.State == expert.StateReady {
		e.Providers = 1
	}
	return e
}

// Peers lists the connected peers.
func (c *core) Peers(ctx context.Context) ([]api.Peer, error) {
	c.askPeers(ctx)
	now := time.Now()
	list := []api.Peer{}
	for _, p := range c.host.Peers() {
		d := api.Peer{Peer: p.ID.String(), Addrs: addrStrings(p.Addrs), RTTMS: optionalMillis(p.RTT), Breaker: registry.Closed.String(), Success: 1, Agent: p.Software}
		if v, ok := c.table.Peer(p.ID, now); ok {
			d.Experts, d.Breaker, d.Success = v.Experts, v.Breaker.String(), v.Success
			if v.RTT > 0 {
				d.RTTMS = optionalMillis(v.RTT)
			}
			d.Inflight, d.QueuedRows, d.LatencyMS = v.Inflight, max(0, v.Queued), optionalMillis(v.Latency)
			d.Resting, d.RestingS = resting(v)
		}
		list = append(list, d)
	}
	return list, nil
}

// resting says why a peer is asked nothing now, and for how long, as far as that is known.
func resting(v registry.PeerView) (why string, s float64) {
	switch {
	case v.ShutOut > 0:
		return "misbehaved", v.ShutOut.Seconds()
	case v.Draining:
		return "draining", 0
	case v.Verdict == registry.Dead:
		return "unreachable", 0
	case v.Resting > 0:
		return "full", v.Resting.Seconds()
	case v.Breaker != registry.Open:
		return "", 0
	case v.Verdict == registry.Unknown:
		return "silent", 0
	default:
		return "failing", 0
	}
}

// maxResting bounds the hosts that a status lists as resting.
const maxResting = 100

// calls is what the calls of this node did, and which hosts they leave out.
func (c *core) calls() (api.Calls, []api.Resting) {
	n := c.dispatch.Counts()
	list := []api.Resting{}
	for _, v := range c.table.Peers(time.Now()) {
		why, s := resting(v)
		if why != "" && v.Experts > 0 && len(list) < maxResting {
			list = append(list, api.Resting{Peer: v.Peer.String(), Why: why, Seconds: s, Experts: v.Experts})
		}
	}
	return api.Calls{
		Calls: n.Calls, Failed: n.Failed, Fallbacks: n.Fallbacks, Attempts: n.Attempts,
		Hedges: n.Hedges, HedgesRefused: n.Refused, PingsMissed: n.Missed,
	}, list
}

// askPeers has the connected peers describe themselves, those that did not do so lately.
func (c *core) askPeers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c.describer.all(ctx, c.host.Network().Peers())
}

// Resolve walks the DHT for those who host an expert, and adds who is known without it.
func (c *core) Resolve(ctx context.Context, name string) (api.Resolved, error) {
	ref, err := parseExpert(name)
	if err != nil {
		return api.Resolved{}, document(err, c.self)
	}
	out := api.Resolved{Expert: ref.ID, Key: discovery.Key(ref.ID).String(), Providers: []api.Provider{}}
	if ref.Name != nil {
		out.Name = ref.Name.String()
	}
	walk, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := c.finder.Walk(walk, ref.ID)
	if err != nil && ctx.Err() != nil {
		return out, document(context.Cause(ctx), c.self)
	}
	now := time.Now()
	for _, p := range found {
		c.table.AddProvider(ref.ID, p.ID, registry.DHT, now)
	}
	if h, ok := c.local.Has(ref.ID); ok {
		if out.Name == "" {
			out.Name = h.Name
		}
		if h.State == expert.StateReady {
			zero := 0.0
			out.Providers = append(out.Providers, api.Provider{
				Peer: c.self.String(), Addrs: addrStrings(c.host.Addrs()), Source: "local", Breaker: registry.Closed.String(), RTTMS: &zero,
			})
		}
	}
	for _, v := range c.table.Providers(ref.ID, now) {
		if v.Peer == c.self {
			continue
		}
		rtt := optionalMillis(v.RTT)
		if rtt == nil {
			measured, _ := c.host.RTT(v.Peer)
			rtt = optionalMillis(measured)
		}
		out.Providers = append(out.Providers, api.Provider{
			Peer: v.Peer.String(), Addrs: addrStrings(c.addrsOf(v.Peer)), Source: v.Source.String(), AgeS: v.Age.Seconds(),
			Breaker: v.Breaker.String(), RTTMS: rtt,
		})
	}
	return out, nil
}

// addrsOf returns the addresses known of a peer: those that it announced, else those that it is connected from.
func (c *core) addrsOf(p peer.ID) []ma.Multiaddr {
	if addrs := c.host.Peerstore().Addrs(p); len(addrs) > 0 {
		return addrs
	}
	var addrs []ma.Multiaddr
	for _, conn := range c.host.Network().ConnsToPeer(p) {
		addrs = append(addrs, conn.RemoteMultiaddr())
	}
	return addrs
}

func addrStrings(addrs []ma.Multiaddr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// optionalMillis returns nil for what was not measured.
func optionalMillis(d time.Duration) *float64 {
	if d <= 0 {
		return nil
	}
	ms := millis(d)
	return &ms
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
