package doctor

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kwaai/kwaaid/internal/expert"
)

const (
	// filesBeside is what a node holds open beside its connections: listeners, data files, checkpoints, HTTP and gRPC clients.
	filesBeside = 256
	// slowWalk: a walk takes a few round trips; where it takes longer, most of those whom the routing table names do not answer.
	slowWalk = 3000.0
	// shownExperts bounds how many failures a line names.
	shownExperts = 3
	// quicBuffer is what QUIC wants for its sockets: with less, packets are lost at high rates.
	quicBuffer = 7_500_000
)

// addresses looks whether others can dial the node.
func (e *examination) addresses() Check {
	const name = "addresses"
	if e.checkup == nil {
		return e.needsNode(name)
	}
	told, reached, broken := e.checkup.Announced, 0, []string{}
	public, loopback, doubtful := false, len(told) > 0, 0
	for _, d := range e.dials {
		public = public || manet.IsPublicAddr(d.addr)
		loopback = loopback && manet.IsIPLoopback(d.addr)
		if d.err == nil {
			reached++
			continue
		}
		// Many routers do not let a machine dial itself by their own address, so a public one may be fine for everybody else.
		if manet.IsPublicAddr(d.addr) && !ownAddress(d.addr) {
			doubtful++
		}
		broken = append(broken, d.addr.String())
	}
	const own = "`announce` must name an address and a port that lead to this node; without it the addresses of the interfaces are told"
	switch {
	case len(told) == 0:
		return failed(name, "set `listen`, such as /ip4/0.0.0.0/tcp/7577", "the node tells nobody an address: it can call, and nobody can call it")
	case len(e.dials) == 0:
		return advice(name, "forward the port and set `announce`, or turn on nat.hole_punching: relays are slow and drop long calls", "others reach it through relays only")
	case reached == 0 && doubtful == len(broken) && e.status.Reachability == "public":
		return fine(name, "others have dialled this node; from this machine its public addresses cannot be tried")
	case reached == 0:
		return failed(name, own+"; is the port open in the firewall, and forwarded by the router?", "nobody answers as this node at any address that it tells others: %s", list(broken))
	case len(broken) > doubtful:
		return failed(name, own, "others are told addresses that do not lead to this node: %s", list(broken))
	case loopback && slices.ContainsFunc(e.checkup.Bootstrap, notLoopback):
		return failed(name, "set `listen` to /ip4/0.0.0.0/tcp/7577", "the node joins a swarm on other machines, and can be dialled from this one only: %s", list(told))
	case loopback:
		return advice(name, "if other machines are to call it: --listen /ip4/0.0.0.0/tcp/7577", "only this machine can dial it: %s", list(told))
	case doubtful > 0:
		return advice(name, "try from outside: `nc -vz ADDRESS PORT`", "%s could not be dialled from this machine, which routers often prevent; others may", list(broken))
	case e.status.Reachability == "private":
		return advice(name, "forward the port and set `announce`, or turn on nat.upnp, or nat.relay with nat.hole_punching", "nobody outside of this network can dial it: %s", list(told))
	case !public:
		return advice(name, "if machines elsewhere are to call it: forward the port and set `announce`", "only this network can dial it: %s", list(told))
	default:
		return fine(name, "%s", list(told))
	}
}

// notLoopback tells whether a bootstrap address is on another machine, as far as it shows.
func notLoopback(s string) bool {
	a, err := ma.NewMultiaddr(s)
	return err == nil && !manet.IsIPLoopback(a)
}

// ownAddress tells whether an interface of this machine has the address.
func ownAddress(a ma.Multiaddr) bool {
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}

// swarm looks whether the node has company.
func (e *examination) swarm() Check {
	const name = "swarm"
	switch {
	case e.checkup == nil:
		return e.needsNode(name)
	case e.status.Peers == 0 && len(e.checkup.Bootstrap) > 0:
		return failed(name, "is a bootstrap node up, its port open, its /p2p/ ID the present one, its `swarm` the same?", "no peer of %q is connected, though it has %d to join by", e.status.Swarm, len(e.checkup.Bootstrap))
	case e.status.Peers == 0:
		return advice(name, "to join others: --bootstrap with the address that one of them prints; or let them join by this one", "alone in %q", e.status.Swarm)
	default:
		return fine(name, "%d peers in %q, DHT %s", e.status.Peers, e.status.Swarm, e.status.DHT)
	}
}

