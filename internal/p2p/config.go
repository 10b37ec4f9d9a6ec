package p2p

import (
	"errors"
	"fmt"

	ma "github.com/multiformats/go-multiaddr"
)

// Config is what an operator sets about the libp2p host.
type Config struct {
	// Listen holds multiaddrs, TCP or QUIC. Empty: this node only dials, as the commands with --bootstrap do.
	Listen []string
	// Announce holds the multiaddrs that others are told instead of those found; for hosts behind a forwarded port.
	Announce []string
	NAT      NAT
	Limits   Limits
}

// NAT turns on what helps hosts that others cannot dial directly. All of it is left off while every listen address is loopback.
type NAT struct {
	Relay        bool // be reached through relays, and relay for others when publicly reachable; AutoNAT says which, so it is on too
	HolePunching bool // turn relayed connections into direct ones; needs Relay
	UPnP         bool // ask the router to forward the listen ports
	AutoNAT      bool // ask peers whether they can dial us, and tell them the same
}

// Limits bounds what peers may use of this host.
type Limits struct {
	// Connections is the number of connections above which the least useful are closed.
	Connections int
	// StreamsPerPeer is the number of streams of one of our protocols that one peer may hold, each way.
	StreamsPerPeer int
}

// DefaultConfig listens on port 7577 of all interfaces, TCP and QUIC.
func DefaultConfig() Config {
	return Config{
		Listen: []string{
			"/ip4/0.0.0.0/tcp/7577", "/ip4/0.0.0.0/udp/7577/quic-v1",
			"/ip6/::/tcp/7577", "/ip6/::/udp/7577/quic-v1",
		},
		Limits: Limits{Connections: 512, StreamsPerPeer: 64},
	}
}

// ClientConfig listens nowhere: for a process that joins a swarm for one command.
func ClientConfig() Config {
	cfg := DefaultConfig()
	cfg.Listen = nil
	return cfg
}

// minConnections leaves room for a DHT's 20 nearest peers and as many callers.
const minConnections = 40

// Validate reports everything that is wrong, each with what would go wrong.
func (c Config) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, s := range c.Listen {
		a, err := ma.NewMultiaddr(s)
		switch {
		case err != nil:
			fail("listen: %q is no multiaddr: %w; write /ip4/0.0.0.0/tcp/7577 or /ip4/0.0.0.0/udp/7577/quic-v1", s, err)
		case !isTCP(a) && !isQUIC(a):
			fail("listen: %s is neither TCP nor QUIC, the transports that kwaaid speaks", s)
		}
	}
	for _, s := range c.Announce {
		if _, err := ma.NewMultiaddr(s); err != nil {
			fail("announce: %q is no multiaddr: %w; write /ip4/ADDRESS/tcp/PORT or /dns/NAME/tcp/PORT", s, err)
		}
	}
	if c.NAT.HolePunching && !c.NAT.Relay {
		fail("nat.hole_punching: needs nat.relay: two peers behind NAT arrange the punch over a relay")
	}
	if c.Limits.Connections < minConnections {
		fail("limits.connections: %d is under %d: the DHT's own connections would fill it", c.Limits.Connections, minConnections)
	}
	if c.Limits.StreamsPerPeer < 2 {
		fail("limits.streams_per_peer: %d is under 2: a retry beside a running call would be refused", c.Limits.StreamsPerPeer)
	}
	return errors.Join(errs...)
}

// multiaddrs parses what Validate has accepted.
func multiaddrs(list []string) ([]ma.Multiaddr, error) {
	addrs := make([]ma.Multiaddr, 0, len(list))
	for _, s := range list {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no multiaddr: %w", s, err)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}
