package config

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// rewrite puts the messages that bad files get now into the files, for a look at the difference.
var rewrite = flag.Bool("rewrite", false, "rewrite what testdata/*.bad.yml expect")

// wantPrefix starts the lines at the end of a bad file that say what is wrong with it.
const wantPrefix = "#! "

// env is an environment with a home, as every process has.
func env(variables ...string) []string { return append(variables, "HOME=/home/ada") }

// load loads a file with the given text, the environment and the overrides.
func load(t *testing.T, text string, environ []string, overrides ...Override) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kwaaid.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return Load(path, environ, overrides...)
}

func TestLoad_BadFilesGetTheirMessages(t *testing.T) {
	files, err := filepath.Glob("testdata/*.bad.yml")
	require.NoError(t, err)
	require.Greater(t, len(files), 40)
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".bad.yml"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			_, err = Load(path, env())
			var problems Problems
			require.ErrorAs(t, err, &problems)
			var got strings.Builder
			for _, p := range problems {
				fmt.Fprintf(&got, "%s%d: %s: %s\n", wantPrefix, p.Line, p.Path, p.Message)
				require.Contains(t, []string{path, "default"}, p.Source)
			}
			input, want := splitWanted(string(text))
			if *rewrite {
				require.NoError(t, os.WriteFile(path, []byte(input+got.String()), 0o600))
				return
			}
			require.Equal(t, want, got.String())
		})
	}
}

// splitWanted takes a bad file apart: what is wrong, and what it says about that.
func splitWanted(text string) (input, want string) {
	if i := strings.Index(text, wantPrefix); i >= 0 {
		return text[:i], text[i:]
	}
	return text, ""
}

func TestLoad_WithoutAnythingIsDefault(t *testing.T) {
	got, err := Load("", env())
	require.NoError(t, err)
	want := Default()
	want.Data = "/home/ada/.local/share/kwaaid"
	require.Equal(t, want, got)
}

func TestLoad_EmptyFileIsDefault(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing but a comment\n", "---\n", "calls:\nlisten:\n"} {
		got, err := load(t, text, env())
		require.NoError(t, err, "%q", text)
		require.Equal(t, Default().Calls, got.Calls)
		require.Equal(t, Default().Listen, got.Listen)
	}
}

func TestLoad_KeysLeftOutKeepTheirDefaults(t *testing.T) {
	got, err := load(t, "calls: {timeout: 2s}\n", env())
	require.NoError(t, err)
	require.Equal(t, 2*time.Second, got.Calls.Timeout)
	require.Equal(t, 3, got.Calls.MaxRetries)
	require.True(t, got.Calls.Hedge)
}

func TestLoad_FlagsGoBeforeEnvironmentBeforeFile(t *testing.T) {
	const file = "swarm: file\nlog: {level: warn}\ncalls: {timeout: 1s, max_retries: 1, codec: f16}\n"
	got, err := load(t, file, env("KWAAI_CALLS__TIMEOUT=2s", "KWAAI_CALLS__MAX_RETRIES=2", "KWAAI_LOG__LEVEL=error"),
		Override{Path: "calls.timeout", Values: []string{"3s"}, Source: "--timeout"},
		Override{Path: "log.level", Values: []string{"debug"}, Source: "--log-level"})
	require.NoError(t, err)
	require.Equal(t, "file", got.Swarm)
	require.Equal(t, Calls{Timeout: 3 * time.Second, MaxRetries: 2, Hedge: true, Codec: "f16", Combine: "caller"}, got.Calls)
	require.Equal(t, "debug", got.Log.Level)
}

