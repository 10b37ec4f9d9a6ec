package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/node"
	"github.com/kwaai/kwaaid/internal/npy"
)

// failure is the document of a failed command.
type failure struct {
	Error    *api.ErrorBody `json:"error"`
	Expert   string         `json:"expert"`
	Attempts []api.Attempt  `json:"attempts"`
}

func TestCommands_WrongUsageIsExitCodeTwoWithADocument(t *testing.T) {
	for name, args := range map[string][]string{
		"unknown command":       {"dance"},
		"unknown flag":          {"status", "--loudly"},
		"no name":               {"call"},
		"a name that is none":   {"call", "expert-042"},
		"a sign":                {"resolve", "+7"},
		"a bad digest":          {"call", "7", "--digest", "abc"},
		"an unknown codec":      {"call", "7", "--codec", "f8"},
		"stdout twice":          {"call", "7", "--output", "-"},
		"rows besides an input": {"call", "7", "--rows", "2", "--input", "x.npy"},
		"a missing input":       {"call", "7", "--input", "does-not-exist.npy"},
		"an empty batch":        {"call", "7", "--rows", "0"},
		"a row without experts": {"call", "mixtral-f32/0", "--top-k", "0"},
		"experts of an expert":  {"call", "7", "--top-k", "2"},
		"no multiaddr to join":  {"call", "7", "--bootstrap", "somewhere"},
		"nobody to join":        {"resolve", "7", "--bootstrap", "/ip4/127.0.0.1/tcp/7577"},
		"no swarm to join":      {"peers", "--swarm", "a/b", "--bootstrap", nobody},
		"no rows to bench":      {"bench", "7", "--rows", "0"},
		"a bad SPEC":            {"run", "--expert", "id=7,kind=magic"},
		"an unknown log level":  {"run", "--log-level", "loud"},
		"no node's address":     {"status", "--api", "nonsense"},
		"no port":               {"call", "7", "--api", "127.0.0.1:99999"},
		"no port to listen on":  {"run", "--api", "127.0.0.1:99999"},
	} {
		t.Run(name, func(t *testing.T) {
			o := kwaaid(t, append(args, "--json")...)
			require.Equal(t, exitUsage, o.code, "stdout: %s\nstderr: %s", o.stdout, o.stderr)
			doc := decode[failure](t, o)
			require.NotNil(t, doc.Error)
			require.Equal(t, "INVALID_ARGUMENT", doc.Error.Code)
			require.NotEmpty(t, doc.Error.Message)
		})
	}
}

func TestCommands_WithoutANodeSayHowToStartOne(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	for _, command := range [][]string{{"status"}, {"experts"}, {"peers"}, {"call", "7"}, {"resolve", "7"}, {"bench", "7"}, {"unload", "7"}, {"load", "id=7,kind=identity,hidden=8"}, {"healthcheck"}} {
		o := kwaaid(t, append([]string{"--json", "--api", addr}, command...)...)
		require.Equal(t, exitFailed, o.code, command)
		require.NotNil(t, decode[failure](t, o).Error, command)
		require.Contains(t, o.stderr, "no node at "+addr+"; start one with `kwaaid run`", command)
	}
}

// nobody is the address of a node that is not there.
const nobody = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"

func TestCommands_ThatCannotJoinSayWhomTheyTried(t *testing.T) {
	for _, command := range [][]string{{"call", "7"}, {"resolve", "7"}, {"experts"}, {"peers"}, {"bench", "7"}} {
		o := kwaaid(t, append(command, "--json", "--bootstrap", nobody)...)
		require.Equal(t, exitFailed, o.code, command)
		doc := decode[failure](t, o)
		require.Equal(t, "DIAL_FAILED", doc.Error.Code, command)
		require.Contains(t, doc.Error.Message, "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", command)
	}
}

// In a container KWAAI_API says both where the node listens and whom the health check asks.
func TestHealthcheck_AsksANodeThatListensOnAllAddresses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kwaaid.yaml")
	require.NoError(t, os.WriteFile(file, []byte("insecure: true\n"), 0o600))
	host := launchNode(t, "--config", file, "--api", "0.0.0.0:0")
	require.Eventually(t, func() bool { return kwaaid(t, "healthcheck", "--api", host.API).code == exitDone }, commandTimeout, 100*time.Millisecond)
	_, port, err := net.SplitHostPort(host.API)
	require.NoError(t, err)
	for _, addr := range []string{"0.0.0.0:" + port, ":" + port} {
		kwaaid(t, "healthcheck", "--api", addr).ok(t)
	}
}

