package checkpoint_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
	"github.com/kwaai/kwaaid/internal/checkpoint/checkpointtest"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// drawnFile writes the tensors that a seed draws as a single expert's file.
func drawnFile(t *testing.T, path string, seed uint64) {
	t.Helper()
	drawn, err := expert.Draw(expert.Params{Kind: expert.KindGLU, Hidden: 32, Inner: 48, Init: &expert.Init{Seed: seed}})
	require.NoError(t, err)
	var tensors []checkpointtest.Tensor
	for _, d := range drawn {
		tensors = append(tensors, checkpointtest.Tensor{Name: d.Name, DType: "F32", Shape: d.Shape, Data: d.Data})
	}
	checkpointtest.WriteFile(t, path+".new", tensors)
	require.NoError(t, os.Rename(path+".new", path)) // beside the old one, so that it has another inode
}

func TestHashes_OfAFileThatIsAsItWasAreNotComputedAgain(t *testing.T) {
	dir := t.TempDir()
	weights, cache := filepath.Join(dir, "expert.safetensors"), filepath.Join(dir, "hashes.json")
	pool := kernel.NewPool(1)
	defer pool.Close()
	load := func(h *checkpoint.Hashes) expert.Digest {
		e, err := checkpoint.LoadFile(t.Context(), weights, expert.Params{Kind: expert.KindGLU}, expert.Engine{Pool: pool}, nil, checkpoint.WithHashes(h))
		require.NoError(t, err)
		return e.Spec().Digest
	}
	open := func() *checkpoint.Hashes {
		h, err := checkpoint.OpenHashes(cache)
		require.NoError(t, err)
		return h
	}
	drawnFile(t, weights, 1)
	plain := load(nil)

	first := open()
	require.Equal(t, plain, load(first))
	require.NoError(t, first.Save())
	require.Equal(t, plain, load(open()))

	// What is remembered is used, not computed: bytes that change behind an unchanged size, time and inode go unseen.
	before, err := os.Stat(weights)
	require.NoError(t, err)
	f, err := os.OpenFile(weights, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x3f}, before.Size()-1)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.Chtimes(weights, before.ModTime(), before.ModTime()))
	require.Equal(t, plain, load(open()))

	// A file with another time is hashed anew, and so is one that took its place.
	later := before.ModTime().Add(time.Second)
	require.NoError(t, os.Chtimes(weights, later, later))
	changed := load(open())
	require.NotEqual(t, plain, changed)
	drawnFile(t, weights, 2)
	require.NoError(t, os.Chtimes(weights, before.ModTime(), before.ModTime()))
	require.NotContains(t, []expert.Digest{plain, changed}, load(open()))
}

func TestHashes_AnEntryWithoutSumsIsForgotten(t *testing.T) {
	dir := t.TempDir()
	weights, cache := filepath.Join(dir, "expert.safetensors"), filepath.Join(dir, "hashes.json")
	pool := kernel.NewPool(1)
	defer pool.Close()
	drawnFile(t, weights, 1)
	load := func() {
		h, err := checkpoint.OpenHashes(cache)
		require.NoError(t, err)
		_, err = checkpoint.LoadFile(t.Context(), weights, expert.Params{Kind: expert.KindGLU}, expert.Engine{Pool: pool}, nil, checkpoint.WithHashes(h))
		require.NoError(t, err)
		require.NoError(t, h.Save())
	}
	load()
	raw, err := os.ReadFile(cache)
	require.NoError(t, err)
	less := regexp.MustCompile(`,"sums":\{[^}]*\}`).ReplaceAll(raw, nil) // what the file is like stays as it was
	require.Less(t, len(less), len(raw))
	require.NoError(t, os.WriteFile(cache, less, 0o600))
	load()
}

func TestHashes_ADamagedCacheIsForgotten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hashes.json")
	for _, content := range []string{"", "{", "null", `{"/x": null}`, `{"/x": {"size": "many"}}`} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		h, err := checkpoint.OpenHashes(path)
		require.NoError(t, err)
		require.NoError(t, h.Save())
	}
}
