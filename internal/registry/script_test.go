package registry

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// TestScripts runs testdata/*.txt: stories of who is asked and why. Times are since the start of a file; a command without at=
// happens when the one before it did. Of three or more providers the first one is drawn in thousandths. The commands:
//
//	provide EXPERT PEER... [source=dht|static|cache]
//	forget EXPERT PEER
//	fallbacks EXPERT EXPERT... [hidden=N]    sets them, and prints those that may be used
//	pick EXPERT [dice=(..)] [rows=N] [digest=x] [tried=(..)] [shared=(..)] [stale] [ping] [meet] [desperate]
//	report PEER KIND [took=D] [retry-after=D] [queued=N] [service=D] [digest=x] [hidden=N]    the peer's oldest pick
//	connect|disconnect|unreached|drain|pong|miss PEER [rtt=D]
//	blame EXPERT PEER | convict PEER
//	describe PEER EXPERT... [digest=x] [name=NAME] [hidden=N] [draining]
//	found EXPERT PEER...                     what a look-up found
//	absent EXPERT                            whether the last one found nobody
//	slow EXPERT [rows=N]
//	experts | providers EXPERT | peers
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newScript(DefaultLimits())
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			return s.run(t, d)
		})
	})
}

type script struct {
	table *Table
	start time.Time
	now   time.Time
	picks []Pick // not reported yet, the oldest first
}

func newScript(limits Limits) *script {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &script{table: New(limits, start), start: start, now: start}
}

// scriptDice plays a list of throws; beyond its end it throws 0.
type scriptDice struct{ throws []int }

func (d *scriptDice) IntN(n int) int {
	if len(d.throws) == 0 {
		return 0
	}
	throw := d.throws[0]
	d.throws = d.throws[1:]
	return min(throw, n-1)
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	names, args := split(d)
	if at, ok := args["at"]; ok {
		s.now = s.start.Add(duration(t, at[0]))
	}
	switch d.Cmd {
	case "provide":
		for _, p := range names[1:] {
			require.True(t, s.table.AddProvider(expertID(t, names[0]), peer.ID(p), source(args), s.now))
		}
		return ""
	case "forget":
		s.table.RemoveProvider(expertID(t, names[0]), peer.ID(names[1]))
		return ""
	case "fallbacks":
		var list []expert.ID
		for _, n := range names[1:] {
			list = append(list, expertID(t, n))
		}
		s.table.SetFallbacks(expertID(t, names[0]), list)
		return fmt.Sprintln(s.table.Fallbacks(expertID(t, names[0]), number(t, args, "hidden", 0)))
	case "pick":
		return s.pick(t, names, args)
	case "report":
		return s.report(t, names, args)
	case "connect":
		s.table.Connected(peer.ID(names[0]), s.now)
	case "disconnect":
		s.table.Disconnected(peer.ID(names[0]), s.now)
	case "unreached":
		s.table.Unreached(peer.ID(names[0]), s.now)
	case "drain":
		s.table.Drained(peer.ID(names[0]), s.now)
	case "pong":
		s.table.Ponged(peer.ID(names[0]), durationOf(t, args, "rtt"), s.now)
	case "miss":
		s.table.PingMissed(peer.ID(names[0]), s.now)
	case "blame":
		s.table.Blame(expertID(t, names[0]), peer.ID(names[1]), s.now)
	case "convict":
		return fmt.Sprintln("shut out for", s.table.Convict(peer.ID(names[0]), s.now))
	case "describe":
		s.describe(t, names, args)
	case "found":
		var found []peer.ID
		for _, p := range names[1:] {
			found = append(found, peer.ID(p))
		}
		s.table.LookedUp(expertID(t, names[0]), found, s.now)
	case "absent":
		age, ok := s.table.AbsentSince(expertID(t, names[0]), s.now)
		return fmt.Sprintln(age, ok)
	case "slow":
		slow, ok := s.table.Slow(expertID(t, names[0]), number(t, args, "rows", 1))
		return fmt.Sprintln(slow.Round(10*time.Microsecond), ok)
	case "experts", "providers", "peers":
		return s.view(t, d.Cmd, names)
	default:
		t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	}
	return ""
}

func (s *script) pick(t *testing.T, names []string, args map[string][]string) string {
	q := Query{Expert: expertID(t, names[0]), Rows: number(t, args, "rows", 1), Digest: digest(args)}
	for _, p := range args["tried"] {
		q.Tried = append(q.Tried, peer.ID(p))
	}
	_, q.Desperate = args["desperate"]
	for _, p := range args["shared"] {
		q.Shared = append(q.Shared, peer.ID(p))
	}
	dice := &scriptDice{}
	for _, throw := range args["dice"] {
		n, err := strconv.Atoi(throw)
		require.NoError(t, err)
		dice.throws = append(dice.throws, n)
	}
	pick, err := s.table.Pick(q, s.now, dice)
	if err != nil {
		require.ErrorIs(t, err, ErrNone)
		var none *NoneError
		require.ErrorAs(t, err, &none)
		if none.Soonest > 0 {
			return fmt.Sprintf("%v; the first in %v\n", err, none.Soonest)
		}
		return fmt.Sprintln(err)
	}
	s.picks = append(s.picks, pick)
	line := string(pick.Peer)
	if pick.probePeer || pick.probeStats {
		line += " as a probe"
	}
	if _, told := args["stale"]; told {
		line += fmt.Sprint(", stale: ", pick.Stale)
	}
	if _, told := args["ping"]; told && pick.Ping != "" {
		line += ", and " + string(pick.Ping) + " is to be pinged"
	}
	if _, told := args["meet"]; told {
		var met []string
		for _, p := range pick.Meet {
			if p != "" {
				met = append(met, string(p))
			}
		}
		if len(met) > 0 {
			line += ", and to be met: " + strings.Join(met, ", ")
		}
	}
	if !pick.Digest.IsZero() {
		line += " for digest " + letter(pick.Digest)
	}
	return line + "\n"
}

