package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kwaai/kwaaid/internal/p2p"
)

const (
	// dialTimeout is what a stranger's dial may take; others try several addresses at once and wait no longer.
	dialTimeout = 5 * time.Second
	// maxDials bounds the addresses that are tried: a machine with many interfaces has one for each.
	maxDials = 16
)

// dial is how a stranger on this machine fared at one address.
type dial struct {
	addr ma.Multiaddr
	err  error // nil: the node answered there, and proved that it is itself
}

// dialAll dials each address as somebody who knows nothing else of the node.
func dialAll(ctx context.Context, id string, addrs []string) []dial {
	p, err := peer.Decode(id)
	if err != nil {
		return nil
	}
	var dials []dial
	for _, s := range addrs[:min(len(addrs), maxDials)] {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err == nil {
			continue // that a relay passes on is for those outside to see
		}
		dials = append(dials, dial{addr: a})
	}
	var wg sync.WaitGroup
	for i := range dials {
		wg.Go(func() { dials[i].err = dialOne(ctx, p, dials[i].addr) })
	}
	wg.Wait()
	return dials
}

// dialOne uses a host of its own: one that is connected already would not dial again.
func dialOne(ctx context.Context, p peer.ID, addr ma.Multiaddr) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dialTimeout, fmt.Errorf("no answer within %v", dialTimeout))
	defer cancel()
	key, err := p2p.NewIdentity()
	if err != nil {
		return err
	}
	h, err := p2p.New(key, p2p.ClientConfig())
	if err != nil {
		return err
	}
	defer h.Close() //nolint:errcheck // it has done its work
	return h.Connect(ctx, peer.AddrInfo{ID: p, Addrs: []ma.Multiaddr{addr}})
}