// dht looks at the walk.
func (e *examination) dht() Check {
	const name = "DHT"
	if e.checkup == nil {
		return e.needsNode(name)
	}
	w := e.checkup.Walk
	switch {
	case w.Error != "":
		return failed(name, "nobody of the swarm can be asked: see swarm and addresses above", "a walk failed after %.0f ms: %s", w.MS, w.Error)
	case w.Peers == 0 && e.status.Peers > 0:
		return failed(name, "none of them serves this swarm's DHT: is `swarm` the same, is at least one not `dht: client`?", "%d peers are connected, and none is in the routing table", e.status.Peers)
	case w.Peers == 0:
		return skipped(name, "the node is alone")
	case w.MS > slowWalk:
		return advice(name, "many peers do not answer: is UDP blocked, are they behind routers with `dht: server`?", "a walk among %d peers took %.0f ms", w.Peers, w.MS)
	default:
		return fine(name, "a walk among %d peers took %.1f ms", w.Peers, w.MS)
	}
}

// experts looks how the node's own experts answer, and whether others can find them.
func (e *examination) experts() Check {
	const name = "experts"
	if e.checkup == nil {
		return e.needsNode(name)
	}
	var wrong []string
	asked, slowest := 0, 0.0
	for _, x := range e.checkup.Experts {
		who := x.Expert.String()
		if x.Name != "" {
			who = x.Name
		}
		if x.Error != "" {
			wrong = append(wrong, fmt.Sprintf("%s (%s): %s", who, x.State, x.Error))
		}
		if x.State == expert.StateReady {
			asked++
			slowest = max(slowest, x.MS)
		}
	}
	hosted, counts := len(e.checkup.Experts)+e.checkup.Left, e.status.Experts
	switch {
	case len(wrong) > 0:
		more := ""
		if n := len(wrong) - shownExperts; n > 0 {
			more = fmt.Sprintf("; and %d more", n)
		}
		return failed(name, "look at the log; `kwaaid unload NAME` and `kwaaid load SPEC` read it again; weights that changed in memory mean bad memory: test it",
			"%d of %d do not answer as they should: %s%s", len(wrong), hosted, list(wrong[:min(len(wrong), shownExperts)]), more)
	case hosted == 0:
		return fine(name, "it hosts none")
	case e.status.Peers > 0 && counts.Announced < counts.Ready:
		return failed(name, "a new expert takes a moment: try again; else nobody of the swarm takes its records: see DHT", "%d of %d ready experts are announced: others cannot find the rest", counts.Announced, counts.Ready)
	case e.checkup.Left > 0:
		return fine(name, "%d of %d were asked and answered as they should, the slowest in %.1f ms", asked, hosted, slowest)
	default:
		return fine(name, "all %d answer as they should, the slowest in %.1f ms", asked, slowest)
	}
}

// files looks at the limit of open files.
func (e *examination) files() Check {
	const name = "open files"
	const remedy = "LimitNOFILE=65536 in the unit, `ulimit -n 65536` in a shell, or lower limits.connections"
	if e.checkup == nil {
		return e.needsNode(name)
	}
	open, most, connections := e.checkup.OpenFiles, e.checkup.MaxFiles, e.checkup.Connections
	switch {
	case most < 0:
		return skipped(name, "this system does not tell")
	case most < connections+filesBeside:
		return failed(name, remedy, "the node may hold %d, and wants %d for limits.connections: %d and the rest", most, connections+filesBeside, connections)
	case open > most*9/10:
		return failed(name, remedy, "%d of %d are open", open, most)
	default:
		return fine(name, "%d of %d are open", max(open, 0), most)
	}
}

// memory looks whether the weights fit.
func (e *examination) memory() Check {
	const name = "memory"
	if !e.running {
		return e.needsNode(name)
	}
	m := e.status.Memory
	left := m.Budget - m.Weights
	switch {
	case m.Budget <= 0:
		return skipped(name, "the node does not know how much it may take")
	case left < m.Budget/20:
		return advice(name, "host fewer experts, give the cgroup more (MemoryMax), or raise serving.memory", "weights take %s of %s that they may", size(m.Weights), size(m.Budget))
	default:
		return fine(name, "weights take %s of %s that they may", size(m.Weights), size(m.Budget))
	}
}

func size(n int64) string { return bytesText(uint64(max(n, 0))) }

// buffers looks whether the kernel gives QUIC the buffers that it wants.
func (e *examination) buffers() Check {
	const name = "UDP buffers"
	listen := []string{}
	switch {
	case e.checkup != nil:
		listen = e.checkup.Listen
	case e.Config != nil:
		listen = e.Config.Listen
	}
	if !slices.ContainsFunc(listen, func(a string) bool { return strings.Contains(a, "/quic") }) {
		return skipped(name, "the node does not listen with QUIC")
	}
	least := quicBuffer
	for _, file := range []string{"/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max"} {
		data, err := os.ReadFile(file)
		if err != nil {
			return skipped(name, "this system does not tell")
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil {
			return skipped(name, "this system does not tell")
		}
		least = min(least, n)
	}
	if least < quicBuffer {
		return advice(name, fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", quicBuffer, quicBuffer),
			"the kernel allows %s, QUIC wants %s: it loses packets at high rates", size(int64(least)), size(quicBuffer))
	}
	return fine(name, "at least %s", size(quicBuffer))
}
