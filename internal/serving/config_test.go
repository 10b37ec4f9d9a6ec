package serving

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestConfig_DefaultIsValid(t *testing.T) { require.NoError(t, DefaultConfig().Validate()) }

func TestConfig_ReportsAllThatIsWrong(t *testing.T) {
	c := Config{MaxRows: 0, QueueRows: -1, QueueBytes: 10, Drain: 200 * time.Millisecond, Memory: -5}
	err := c.Validate()
	for _, says := range []string{
		"max_rows: 0 is below 1", "queue_rows: -1 is below max_rows (0)", "queue_bytes: 10 is below 1MiB",
		"drain: 200ms is under 1s: passes under way would be cut off", "memory: -5 is negative",
	} {
		require.ErrorContains(t, err, says)
	}
	_, err = New(c)
	require.ErrorContains(t, err, "max_rows")
}
