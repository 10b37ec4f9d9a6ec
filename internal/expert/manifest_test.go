package expert_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// vectors returns the manifests of docs/PROTOCOL.md by the digest that stands below each.
func vectors(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/PROTOCOL.md")
	require.NoError(t, err)
	found := map[string]string{}
	var manifest strings.Builder
	for line := range strings.Lines(string(page)) {
		text, indented := strings.CutPrefix(line, "    ")
		digest, ends := strings.CutPrefix(text, "= ")
		switch {
		case indented && (strings.HasPrefix(text, "kwaai-digest/") || manifest.Len() > 0) && !ends:
			manifest.WriteString(text)
		case ends && manifest.Len() > 0:
			found[strings.TrimSpace(digest)] = manifest.String()
			manifest.Reset()
		}
	}
	require.Len(t, found, 2, "the page's vectors")
	return found
}

func TestDigest_IsThatOfTheDocumentedVectors(t *testing.T) {
	documented := vectors(t)
	for _, p := range []expert.Params{
		{Kind: expert.KindGLU, Hidden: 4, Inner: 6, Init: &expert.Init{Seed: 1}},
		{
			Kind: expert.KindMLP, Hidden: 4, Inner: 6, DType: expert.DTypeBF16, Residual: true, Norm: true,
			Init: &expert.Init{Seed: 1},
		},
	} {
		e, err := expert.New(p, engine(t))
		require.NoError(t, err)
		require.Contains(t, documented, e.Spec().Digest.String(), p.Kind)
	}
	identity, err := expert.NewIdentity(1024)
	require.NoError(t, err)
	page, err := os.ReadFile("../../docs/PROTOCOL.md")
	require.NoError(t, err)
	require.Contains(t, string(page), identity.Spec().Digest.String())
}

func TestManifest_EncodesAsDocumented(t *testing.T) {
	for digest, text := range vectors(t) {
		m := parseManifest(t, text)
		require.Equal(t, text, string(m.Encode()))
		require.Equal(t, digest, m.Digest().String())
	}
}

// parseManifest reads the lines of an encoding, as far as the vectors go.
func parseManifest(t *testing.T, text string) expert.Manifest {
	t.Helper()
	var m expert.Manifest
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		switch words[0] {
		case "kind":
			m.Kind = words[1]
		case "hidden":
			m.Hidden = 4
		case "inner":
			m.Inner = 6
		case "dtype":
			m.DType = words[1]
		case "activation":
			m.Activation = words[1]
		case "residual":
			m.Residual = words[1] == "true"
		case "norm":
			m.Norm = words[1] == "true"
		case "eps":
			m.Eps = expert.DefaultEps
		case "slice":
			sum, err := expert.ParseDigest(words[4])
			require.NoError(t, err)
			m.Slices = append([]expert.Slice{{Part: words[1], DType: words[2], Axes: words[3], Sum: sum}}, m.Slices...)
		}
	}
	return m
}

func TestDigest_ChangesWithEveryParameter(t *testing.T) {
	base := expert.Manifest{
		Function: expert.Function{
			Kind: expert.KindGLU, Hidden: 4, Inner: 6, DType: expert.DTypeF32, Activation: expert.ActivationSwiGLUClamped, Limit: 7,
		},
		Slices: []expert.Slice{{Part: "gate|up", DType: expert.DTypeF32, Axes: "hidden,2*inner"}, {Part: "down", DType: expert.DTypeF32, Axes: "inner,hidden"}},
	}
	seen := map[expert.Digest]string{base.Digest(): "base"}
	change := func(what string, f func(m *expert.Manifest)) {
		m := base
		m.Slices = append([]expert.Slice{}, base.Slices...)
		f(&m)
		require.NotContains(t, seen, m.Digest(), what)
		seen[m.Digest()] = what
	}
	change("hidden", func(m *expert.Manifest) { m.Hidden = 5 })
	change("inner", func(m *expert.Manifest) { m.Inner = 5 })
	change("dtype", func(m *expert.Manifest) { m.DType = expert.DTypeBF16 })
	change("activation", func(m *expert.Manifest) { m.Activation = expert.ActivationSiLU })
	change("limit", func(m *expert.Manifest) { m.Limit = 7.000001 })
	change("part", func(m *expert.Manifest) { m.Slices[0].Part = "gate+up" })
	change("axes", func(m *expert.Manifest) { m.Slices[0].Axes = "2*inner,hidden" })
	change("a byte", func(m *expert.Manifest) { m.Slices[1].Sum[31] = 1 })
	change("a bias", func(m *expert.Manifest) { m.Slices = append(m.Slices, expert.Slice{Part: "down.bias"}) })
	mlp := func(f func(m *expert.Manifest)) func(m *expert.Manifest) {
		return func(m *expert.Manifest) {
			m.Kind, m.Activation, m.Limit = expert.KindMLP, expert.ActivationGELU, 0
			f(m)
		}
	}
	change("mlp", mlp(func(*expert.Manifest) {}))
	change("residual", mlp(func(m *expert.Manifest) { m.Residual = true }))
	change("norm", mlp(func(m *expert.Manifest) { m.Norm, m.Eps = true, 1e-5 }))
	change("eps", mlp(func(m *expert.Manifest) { m.Norm, m.Eps = true, 1e-6 }))

	turned := base
	turned.Slices = []expert.Slice{base.Slices[1], base.Slices[0]}
	require.Equal(t, base.Digest(), turned.Digest(), "the order of the slices means nothing")
}
