package p2p

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/rs/zerolog"
)

// ListenError says which listen address could not be had.
type ListenError struct {
	Addr string // the multiaddr as configured
	Err  error
}

func (e *ListenError) Error() string {
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE):
		return fmt.Sprintf("listen %s: the port is taken by another process: stop it (another kwaaid?), or give this node another port with --listen", e.Addr)
	case errors.Is(e.Err, syscall.EACCES):
		return fmt.Sprintf("listen %s: not allowed: use a port above 1023, or give the process CAP_NET_BIND_SERVICE", e.Addr)
	case errors.Is(e.Err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("listen %s: this machine does not have that address: see `ip address`, or use 0.0.0.0", e.Addr)
	default:
		return fmt.Sprintf("listen %s: %v", e.Addr, e.Err)
	}
}

// Unwrap returns the cause.
func (e *ListenError) Unwrap() error { return e.Err }

// listen opens every address. libp2p's own Listen is content when one of several works, and would start a node that lacks the
// port that others know. Only a machine without IPv6 is forgiven the wildcard address of IPv6.
func listen(nw network.Network, addrs []ma.Multiaddr, log zerolog.Logger) error {
	var errs []error
	opened := 0
	for _, a := range addrs {
		err := probe(a)
		if err == nil {
			err = nw.Listen(a)
		}
		switch {
		case err == nil:
			opened++
		case isIP6Unspecified(a) && noSuchFamily(err):
			log.Info().Stringer("addr", a).Msg("no IPv6 on this machine")
		default:
			errs = append(errs, &ListenError{Addr: a.String(), Err: err})
		}
	}
	if len(errs) == 0 && opened == 0 && len(addrs) > 0 {
		return &ListenError{Addr: addrs[0].String(), Err: errors.New("this machine has no IPv6, and no other listen address is given")}
	}
	return errors.Join(errs...)
}

// Probe tries whether a listen address can be had now, and lets go of it again. The error is a *ListenError. As with New, a machine
// without IPv6 is forgiven the wildcard address of IPv6.
func Probe(addr string) error {
	a, err := ma.NewMultiaddr(addr)
	if err == nil {
		err = probe(a)
	}
	if err == nil || a != nil && isIP6Unspecified(a) && noSuchFamily(err) {
		return nil
	}
	return &ListenError{Addr: addr, Err: err}
}

// probe binds a TCP port for a moment without SO_REUSEPORT: libp2p sets that option for hole punching, and with it two nodes of
// one user would share a port in silence. For QUIC, and because libp2p's errors lose their cause, UDP ports are tried too.
func probe(a ma.Multiaddr) error {
	proto, addr, err := manet.DialArgs(a)
	if err != nil {
		return err
	}
	switch proto {
	case "tcp", "tcp4", "tcp6":
		l, err := net.Listen(proto, addr)
		if err != nil {
			return err
		}
		return l.Close()
	default:
		c, err := net.ListenPacket(proto, addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

func isIP6Unspecified(a ma.Multiaddr) bool {
	return hasProtocol(a, ma.P_IP6) && manet.IsIPUnspecified(a)
}

// noSuchFamily tells whether the kernel lacks IPv6, as many containers do.
func noSuchFamily(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}