func (s *script) report(t *testing.T, names []string, args map[string][]string) string {
	kinds := map[string]Kind{
		"answered": Answered, "suspect": Suspect, "overloaded": Overloaded, "not-ready": NotReady, "not-found": NotFound,
		"mismatch": Mismatch, "refused": Refused, "failed": Failed, "timed-out": TimedOut, "broken": Broken,
		"unreachable": Unreachable, "garbled": Garbled, "cancelled": Cancelled,
	}
	kind, ok := kinds[names[1]]
	require.True(t, ok, "unknown kind %s", names[1])
	for i, pick := range s.picks {
		if pick.Peer != peer.ID(names[0]) {
			continue
		}
		s.picks = append(s.picks[:i], s.picks[i+1:]...)
		s.table.Report(pick, Outcome{
			Kind: kind, Took: durationOf(t, args, "took"), RetryAfter: durationOf(t, args, "retry-after"), Digest: digest(args),
			Load:   expert.Load{QueuedRows: number(t, args, "queued", 0), ServiceTime: durationOf(t, args, "service")},
			Hidden: number(t, args, "hidden", 0),
		}, s.now)
		return ""
	}
	return "no such pick is under way\n"
}

func (s *script) describe(t *testing.T, names []string, args map[string][]string) {
	_, draining := args["draining"]
	d := expert.Description{Draining: draining}
	for _, n := range names[1:] {
		h := expert.Hosted{ID: expertID(t, n), State: expert.StateReady, Spec: expert.Spec{
			Kind: "glu", DType: "bf16", Hidden: number(t, args, "hidden", 8), Digest: digest(args), Numerics: "exact-1",
		}}
		if name, ok := args["name"]; ok {
			h.Name = name[0]
		}
		d.Experts = append(d.Experts, h)
	}
	s.table.Described(peer.ID(names[0]), d, s.now)
}

func (s *script) view(t *testing.T, what string, names []string) string {
	var b strings.Builder
	switch what {
	case "experts":
		for _, e := range s.table.Experts(s.now) {
			fmt.Fprintf(&b, "%v %q %s hidden=%d digest=%s %s, %d of %d reachable\n",
				e.ID, e.Name, e.Kind, e.Hidden, letter(e.Digest), e.State, e.Reachable, e.Providers)
		}
	case "providers":
		for _, p := range s.table.Providers(expertID(t, names[0]), s.now) {
			fmt.Fprintf(&b, "%s %v, heard of %v ago, %v, success %.2f, %d under way", string(p.Peer), p.Source, p.Age, p.Breaker, p.Success, p.Inflight)
			if p.Resting > 0 {
				fmt.Fprintf(&b, ", resting for %v", p.Resting)
			}
			if p.Other {
				b.WriteString(", other weights")
			}
			b.WriteString("\n")
		}
	case "peers":
		for _, p := range s.table.Peers(s.now) {
			fmt.Fprintf(&b, "%s %v, %v, success %.2f, %d under way, provides %d", string(p.Peer), p.Verdict, p.Breaker, p.Success, p.Inflight, p.Experts)
			if p.Connected {
				b.WriteString(", connected")
			}
			if p.Draining {
				b.WriteString(", draining")
			}
			if p.Resting > 0 {
				fmt.Fprintf(&b, ", resting for %v", p.Resting)
			}
			if p.ShutOut > 0 {
				fmt.Fprintf(&b, ", shut out for %v", p.ShutOut)
			}
			b.WriteString("\n")
		}
	}
	if b.Len() == 0 {
		return "none\n"
	}
	return b.String()
}

// split returns the bare words of a command and its key=value arguments; a bare word that is a flag is in both.
func split(d *datadriven.TestData) ([]string, map[string][]string) {
	var names []string
	args := map[string][]string{}
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			args[a.Key] = nil
			if a.Key != "stale" && a.Key != "ping" && a.Key != "desperate" && a.Key != "draining" {
				names = append(names, a.Key)
			}
			continue
		}
		args[a.Key] = a.Vals
	}
	return names, args
}

func expertID(t *testing.T, s string) expert.ID {
	id, err := expert.ParseID(s)
	require.NoError(t, err)
	return id
}

func source(args map[string][]string) Source {
	switch s := args["source"]; {
	case s == nil, s[0] == "dht":
		return DHT
	case s[0] == "static":
		return Static
	default:
		return Cache
	}
}

func duration(t *testing.T, s string) time.Duration {
	d, err := time.ParseDuration(s)
	require.NoError(t, err)
	return d
}

func durationOf(t *testing.T, args map[string][]string, key string) time.Duration {
	if v, ok := args[key]; ok {
		return duration(t, v[0])
	}
	return 0
}

func number(t *testing.T, args map[string][]string, key string, otherwise int) int {
	v, ok := args[key]
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(v[0])
	require.NoError(t, err)
	return n
}

// digest reads a digest that scripts write as one letter.
func digest(args map[string][]string) (d expert.Digest) {
	if v, ok := args["digest"]; ok {
		for i := range d {
			d[i] = v[0][0]
		}
	}
	return d
}

func letter(d expert.Digest) string {
	if d.IsZero() {
		return "any"
	}
	return string(d[:1])
}

func TestNoneError_CountsTheReasons(t *testing.T) {
	err := error(&NoneError{Expert: 42, Known: 3, Tried: 1, Open: 2})
	require.EqualError(t, err, "of 3 providers of expert-42 none is left: 1 tried, 2 out of reach or failing")
	require.ErrorIs(t, err, ErrNone)
}