func TestLoad_EnvironmentReadsListsMapsAndSections(t *testing.T) {
	got, err := Load("", env(
		"KWAAI_LISTEN=/ip4/127.0.0.1/tcp/0, /ip4/127.0.0.1/udp/0/quic-v1",
		"KWAAI_ANNOUNCE=",
		"KWAAI_FALLBACKS={42: [expert-43, m/3/17]}",
		"KWAAI_EXPERTS=[{id: 7, kind: identity, hidden: 16}, 'id=8,kind=identity,hidden=16']",
		"KWAAI_SERVING={drain: 3s, max_frame: 1MiB}",
		"KWAAI_API_TOKEN=0042",
		"KWAAI_NAT__UPNP=true",
		"KWAAI_CHECKS__SHARE=0.5",
	))
	require.NoError(t, err)
	require.Equal(t, []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}, got.Listen)
	require.Empty(t, got.Announce)
	ref, err := expert.ParseRef("m/3/17")
	require.NoError(t, err)
	require.Equal(t, Fallbacks{{ID: 42}: {{ID: 43}, {ID: ref.ID, Name: "m/3/17"}}}, got.Fallbacks)
	require.Len(t, got.Experts, 2)
	require.Equal(t, expert.ID(8), *got.Experts[1].ID)
	require.Equal(t, 3*time.Second, got.Serving.Drain)
	require.Equal(t, Size(1<<20), got.Serving.MaxFrame)
	require.Equal(t, 4096, got.Serving.MaxRows)
	require.Equal(t, "0042", got.APIToken)
	require.True(t, got.NAT.UPnP)
	require.InDelta(t, 0.5, got.Checks.Share, 0)
}

func TestLoad_UnknownVariableIsAnErrorThatNamesIt(t *testing.T) {
	_, err := Load("", env("KWAAI_CALLS__TIME_OUT=2s", "KWAAI_SWARN=x", "KWAAI_SWARM__NAME=x"))
	var problems Problems
	require.ErrorAs(t, err, &problems)
	require.Equal(t, Problems{
		{Path: "calls.time_out", Source: "KWAAI_CALLS__TIME_OUT", Message: "unknown key: did you mean timeout?"},
		{Path: "swarm.name", Source: "KWAAI_SWARM__NAME", Message: "unknown key: nothing lies below"},
		{Path: "swarn", Source: "KWAAI_SWARN", Message: "unknown key: did you mean swarm?"},
	}, problems)
}

func TestLoad_ServiceLinksOfContainersAreNotOurs(t *testing.T) {
	_, err := Load("", env(
		"KWAAI_SERVICE_HOST=10.0.0.1", "KWAAI_SERVICE_PORT=7575", "KWAAI_SERVICE_PORT_HTTP=7575", "KWAAI_PORT=tcp://10.0.0.1:7575",
		"KWAAI_PORT_7575_TCP_ADDR=10.0.0.1", "KWAAI_NODE_SERVICE_HOST=10.0.0.1", "KWAAI_NODE_PORT_7575_TCP=tcp://10.0.0.1:7575"))
	require.NoError(t, err)
}

func TestLoad_ValuesThatCannotBeReadNameTheirSource(t *testing.T) {
	_, err := Load("", env("KWAAI_CALLS__TIMEOUT=soon", "KWAAI_CALLS__HEDGE=", "KWAAI_FALLBACKS={42"),
		Override{Path: "serving.drain", Values: []string{"10ms"}, Source: "--drain"},
		Override{Path: "experts", Values: []string{"id=7,kind=identity"}, Source: "--expert"},
		Override{Path: "nothing", Values: []string{""}, Source: "--nothing"})
	var problems Problems
	require.ErrorAs(t, err, &problems)
	require.Equal(t, []string{
		`KWAAI_CALLS__HEDGE: calls.hedge: expected true or false, got ""`,
		`KWAAI_CALLS__TIMEOUT: calls.timeout: expected a duration such as 5s or 1m30s, got "soon"`,
		`KWAAI_FALLBACKS: fallbacks: not YAML: did not find expected ',' or '}'`,
		`--nothing: nothing: unknown key: expected ` + list(keysOf(reflectTypeOfConfig)),
		`--expert: experts[0].hidden: missing: how wide is a row?`,
		`--drain: serving.drain: 10ms is under 1s: passes under way would be cut off`,
	}, strings.Split(problems.Error(), "\n"))
}

func TestLoad_FileIsNamedByFlagOrEnvironment(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.yaml"), filepath.Join(dir, "two.yaml")
	require.NoError(t, os.WriteFile(one, []byte("swarm: one"), 0o600))
	require.NoError(t, os.WriteFile(two, []byte("swarm: two"), 0o600))
	got, err := Load("", env("KWAAI_CONFIG="+two))
	require.NoError(t, err)
	require.Equal(t, "two", got.Swarm)
	got, err = Load(one, env("KWAAI_CONFIG="+two))
	require.NoError(t, err)
	require.Equal(t, "one", got.Swarm)
}

func TestLoad_MissingFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "absent.yaml")
	_, err := Load(path, env())
	require.EqualError(t, err, path+": the configuration cannot be opened: no such file or directory")
}

