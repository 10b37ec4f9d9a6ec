package config

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

var reflectTypeOfConfig = reflect.TypeFor[Config]()

func TestDefault_IsValid(t *testing.T) {
	require.NoError(t, Default().Validate())
}

func TestDocument_ReadsBackAsDefault(t *testing.T) {
	got, err := load(t, string(Document()), env())
	require.NoError(t, err)
	want := Default()
	want.Data = got.Data // settled from the environment
	for _, list := range []*[]string{&want.Announce, &want.Bootstrap, &want.APIHosts} {
		*list = []string{}
	}
	require.Equal(t, want, got)
}

func TestDocument_ExamplesWork(t *testing.T) {
	document := string(Document())
	for key, example := range examples {
		commented := "# " + strings.TrimSuffix(strings.ReplaceAll(example, "\n", "\n# "), "# ")
		require.Contains(t, document, commented)
		_, err := load(t, example, env())
		require.NoError(t, err, key)
	}
}

func TestDocument_EveryKeyHasACommentAndFitsAScreen(t *testing.T) {
	var walk func(v reflect.Type)
	walk = func(v reflect.Type) {
		for field := range v.Fields() {
			require.NotEmpty(t, field.Tag.Get("yaml"), "%s.%s", v, field.Name)
			require.NotEmpty(t, field.Tag.Get("doc"), "%s.%s", v, field.Name)
			if field.Type.Kind() == reflect.Struct {
				walk(field.Type)
			}
		}
	}
	walk(reflectTypeOfConfig)
	for line := range strings.Lines(string(Document())) {
		require.LessOrEqual(t, len(line), 150, line)
	}
}

func TestDocument_IsTheFileInConfigs(t *testing.T) {
	file, err := os.ReadFile("../../configs/kwaaid.yaml")
	require.NoError(t, err)
	require.Equal(t, string(file), string(Document()), "write it again: make gen")
}

func TestParseExpert(t *testing.T) {
	id := func(n expert.ID) *expert.ID { return &n }
	index := 17
	bias := false
	for spec, want := range map[string]Expert{
		"id=7,kind=identity,hidden=1024": {ID: id(7), Kind: "identity", Hidden: 1024},
		"id=expert-8,kind=mlp,hidden=8,inner=32,seed=1,dtype=bf16,bias=false": {
			ID: id(8), Kind: "mlp", Hidden: 8, Inner: 32, Init: &Init{Seed: 1}, DType: "bf16", Bias: &bias,
		},
		"checkpoint=./olmoe,layers=0-3,experts=0-7,12": {
			Checkpoint: "./olmoe", Layers: Selection{ranges: []span{{0, 3}}}, Experts: Selection{ranges: []span{{0, 7}, {12, 12}}},
		},
		"model=m,revision=v2,layer=encoder.block.1.layer.1,index=17,kind=glu,file=a=b,c.safetensors": {
			Model: "m", Revision: "v2", Layer: "encoder.block.1.layer.1", Index: &index, Kind: "glu", File: "a=b,c.safetensors",
		},
		"{id: 8, kind: mlp, hidden: 8, inner: 32, init: {seed: 1}}": {ID: id(8), Kind: "mlp", Hidden: 8, Inner: 32, Init: &Init{Seed: 1}},
	} {
		got, err := ParseExpert(spec)
		require.NoError(t, err, spec)
		require.Equal(t, want, got, spec)
		again, err := ParseExpert(got.String())
		require.NoError(t, err, got.String())
		require.Equal(t, want, again, got.String())
	}
}

