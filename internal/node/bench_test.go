package node

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

func TestBench_ComparesWorkWithTheInstructionThatDoesIt(t *testing.T) {
	for _, path := range kernel.Paths() {
		pool := kernel.NewPool(1, kernel.WithPath(path))
		defer pool.Close()
		b := &bench{core: &core{engine: expert.Engine{Pool: pool}}}
		var exact, dot target
		b.add(&exact, expert.Spec{Kind: expert.KindGLU, Hidden: 64, Inner: 32, Bytes: 12288, Numerics: kernel.Exact.Version()}, 5)
		b.add(&dot, expert.Spec{Kind: expert.KindGLU, Hidden: 64, Inner: 32, Bytes: 12288, Numerics: kernel.Dot.Version()}, 5)
		const flops = 2 * 3 * 64 * 32 * 5
		require.Equal(t, kernel.Work{FMA: flops, Bytes: 12288}, exact.work, "%v", path)
		if path == kernel.PathBF16 {
			require.Equal(t, kernel.Work{BF16: flops, Bytes: 12288}, dot.work)
		} else {
			require.Equal(t, exact.work, dot.work, "%v computes dot by FMA", path)
		}
	}
}