func TestLoad_RefusesWhatIsTooLargeToBeAConfiguration(t *testing.T) {
	_, err := load(t, "swarm: a\n"+strings.Repeat("# filler\n", maxFile/9), env())
	require.ErrorContains(t, err, "more than 16MiB: is it a configuration?")
}

func TestLoad_DataDirectory(t *testing.T) {
	state, xdg := "STATE_DIRECTORY=/var/lib/kwaaid:/var/lib/other", "XDG_DATA_HOME=/data"
	flag := Override{Path: "data", Values: []string{"~/mine"}, Source: "--data"}
	for _, c := range []struct {
		name, want string
		environ    []string
		overrides  []Override
	}{
		{"flag before all", "/home/ada/mine", env(state, xdg), []Override{flag}},
		{"state directory before the user's", "/var/lib/kwaaid", env(state, xdg), nil},
		{"XDG before home", "/data/kwaaid", env(xdg), nil},
		{"relative XDG is ignored", "/home/ada/.local/share/kwaaid", env("XDG_DATA_HOME=data"), nil},
		{"home at last", "/home/ada/.local/share/kwaaid", env(), nil},
		{"environment before state directory", "/srv", env(state, "KWAAI_DATA=/srv"), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Load("", c.environ, c.overrides...)
			require.NoError(t, err)
			require.Equal(t, c.want, got.Data)
		})
	}
	_, err := Load("", nil)
	require.ErrorContains(t, err, "give one with --data")
}

func TestLoad_PathsInTheFileStartAtItsDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "kwaaid.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`
data: state
experts:
  - checkpoint: ./model
  - {id: 1, kind: glu, file: ../one.safetensors}
  - {id: 2, kind: glu, file: /srv/two.safetensors}
  - {id: 3, kind: glu, file: ~/three.safetensors}
`), 0o600))
	got, err := Load(path, env())
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "state"), got.Data)
	require.Equal(t, filepath.Join(dir, "model"), got.Experts[0].Checkpoint)
	require.Equal(t, filepath.Join(filepath.Dir(dir), "one.safetensors"), got.Experts[1].File)
	require.Equal(t, "/srv/two.safetensors", got.Experts[2].File)
	require.Equal(t, "/home/ada/three.safetensors", got.Experts[3].File)
}

func TestLoad_IDsAreReadInBothForms(t *testing.T) {
	got, err := load(t, `
experts:
  - {id: 42, kind: identity, hidden: 8}
  - {id: expert-43, kind: identity, hidden: 8}
  - {id: "44", kind: identity, hidden: 8}
  - {id: 18446744073709551615, kind: identity, hidden: 8}
  - {model: m, layer: 3, index: 17, kind: identity, hidden: 8}
fallbacks: {42: expert-43, "44": [43, 42]}
`, env())
	require.NoError(t, err)
	var ids []expert.ID
	for _, e := range got.Experts {
		id, single := e.ExpertID()
		require.True(t, single)
		ids = append(ids, id)
	}
	ref, err := expert.ParseRef("m/3/17")
	require.NoError(t, err)
	require.Equal(t, []expert.ID{42, 43, 44, 18446744073709551615, ref.ID}, ids)
	require.Equal(t, Fallbacks{{ID: 42}: {{ID: 43}}, {ID: 44}: {{ID: 43}, {ID: 42}}}, got.Fallbacks)
}

func TestLoad_AliasesAreFollowed(t *testing.T) {
	got, err := load(t, "bootstrap: &peers [/ip4/10.0.0.2/tcp/7577/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN]\nremotes: {9: *peers}\n", env())
	require.NoError(t, err)
	require.Equal(t, got.Bootstrap, got.Remotes[Ref{ID: 9}])
}

func TestLoad_AnAliasOfItselfEnds(t *testing.T) {
	_, err := load(t, "experts: &all [*all]\ncalls: &calls {timeout: *calls}\n", env())
	require.Error(t, err)
}

func FuzzLoad(f *testing.F) {
	f.Add(string(Document()))
	f.Add("experts: &a [{id: 1, init: *a}, *a]\nfallbacks: {? [a]: b, <<: {}}\n")
	f.Add("a: b\n---\nc: d\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := load(t, text, env())
		if err == nil {
			require.NoError(t, got.Validate())
		}
	})
}
