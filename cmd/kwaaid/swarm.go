package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/config"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/node"
)

// swarm is a way to the swarm: the local node's HTTP address, or a client of the swarm for this one command.
type swarm interface {
	Call(ctx context.Context, req api.CallRequest) (api.CallResult, *tensor.Dense, error)
	Resolve(ctx context.Context, name string) (api.Resolved, error)
	Experts(ctx context.Context) ([]api.Expert, error)
	Peers(ctx context.Context) ([]api.Peer, error)
	Bench(ctx context.Context, req api.BenchRequest, progress func(api.BenchProgress)) (api.BenchResult, error)
	Close()
}

// join holds the flags of commands that can reach the swarm without a node of their own.
type join struct {
	Bootstrap []string `name:"bootstrap" placeholder:"MULTIADDR" help:"Join through this node as a client, for this one command, instead of using the local node."`
	Swarm     string   `name:"swarm" default:"kwaai" help:"Name of the swarm to join, with --bootstrap."`
}

// open returns the way that the flags name. The caller closes it.
func (j join) open(a *app) (swarm, error) {
	if len(j.Bootstrap) == 0 {
		return a.node(), nil
	}
	cfg := config.Default()
	cfg.Swarm = j.Swarm
	cfg.Bootstrap = j.Bootstrap
	if err := cfg.Validate(); err != nil {
		return nil, configError(err)
	}
	c, err := node.Join(a.ctx, cfg, version())
	if err != nil {
		return nil, fmt.Errorf("joining the swarm %s: %w", j.Swarm, err)
	}
	return c, nil
}

// defaultAPI is where a node's HTTP address is unless told otherwise.
const defaultAPI = "127.0.0.1:7575"

// checkAPI refuses an address of a node that leads nowhere; clients take a URL too. To the commands that read a configuration it is one
// of its keys, which is checked with the others.
func checkAPI(command, addr string) error {
	command, _, _ = strings.Cut(command, " ")
	if slices.Contains([]string{"run", "config", "doctor"}, command) || addr == "" || strings.Contains(addr, "://") {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return usagef("--api %s: expected HOST:PORT, such as %s", addr, defaultAPI)
	}
	return nil
}

// node returns the client of the node that --api names.
func (a *app) node() *api.Client {
	addr := a.API
	if addr == "" {
		addr = defaultAPI
	}
	return api.NewClient(clientAddr(addr), a.APIToken)
}

// clientAddr is how a client on this machine reaches a node that listens at addr.
func clientAddr(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// checkNames refuses what is no NAME before anybody is asked.
func checkNames(names []string, layers bool) error {
	for _, n := range names {
		ref, err := expert.ParseRef(n)
		if err != nil {
			return usageError(err.Error())
		}
		if ref.Layer != nil && !layers {
			return usagef("%s is a layer: expected an expert, such as %s", n, ref.Layer.Expert(0))
		}
	}
	return nil
}
