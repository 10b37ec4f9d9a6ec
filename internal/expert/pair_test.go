package expert_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestPair_TakesTheVersionsOfItsNumerics(t *testing.T) {
	for wanted, names := range map[string]map[string]bool{
		"":        {"exact-1": true, "": true},
		"exact":   {"exact-1": true, "exact-12": true, "exact": true, "exact-": false, "exact-1b": false, "exactly-1": false, "dot-1": false, "": false},
		"exact-1": {"exact-1": true, "exact-1-1": true, "exact-2": false, "exact-12": false},
	} {
		pair := expert.Pair{Numerics: wanted}
		for name, takes := range names {
			require.Equal(t, takes, pair.Takes(name), "%q takes %q", wanted, name)
		}
	}
}
