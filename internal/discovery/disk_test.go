package discovery_test

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/swarmtest"
)

func fileExists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	return err == nil
}

// waitForLevelDB waits for the goroutine of a closed database that ends a second later.
func waitForLevelDB(t *testing.T) {
	t.Helper()
	swarmtest.Eventually(t, func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "mpoolDrain")
	}, "LevelDB still runs")
}
