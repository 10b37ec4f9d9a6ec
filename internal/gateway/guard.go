package gateway

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/kwaai/kwaaid/internal/api"
)

// guard keeps web pages away that the operator did not open: a page of another site may make a browser on this machine send requests
// (Origin tells), and may point its own name at this machine to read the answers (Host tells).
type guard struct {
	hosts map[string]bool // lower case, without port
	// tokenHash is compared instead of the token, so that the time says nothing about its length either.
	tokenHash [sha256.Size]byte
	hasToken  bool
}

func newGuard(cfg Config) guard {
	g := guard{hosts: map[string]bool{}, hasToken: cfg.Token != "", tokenHash: sha256.Sum256([]byte(cfg.Token))}
	for _, h := range cfg.Hosts {
		g.hosts[strings.ToLower(h)] = true
	}
	if host, _, err := net.SplitHostPort(cfg.API); err == nil && !isUnspecified(host) {
		g.hosts[strings.ToLower(host)] = true
	}
	return g
}

// isUnspecified tells whether host means every address of the machine.
func isUnspecified(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "" || (err == nil && ip.IsUnspecified())
}

// origin refuses a Host under which this node is not known, and an Origin that is not the page of that Host.
func (g guard) origin(r *http.Request) error {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.Trim(r.Host, "[]") // without port
	}
	if !g.known(r, host) {
		return api.NewError(codePermissionDenied, "unknown host "+quoted(host)+": add it to api_hosts if this node is meant", nil)
	}
	origins := r.Header.Values("Origin")
	for _, origin := range origins {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return api.NewError(codePermissionDenied, "requests of other sites' pages are refused; this one comes from "+quoted(origin), nil)
		}
	}
	return nil
}

// known tells whether host is this node: a loopback name, the address it listens on or was reached at, or a configured name.
func (g guard) known(r *http.Request, host string) bool {
	if isLoopback(host) || g.hosts[strings.ToLower(strings.TrimSuffix(host, "."))] {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	// Nobody but us can have answered at the very address that this connection has on our side: it is no rebound name.
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap().WithZone("") == ip.Unmap().WithZone("")
}

// token refuses callers without the token, when there is one.
func (g guard) token(w http.ResponseWriter, r *http.Request) error {
	if g.allows(r.Header.Get("Authorization")) {
		return nil
	}
	w.Header().Set("WWW-Authenticate", "Bearer")
	return api.NewError(codeUnauthenticated, "send the node's api_token as `Authorization: Bearer TOKEN`", nil)
}

// allows tells whether the value of an Authorization field holds the token.
func (g guard) allows(authorization string) bool {
	if !g.hasToken {
		return true
	}
	scheme, token, _ := strings.Cut(authorization, " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return strings.EqualFold(scheme, "Bearer") && subtle.ConstantTimeCompare(got[:], g.tokenHash[:]) == 1
}

// quoted shortens and quotes what a stranger sent.
func quoted(s string) string {
	const most = 100 // enough to recognise it
	if len(s) > most {
		s = s[:most] + "..."
	}
	return `"` + strings.ToValidUTF8(s, "?") + `"`
}