func TestCommands_OfANode(t *testing.T) {
	host := startNode(t, "--expert", "id=7,kind=identity,hidden=16", "--expert", "id=8,kind=glu,hidden=16,inner=24,dtype=bf16,seed=5")
	caller := startNode(t, "--bootstrap", host.Addrs[0])
	at := func(args ...string) []string { return append(args, "--json", "--api", caller.API) }

	t.Run("call answers with shape, digest, hash and who", func(t *testing.T) {
		local := decode[api.CallResult](t, kwaaid(t, "call", "8", "--rows", "4", "--seed", "3", "--json", "--api", host.API).ok(t))
		remote := decode[api.CallResult](t, kwaaid(t, at("call", "expert-8", "--rows", "4", "--seed", "3")...).ok(t))
		require.Equal(t, api.WhereLocal, local.AnsweredBy.Where)
		require.Equal(t, api.WhereRemote, remote.AnsweredBy.Where)
		require.Equal(t, host.Peer, remote.AnsweredBy.Peer)
		require.Equal(t, []int{4, 16}, remote.Shape)
		require.Equal(t, local.SHA256, remote.SHA256)
		require.Equal(t, local.Digest, remote.Digest)
		require.Len(t, remote.Attempts, 1)
		require.Equal(t, "OK", remote.Attempts[0].Status)
		require.Positive(t, remote.MS)

		pinned := kwaaid(t, at("call", "8", "--digest", remote.Digest)...).ok(t)
		require.Equal(t, remote.Digest, decode[api.CallResult](t, pinned).Digest)
		other := kwaaid(t, at("call", "8", "--digest", strings.Repeat("ab", 32))...)
		require.Equal(t, exitFailed, other.code)
		require.Equal(t, "DIGEST_MISMATCH", decode[failure](t, other).Error.Code)
		require.Equal(t, "expert-8", decode[failure](t, other).Expert)
		own := kwaaid(t, "call", "8", "--digest", strings.Repeat("ab", 32), "--json", "--api", host.API)
		require.Equal(t, "DIGEST_MISMATCH", decode[failure](t, own).Error.Code, "a host with other weights")
	})
	t.Run("call takes one, two and three dimensions, from stdin to stdout", func(t *testing.T) {
		for _, shape := range [][]int{{16}, {2, 16}, {2, 3, 16}} {
			n := 1
			for _, d := range shape {
				n *= d
			}
			x := make([]float32, n)
			for i := range x {
				x[i] = float32(i) / 7
			}
			var in strings.Builder
			require.NoError(t, npy.Write(&in, shape, x))
			o := kwaaidWith(t, nil, in.String(), "call", "7", "--input", "-", "--output", "-", "--api", caller.API).ok(t)
			gotShape, got, err := npy.Read(strings.NewReader(o.stdout), maxInput)
			require.NoError(t, err)
			require.Equal(t, shape, gotShape)
			require.Equal(t, x, got)
		}
	})
	t.Run("call in half precision is close, not exact", func(t *testing.T) {
		for _, codec := range []string{"bf16", "f16"} {
			kwaaid(t, at("call", "8", "--rows", "2", "--codec", codec)...).ok(t)
		}
	})
	t.Run("bad input gets INVALID_ARGUMENT, and the next call works", func(t *testing.T) {
		for name, x := range map[string][]float32{"hidden": make([]float32, 15), "nan": append(make([]float32, 15), float32(math.NaN()))} {
			path := filepath.Join(t.TempDir(), name+".npy")
			f, err := os.Create(path)
			require.NoError(t, err)
			require.NoError(t, npy.Write(f, []int{1, len(x)}, x))
			require.NoError(t, f.Close())
			o := kwaaid(t, at("call", "7", "--input", path)...)
			require.Equal(t, exitFailed, o.code, name)
			require.Equal(t, "INVALID_ARGUMENT", decode[failure](t, o).Error.Code, name)
		}
		kwaaid(t, at("call", "7")...).ok(t)
	})
	t.Run("more rows than a frame holds are refused, however many", func(t *testing.T) {
		for _, rows := range []string{"5000000", "4611686018427387905", "9223372036854775807"} {
			o := kwaaid(t, at("call", "7", "--rows", rows)...)
			require.Equal(t, exitFailed, o.code, rows)
			require.Equal(t, "RESOURCE_EXHAUSTED", decode[failure](t, o).Error.Code, rows)
		}
	})
	t.Run("an unknown expert is NOT_FOUND", func(t *testing.T) {
		o := kwaaid(t, at("call", "99")...)
		require.Equal(t, exitFailed, o.code)
		require.Equal(t, "NOT_FOUND", decode[failure](t, o).Error.Code)
	})
	t.Run("resolve lists in the order of its arguments", func(t *testing.T) {
		o := kwaaid(t, at("resolve", "8", "7")...).ok(t)
		list := decode[[]api.Resolved](t, o)
		require.Len(t, list, 2)
		require.Equal(t, "expert-8", list[0].Expert.String())
		require.Len(t, list[1].Providers, 1)
		require.Equal(t, host.Peer, list[1].Providers[0].Peer)
		require.Equal(t, "closed", list[1].Providers[0].Breaker)
		require.True(t, strings.HasPrefix(list[0].Key, "b"))

		o = kwaaid(t, at("resolve", "7", "99")...)
		require.Equal(t, exitFailed, o.code)
		require.Len(t, decode[[]api.Resolved](t, o), 2)
	})
	t.Run("status, experts and peers", func(t *testing.T) {
		s := decode[api.Status](t, kwaaid(t, "status", "--json", "--api", host.API).ok(t))
		require.Equal(t, host.Peer, s.Peer)
		require.True(t, s.Ready)
		require.Equal(t, api.ExpertCounts{Hosted: 2, Ready: 2, Announced: 2}, s.Experts)
		require.Equal(t, "server", s.DHT)
		require.NotEmpty(t, s.Addrs)
		require.NotContains(t, s.Addrs[0], "/p2p/")

		experts := decode[[]api.Expert](t, kwaaid(t, at("experts")...).ok(t))
		require.Len(t, experts, 2)
		require.Equal(t, "glu", experts[1].Kind)
		require.Equal(t, 16, experts[1].Hidden)
		require.Equal(t, "bf16", experts[1].DType)
		require.Equal(t, api.WhereRemote, experts[1].Where)
		require.Equal(t, 1, experts[1].Providers)

		peers := decode[[]api.Peer](t, kwaaid(t, at("peers")...).ok(t))
		require.Len(t, peers, 1)
		require.Equal(t, host.Peer, peers[0].Peer)
		require.Equal(t, 2, peers[0].Experts)
	})
	t.Run("a client without a node joins for one command", func(t *testing.T) {
		o := kwaaid(t, "call", "7", "--rows", "2", "--json", "--bootstrap", host.Addrs[0]).ok(t)
		require.Equal(t, host.Peer, decode[api.CallResult](t, o).AnsweredBy.Peer)
		kwaaid(t, "resolve", "7", "8", "--bootstrap", host.Addrs[0]).ok(t)
		kwaaid(t, "bench", "7", "--calls", "20", "--json", "--bootstrap", host.Addrs[0]).ok(t)
	})
	t.Run("bench counts what it did", func(t *testing.T) {
		r := decode[api.BenchResult](t, kwaaid(t, at("bench", "7", "8", "--rows", "3", "--clients", "4", "--calls", "25")...).ok(t))
		require.Equal(t, 100, r.Calls)
		require.Zero(t, r.Errors)
		require.Greater(t, r.BytesPerCall, float64(2*3*16*4))
		require.Positive(t, r.P99MS)
		require.Positive(t, r.SamplesPerS)
		l := decode[api.BenchResult](t, kwaaid(t, "bench", "8", "--local", "--calls", "50", "--json", "--api", host.API).ok(t))
		require.NotNil(t, l.GFLOPS)
		require.NotNil(t, l.OfLimit)
	})
	t.Run("load and unload while it runs", func(t *testing.T) {
		o := kwaaid(t, "load", "id=21,kind=mlp,hidden=16,inner=32,seed=1", "--json", "--api", host.API).ok(t)
		list := decode[api.ExpertList](t, o)
		require.Len(t, list.Experts, 1)
		require.Equal(t, "ready", string(list.Experts[0].State))
		kwaaid(t, at("call", "21")...).ok(t)
		again := kwaaid(t, "load", "id=21,kind=identity,hidden=16", "--json", "--api", host.API)
		require.Equal(t, exitFailed, again.code, "a second expert under one ID")
		missing := kwaaid(t, "load", "checkpoint="+filepath.Join(t.TempDir(), "nothing"), "--json", "--api", host.API)
		require.Equal(t, exitFailed, missing.code)
		require.Equal(t, "INVALID_ARGUMENT", decode[failure](t, missing).Error.Code)
		require.Contains(t, missing.stderr, "config.json")
		large := kwaaid(t, "load", "id=22,kind=glu,hidden=1048576,inner=1048576,seed=1", "--json", "--api", host.API)
		require.Equal(t, exitFailed, large.code, "more than any machine has")
		require.Equal(t, "RESOURCE_EXHAUSTED", decode[failure](t, large).Error.Code)
		kwaaid(t, "unload", "21", "--json", "--api", host.API).ok(t)
		gone := kwaaid(t, "call", "21", "--json", "--api", host.API)
		require.Equal(t, exitFailed, gone.code)
	})
	t.Run("load says how far it is", func(t *testing.T) {
		dir, err := filepath.Abs(filepath.Join(fixtures, "moe", "mixtral-f32"))
		require.NoError(t, err)
		for spec, want := range map[string]api.LoadProgress{
			"id=23,kind=glu,hidden=16,inner=32,seed=1":    {Name: "expert-23", Total: 1, BytesTotal: 3 * 16 * 32 * 4},
			"checkpoint=" + dir + ",layers=0,experts=0-2": {Name: "mixtral-f32", Total: 3},
		} {
			var heard []api.LoadProgress
			list, err := host.Client.Load(t.Context(), api.LoadRequest{Spec: spec}, func(p api.LoadProgress) { heard = append(heard, p) })
			require.NoError(t, err, spec)
			require.Len(t, list.Experts, want.Total)
			require.GreaterOrEqual(t, len(heard), 2, "at the start and at the end")
			first, last := heard[0], heard[len(heard)-1]
			require.Equal(t, want.Name, first.Name)
			require.Equal(t, want.Total, first.Total)
			require.Zero(t, first.Done)
			require.Zero(t, first.Bytes)
			if want.BytesTotal != 0 {
				require.Equal(t, want.BytesTotal, first.BytesTotal)
			}
			require.Equal(t, want.Total, last.Done)
			require.Positive(t, last.BytesTotal)
			require.Equal(t, last.BytesTotal, last.Bytes)
			require.Positive(t, last.TookS)
			for _, e := range list.Experts {
				_, err := host.Client.Unload(t.Context(), e.Expert.String())
				require.NoError(t, err)
			}
		}
	})
	t.Run("healthcheck", func(t *testing.T) {
		o := kwaaid(t, "healthcheck", "--json", "--api", host.API).ok(t)
		require.JSONEq(t, `{"ready":true}`, o.stdout)
	})
	t.Run("people's output", func(t *testing.T) {
		for _, args := range [][]string{{"status"}, {"experts"}, {"peers"}, {"resolve", "7"}, {"call", "7"}, {"bench", "7", "--calls", "5"}} {
			o := kwaaid(t, append(args, "--api", caller.API)...).ok(t)
			require.NotEmpty(t, o.stdout, args)
			require.False(t, json.Valid([]byte(o.stdout)), args)
		}
	})
	t.Run("noise on a port changes nothing", func(t *testing.T) {
		for _, addr := range []string{host.API, host.GRPC, tcpAddr(t, host.Addrs[0])} {
			conn, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			_, _ = conn.Write([]byte("\x00\xff\x13noise\r\n\r\n" + strings.Repeat("\xee", 1<<12)))
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
			_ = conn.Close()
		}
		kwaaid(t, at("call", "7")...).ok(t)
	})
}