func TestParseExpert_SaysWhatIsWrong(t *testing.T) {
	for spec, want := range map[string]string{
		"":                                    `"" is no expert: expected KEY=VALUE with commas between, such as id=7,kind=identity,hidden=1024`,
		"identity":                            `"identity" is no expert: expected KEY=VALUE with commas between, such as id=7,kind=identity,hidden=1024`,
		"{id: 7":                              `not YAML: did not find expected ',' or '}'`,
		"id=7,kind=identity,hidden=wide":      `hidden: expected a whole number, got "wide"`,
		"id=7,kind=identity":                  `hidden: missing: how wide is a row?`,
		"id=7,kind=identity,hiden=8":          `hiden: unknown key: did you mean hidden?`,
		"id=7,id=8,kind=identity,hidden=8":    `id: set twice`,
		"id=7,kind=mlp,hidden=8,inner=8":      `kind mlp needs weights`,
		"kind=identity,hidden=8":              `what is it called? Expected id, or model, layer and index`,
		"id=7,layer=3,kind=identity,hidden=8": `id: an expert has an id, or model, layer and index`,
		"checkpoint=./a b":                    `checkpoint: "a b/0" is no name`,
	} {
		_, err := ParseExpert(spec)
		require.ErrorContains(t, err, want, spec)
	}
}

func TestExpert_NamesAndPaths(t *testing.T) {
	e, err := ParseExpert("model=m,layer=3,index=17,kind=glu,file=x.safetensors")
	require.NoError(t, err)
	name, ok := e.Name()
	require.True(t, ok)
	require.Equal(t, "m/3/17", name.String())
	id, ok := e.ExpertID()
	require.True(t, ok)
	require.Equal(t, name.ID(), id)
	require.Equal(t, "/srv/x.safetensors", e.Rebase("/srv").File)
	require.Empty(t, e.Rebase("/srv").Checkpoint)

	e, err = ParseExpert("checkpoint=/models/olmoe-1b-7b")
	require.NoError(t, err)
	model, err := e.ModelName()
	require.NoError(t, err)
	require.Equal(t, "olmoe-1b-7b", model)
	_, ok = e.ExpertID()
	require.False(t, ok)
}

func TestSize_ReadsUnitsAndWritesThemBack(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "65536": 65536, "256MiB": 256 << 20, "1.5GiB": 3 << 29, "10kB": 10_000, "10KB": 10_000, "2 GB": 2e9,
		"7TiB": 7 << 40, "3B": 3,
	} {
		var got Size
		require.NoError(t, got.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, got, text)
		var again Size
		require.NoError(t, again.UnmarshalText([]byte(got.String())))
		require.Equal(t, want, again, "%s as %s", text, got)
	}
	for _, text := range []string{"", "MiB", "-1", "1e9", "1.2.3", "256Mi", "9223372036854775808", "8388608TiB", "99999999999999999999GiB", "."} {
		var s Size
		require.Error(t, s.UnmarshalText([]byte(text)), text)
	}
}

func TestSelection(t *testing.T) {
	var s Selection
	require.True(t, s.All())
	require.True(t, s.Has(3))
	require.True(t, s.HasLayer("encoder.block.1.layer.1"))

	require.NoError(t, s.UnmarshalText([]byte("0-2, 7")))
	require.Equal(t, "0-2,7", s.String())
	for n, want := range map[int]bool{0: true, 2: true, 3: false, 7: true, 8: false} {
		require.Equal(t, want, s.Has(n), n)
	}
	require.True(t, s.HasLayer("7"))
	require.False(t, s.HasLayer("8"))
	require.False(t, s.HasLayer("encoder.block.1.layer.1"))

	require.NoError(t, s.UnmarshalText([]byte("encoder.block.1.layer.1")))
	require.True(t, s.HasLayer("encoder.block.1.layer.1"))
	require.False(t, s.HasLayer("1"))
	require.False(t, s.Has(1))

	for _, text := range []string{"", "-1", "3-", "2-1", "1,,2", "1-2-3", "9999999999", "1x"} {
		require.Error(t, s.UnmarshalText([]byte(text)), text)
	}
}

func TestProblem_SaysWhereAndWhat(t *testing.T) {
	require.Equal(t, "a.yaml:3: swarm: bad", Problem{Path: "swarm", Line: 3, Source: "a.yaml", Message: "bad"}.Error())
	require.Equal(t, "--swarm: swarm: bad", Problem{Path: "swarm", Source: "--swarm", Message: "bad"}.Error())
	require.Equal(t, "bad", Problem{Message: "bad"}.Error())
	require.NoError(t, Problems(nil).err())
}
