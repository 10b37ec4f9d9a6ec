package discovery

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

// A record's key must never change: nodes of different versions would not find each other's experts.
func TestKey_IsTheHashOfNamespaceAndID(t *testing.T) {
	sum := sha256.Sum256([]byte("/kwaai/expert/\x00\x00\x00\x00\x00\x00\x00\x2a"))
	require.Equal(t, "1220"+hex.EncodeToString(sum[:]), hex.EncodeToString(Key(42).Hash()))
	require.Equal(t, "bafkreigkketvk4qch6bl5ji2jfz56run5pkge4qphzabbm324g4kzw2rgy", Key(42).String())
	require.Equal(t, "/kwaai/test/kad/1.0.0", string(Protocol("test")))
	require.NotEqual(t, Key(0), Key(expert.ID(1<<63)))
}
