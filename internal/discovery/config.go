package discovery

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// The values of Config.DHT.
const (
	ModeAuto   = "auto"   // server while only peers of our own networks are met, else as reachability shows
	ModeServer = "server" // keep records for others and answer their queries
	ModeClient = "client" // only ask
)

// Config is what an operator sets about finding others.
type Config struct {
	Swarm     string   // names the DHT; nodes of other swarms are never asked
	Bootstrap []string // multiaddrs with /p2p/; any node of the swarm can be one
	DHT       string   // ModeAuto, ModeServer or ModeClient
}

// DefaultConfig is the swarm `kwaai` without bootstrap peers.
func DefaultConfig() Config { return Config{Swarm: "kwaai", DHT: ModeAuto} }

// swarmPattern keeps a swarm's name usable as one part of a protocol's ID.
var swarmPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Validate reports everything that is wrong, each with what would go wrong.
func (c Config) Validate() error {
	var errs []error
	if !swarmPattern.MatchString(c.Swarm) {
		errs = append(errs, fmt.Errorf("swarm: %q does not match %s: it stands in the name of the DHT's protocol", c.Swarm, swarmPattern))
	}
	if _, err := ParsePeers(c.Bootstrap); err != nil {
		errs = append(errs, fmt.Errorf("bootstrap: %w", err))
	}
	switch c.DHT {
	case ModeAuto, ModeServer, ModeClient:
	default:
		errs = append(errs, fmt.Errorf("dht: %q is none of %s, %s, %s", c.DHT, ModeAuto, ModeServer, ModeClient))
	}
	return errors.Join(errs...)
}

// ParsePeers reads full multiaddrs, with /p2p/ at their end, as `kwaaid run` prints them; several addresses of one peer become one
// entry, in the order of first mention. It reports every bad one.
func ParsePeers(addrs []string) ([]peer.AddrInfo, error) {
	var peers []peer.AddrInfo
	var errs []error
	index := map[peer.ID]int{}
	for _, s := range addrs {
		info, err := parsePeer(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		i, known := index[info.ID]
		if !known {
			i = len(peers)
			index[info.ID] = i
			peers = append(peers, peer.AddrInfo{ID: info.ID})
		}
		peers[i].Addrs = append(peers[i].Addrs, info.Addrs...)
	}
	return peers, errors.Join(errs...)
}

func parsePeer(s string) (*peer.AddrInfo, error) {
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, fmt.Errorf("%q is no multiaddr: %w; expected /ip4/ADDRESS/tcp/PORT/p2p/PEER or /dns/NAME/tcp/PORT/p2p/PEER", s, err)
	}
	info, err := peer.AddrInfoFromP2pAddr(a)
	if err != nil {
		return nil, fmt.Errorf("%q does not end in /p2p/PEER: without it nobody can tell that the right node answers; `kwaaid run` prints the whole address", s)
	}
	if len(info.Addrs) == 0 {
		return nil, fmt.Errorf("%q holds no address in front of /p2p/", s)
	}
	return info, nil
}
