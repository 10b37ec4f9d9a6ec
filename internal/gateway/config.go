package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Config says where the gateway listens, who may talk to it, and how much it takes. Messages name the keys of the configuration file.
type Config struct {
	// API is the HTTP address, HOST:PORT; empty turns HTTP off.
	API string
	// GRPC is the gRPC address, HOST:PORT; empty turns gRPC off.
	GRPC string
	// Token is what callers send as `Authorization: Bearer TOKEN`; empty lets everyone in who reaches the address.
	Token string
	// Insecure allows an address that is not on loopback without a token.
	Insecure bool
	// Hosts are names besides the loopback ones under which browsers and clients reach the HTTP address, without port.
	Hosts []string
	// Pprof serves Go's profiles under /debug/pprof/.
	Pprof bool
	// MaxFrame bounds one request's body and one gRPC message, in bytes: serving.max_frame.
	MaxFrame int64
	// Drain is how long requests under way may take to finish once Run's context has ended: serving.drain.
	Drain time.Duration
}

// DefaultConfig listens on loopback, without a token.
func DefaultConfig() Config {
	return Config{
		API:      "127.0.0.1:7575",
		GRPC:     "127.0.0.1:7576",
		MaxFrame: 256 << 20,
		Drain:    20 * time.Second,
	}
}

// Validate reports everything that is wrong, each with what would come of it.
func (c Config) Validate() error {
	var errs []error
	for _, a := range []struct{ key, addr string }{{"api", c.API}, {"grpc", c.GRPC}} {
		if a.addr == "" {
			continue
		}
		host, port, err := net.SplitHostPort(a.addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %q is no address: expected HOST:PORT", a.key, a.addr))
			continue
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			errs = append(errs, fmt.Errorf("%s: %q is no port: expected 0 to 65535", a.key, port))
		}
		if !isLoopback(host) && c.Token == "" && !c.Insecure {
			errs = append(errs, fmt.Errorf("%s: %s is not on loopback and api_token is empty: everyone who reaches it could use and change this node; "+
				"set api_token, or insecure: true", a.key, a.addr))
		}
	}
	if strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		errs = append(errs, errors.New("api_token: holds spaces or characters beyond ASCII: no HTTP header could carry it"))
	}
	for _, h := range c.Hosts {
		if h == "" || strings.ContainsAny(h, ":/ ") {
			errs = append(errs, fmt.Errorf("api_hosts: %q is no host name: expected a name without scheme and port", h))
		}
	}
	if c.MaxFrame < 64<<10 {
		errs = append(errs, fmt.Errorf("serving.max_frame: %d bytes is under 64 KiB: a handful of rows would be refused", c.MaxFrame))
	}
	if c.Drain < 0 {
		errs = append(errs, fmt.Errorf("serving.drain: %v is negative", c.Drain))
	}
	return errors.Join(errs...)
}

// isLoopback tells whether a host of an address or of a request is this machine and no other.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
