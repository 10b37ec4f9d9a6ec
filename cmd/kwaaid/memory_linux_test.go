//go:build !race

package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// (Not with the race detector, whose shadow memory would be counted.) What a node draws or reads on the way to its packed weights does not stay: 1.05 times the weights and 64 MB are resident at most.
func TestRun_KeepsLittleMoreThanTheWeights(t *testing.T) {
	const hidden, inner = 1024, 16384
	const weights = 4 * 2 * hidden * inner
	h := startNode(t, "--expert", fmt.Sprintf("id=7,kind=mlp,hidden=%d,inner=%d,activation=gelu,seed=1", hidden, inner))
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", h.Process.Pid))
	require.NoError(t, err)
	var size, resident int
	_, err = fmt.Sscan(string(statm), &size, &resident)
	require.NoError(t, err)
	resident *= os.Getpagesize()
	require.Greater(t, resident, weights)
	require.Less(t, resident, weights*105/100+64_000_000)
}
