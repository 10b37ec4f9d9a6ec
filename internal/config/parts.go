package config

import (
	"time"

	"github.com/kwaai/kwaaid/internal/discovery"
	"github.com/kwaai/kwaaid/internal/dispatch"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/gateway"
	"github.com/kwaai/kwaaid/internal/p2p"
	"github.com/kwaai/kwaaid/internal/rpc"
	"github.com/kwaai/kwaaid/internal/serving"
)

// P2P returns what the libp2p host is told.
func (c *Config) P2P() p2p.Config {
	cfg := p2p.DefaultConfig()
	cfg.Listen, cfg.Announce = c.Listen, c.Announce
	cfg.NAT = p2p.NAT(c.NAT)
	cfg.Limits.Connections, cfg.Limits.StreamsPerPeer = c.Limits.Connections, c.Limits.StreamsPerPeer
	return cfg
}

// Discovery returns how others are found.
func (c *Config) Discovery() discovery.Config {
	cfg := discovery.DefaultConfig()
	cfg.Swarm, cfg.Bootstrap, cfg.DHT = c.Swarm, c.Bootstrap, c.DHT
	return cfg
}

// RPCServer returns what the stream protocol takes from others.
func (c *Config) RPCServer() rpc.ServerConfig {
	cfg := rpc.DefaultServerConfig()
	cfg.Limits.Frame = int64(c.Serving.MaxFrame)
	cfg.StreamsPerPeer, cfg.RequestsPerPeer = c.Limits.StreamsPerPeer, c.Limits.RequestsPerPeer
	return cfg
}

// RPCClient returns how the stream protocol is spoken to others.
func (c *Config) RPCClient() rpc.ClientConfig {
	cfg := rpc.DefaultClientConfig()
	cfg.Limits.Frame = int64(c.Serving.MaxFrame)
	return cfg
}

// ServingHost returns what the experts' host takes on.
func (c *Config) ServingHost() serving.Config {
	return serving.Config{
		MaxRows:         c.Serving.MaxRows,
		QueueRows:       c.Serving.QueueRows,
		QueueBytes:      int64(c.Serving.QueueBytes),
		Drain:           c.Serving.Drain,
		Memory:          int64(c.Serving.Memory),
		RefuseNonFinite: c.Checks.NaN,
	}
}

// Dispatch returns how calls are made.
func (c *Config) Dispatch() dispatch.Config {
	cfg := dispatch.DefaultConfig()
	cfg.Timeout, cfg.MaxRetries, cfg.Hedge = c.Calls.Timeout, c.Calls.MaxRetries, c.Calls.Hedge
	cfg.CheckShare, cfg.CheckNaN = c.Checks.Share, c.Checks.NaN
	return cfg
}

// gatewayDrain is for answers on their way out: by the time that the gateway stops, the node has drained what it took on.
const gatewayDrain = 2 * time.Second

// Gateway returns where HTTP and gRPC listen, and for whom.
func (c *Config) Gateway() gateway.Config {
	cfg := gateway.DefaultConfig()
	cfg.API, cfg.GRPC, cfg.Token, cfg.Insecure = c.API, c.GRPC, c.APIToken, c.Insecure
	cfg.Hosts, cfg.Pprof = c.APIHosts, c.PProf
	cfg.MaxFrame, cfg.Drain = int64(c.Serving.MaxFrame), min(c.Serving.Drain, gatewayDrain)
	return cfg
}

// Params returns what package expert is told of a single expert.
func (e Expert) Params() expert.Params {
	p := expert.Params{
		Kind: e.Kind, Hidden: e.Hidden, Inner: e.Inner, Activation: e.Activation, Bias: e.Bias,
		Residual: e.Residual, Norm: e.Norm, Eps: e.Eps, Limit: e.Limit, DType: e.DType,
	}
	if e.Init != nil {
		p.Init = &expert.Init{Seed: e.Init.Seed}
	}
	return p
}
