//go:build !linux

package serving

import (
	"math"

	machine "github.com/pbnjay/memory"
)

// machineMemory returns the machine's memory: what others use of it can't be told the same way everywhere.
func machineMemory() (int64, bool) {
	total := machine.TotalMemory()
	return int64(min(total, math.MaxInt64)), total > 0
}
