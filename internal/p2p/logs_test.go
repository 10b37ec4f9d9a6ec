package p2p

import (
	"encoding/json"
	"strings"
	"testing"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

func TestBridgeLogs_TakesBothLibrariesAndLowersTheirLevels(t *testing.T) {
	t.Cleanup(func() { BridgeLogs(zerolog.Nop()) })
	var out syncBuffer
	BridgeLogs(zerolog.New(&out).Level(zerolog.DebugLevel))
	slogger := gologshim.Logger("bridge-slog").With("conn", 7)
	slogger.Debug("hidden")
	slogger.Info("told")
	slogger.Warn("warned")
	slogger.Error("failed")
	zapper := golog.Logger("bridge-zap")
	zapper.Debugw("hidden")
	zapper.Infow("told", "peer", "p")
	zapper.Errorw("failed")
	var got []string
	for line := range strings.Lines(out.String()) {
		var fields map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &fields))
		got = append(got, fields["level"].(string)+" "+fields["logger"].(string)+" "+fields["message"].(string))
		if fields["message"] == "told" {
			require.True(t, fields["conn"] == 7.0 || fields["peer"] == "p", "%v", fields)
		}
	}
	require.Equal(t, []string{
		"debug bridge-slog told", "debug bridge-slog warned", "warn bridge-slog failed",
		"debug bridge-zap told", "warn bridge-zap failed",
	}, got)
}