func TestCall_WithoutInputDrawsRowsForWhoeverStandsIn(t *testing.T) {
	host := startNode(t, "--expert", "id=43,kind=identity,hidden=16")
	file := filepath.Join(t.TempDir(), "kwaaid.yaml")
	require.NoError(t, os.WriteFile(file, []byte("fallbacks: {expert-41: [expert-42, expert-43]}\n"), 0o600))
	caller := startNode(t, "--config", file, "--bootstrap", host.Addrs[0])
	res := decode[api.CallResult](t, kwaaid(t, "call", "41", "--json", "--api", caller.API).ok(t))
	require.Equal(t, api.WhereFallback, res.AnsweredBy.Where)
	require.Equal(t, "expert-43", res.AnsweredBy.Expert.String())
	require.Equal(t, "expert-41", res.Expert.String())
	require.Equal(t, []int{1, 16}, res.Shape)
}

// A frozen host takes connections and says nothing.
func TestCall_WithoutInputAsksTheHostsThatAnswerHowWideRowsAre(t *testing.T) {
	host := startNode(t, "--expert", "id=7,kind=identity,hidden=16")
	var remotes []string
	for range 4 {
		silent, err := net.Listen("tcp4", "127.0.0.1:0")
		require.NoError(t, err)
		defer silent.Close()
		id := decode[identityDoc](t, kwaaid(t, "identity", "--data", t.TempDir(), "--json").ok(t)).Peer
		remotes = append(remotes, fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", silent.Addr().(*net.TCPAddr).Port, id))
	}
	file := filepath.Join(t.TempDir(), "kwaaid.yaml")
	require.NoError(t, os.WriteFile(file, []byte("remotes: {expert-7: ["+strings.Join(append(remotes, host.Addrs[0]), ", ")+"]}\n"), 0o600))
	caller := startNode(t, "--config", file)
	res := decode[api.CallResult](t, kwaaid(t, "call", "7", "--json", "--api", caller.API).ok(t))
	require.Equal(t, host.Peer, res.AnsweredBy.Peer)
}

// The frozen peer is in the routing table of the one to join by: a complete walk of the DHT waits for it.
func TestCall_WithoutInputWaitsForNobodyOnceAHostIsFound(t *testing.T) {
	host := startNode(t, "--expert", "id=7,kind=identity,hidden=16")
	frozen := startNode(t, "--bootstrap", host.Addrs[0])
	require.Eventually(t, func() bool {
		s, err := host.Client.Status(t.Context())
		return err == nil && s.Peers > 0
	}, 20*time.Second, 20*time.Millisecond)
	require.NoError(t, frozen.Freeze())
	res := decode[api.CallResult](t, kwaaid(t, "call", "7", "--json", "--bootstrap", host.Addrs[0]).ok(t))
	require.Equal(t, host.Peer, res.AnsweredBy.Peer)
}

// tcpAddr returns HOST:PORT of /ip4/HOST/tcp/PORT/...
func tcpAddr(t testing.TB, multiaddr string) string {
	t.Helper()
	parts := strings.Split(multiaddr, "/")
	require.Greater(t, len(parts), 4)
	return net.JoinHostPort(parts[2], parts[4])
}

func TestIdentity_MakesAKeyOnceAndImportsAnother(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	first := decode[identityDoc](t, kwaaid(t, "identity", "--data", a, "--json").ok(t))
	again := decode[identityDoc](t, kwaaid(t, "identity", "--data", a, "--json").ok(t))
	require.Equal(t, first, again)
	moved := decode[identityDoc](t, kwaaid(t, "identity", "--data", b, "--import", first.Path, "--json").ok(t))
	require.Equal(t, first.Peer, moved.Peer)
	require.NotEqual(t, exitDone, kwaaid(t, "identity", "--data", b, "--import", first.Path).code, "a key is there already")
}

func TestConfig_ChecksAFileAndPrintsTheDefaults(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	o := kwaaid(t, "config", "default").ok(t)
	require.NoError(t, os.WriteFile(good, []byte(o.stdout), 0o600))
	kwaaid(t, "config", "check", good).ok(t)

	require.NoError(t, os.WriteFile(bad, []byte("swarm: kwaai\nlisen: []\ncalls: {timeout: -1s}\n"), 0o600))
	o = kwaaid(t, "config", "check", bad, "--json")
	require.Equal(t, exitUsage, o.code)
	doc := decode[checkDoc](t, o)
	require.Len(t, doc.Errors, 2)
	require.Equal(t, 2, doc.Errors[0].Line)
	require.Equal(t, "calls.timeout", doc.Errors[1].Path)
	require.Equal(t, 3, doc.Errors[1].Line)
}

func TestVersion_NamesCommitGoAndLibp2p(t *testing.T) {
	v := decode[versionDoc](t, kwaaid(t, "version", "--json").ok(t))
	require.NotEmpty(t, v.Version)
	require.NotEmpty(t, v.Go)
	require.True(t, strings.HasPrefix(v.Libp2p, "v"), fmt.Sprint(v))
}

func TestRun_SaysNothingOfAddressesThatItDoesNotHave(t *testing.T) {
	var out strings.Builder
	a := &app{cli: &cli{}, stdout: &out}
	a.announceNode(node.Up{Peer: "peer-a"}, zerolog.Nop()) // listen: [], api: ""
	require.Equal(t, "kwaaid "+version()+" is up as peer-a\n", out.String())
}
