package p2p

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
)

const (
	// relayedBytes and relayedFor bound one relayed connection: eight activations of 8 MiB, there or back. libp2p's 128 KiB are made
	// for hole punching alone, and would end a call of 8 rows.
	relayedBytes = 64 << 20
	relayedFor   = 10 * time.Minute
	// relayBuffer of bytes are held per direction of a relayed connection; libp2p's 2 KiB cost a system call each.
	relayBuffer = 16 << 10
	// relaySearchDelay is how long a private node looks for more than one relay before it takes the only one.
	relaySearchDelay = 10 * time.Second
)

// natOptions turns on what the configuration asks for. Every node that is not on loopback can dial a relayed address, whatever it
// does itself.
func (h *Host) natOptions() []libp2p.Option {
	if h.loopback {
		return []libp2p.Option{libp2p.DisableRelay()}
	}
	opts := []libp2p.Option{libp2p.EnableRelay()}
	if h.nat.Relay {
		resources := relay.DefaultResources()
		resources.Limit = &relay.RelayLimit{Duration: relayedFor, Data: relayedBytes}
		resources.BufferSize = relayBuffer
		opts = append(opts,
			libp2p.EnableRelayService(relay.WithResources(resources)), // serves only while AutoNAT finds this node reachable
			libp2p.EnableAutoRelayWithPeerSource(h.relayCandidates, autorelay.WithMinCandidates(1), autorelay.WithBootDelay(relaySearchDelay)))
	}
	if h.nat.HolePunching {
		opts = append(opts, libp2p.EnableHolePunching())
	}
	if h.nat.UPnP {
		opts = append(opts, libp2p.NATPortMap())
	}
	if h.nat.AutoNAT {
		opts = append(opts, libp2p.EnableNATService(), libp2p.EnableAutoNATv2())
	}
	return opts
}

// relayCandidates offers the peers that we are connected to; libp2p tries which of them relay.
func (h *Host) relayCandidates(ctx context.Context, n int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, n) // all fit: the send below never blocks
	defer close(out)
	select {
	case <-h.made: // libp2p may ask before New has returned
	case <-ctx.Done():
		return out
	}
	for _, p := range h.Network().Peers() {
		if len(out) == n || ctx.Err() != nil {
			break
		}
		out <- h.Peerstore().PeerInfo(p)
	}
	return out
}
