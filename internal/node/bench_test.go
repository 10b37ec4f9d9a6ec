package node

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

func TestBench_ComparesWorkWithTheInstructionThatDoesIt(t *testing.T) {
	for _, dotNative := range []bool{false, true} {
		var exact, dot target
		exact.add(expert.Spec{Kind: expert.KindGLU, Hidden: 64, Inner: 32, Bytes: 12288, Numerics: kernel.Exact.Version()}, 5, dotNative)
		dot.add(expert.Spec{Kind: expert.KindGLU, Hidden: 64, Inner: 32, Bytes: 12288, Numerics: kernel.Dot.Version()}, 5, dotNative)
		const flops = 2 * 3 * 64 * 32 * 5
		require.Equal(t, kernel.Work{FMA: flops, Bytes: 12288}, exact.work)
		if dotNative {
			require.Equal(t, kernel.Work{BF16: flops, Bytes: 12288}, dot.work)
		} else {
			require.Equal(t, exact.work, dot.work, "dot is computed by FMA")
		}
	}
}
