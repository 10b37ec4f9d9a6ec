package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/doctor"
	"github.com/kwaai/kwaaid/internal/p2p"
)

func TestDoctor(t *testing.T) {
	data := t.TempDir()
	require.NoError(t, os.Chmod(data, 0o700))
	t.Run("finds nothing wrong with a node, and asks its experts", func(t *testing.T) {
		first := startNode(t)
		h := startNode(t, "--data", data, "--bootstrap", first.Addrs[0], "--expert", "id=7,kind=identity,hidden=8", "--expert", "id=8,kind=glu,hidden=16,inner=24,seed=1")
		r := decode[doctor.Report](t, kwaaid(t, "doctor", "--json", "--api", h.API).ok(t))
		details := map[string]string{}
		for _, c := range r.Checks {
			require.NotEmpty(t, c.Name)
			require.NotEmpty(t, c.Detail)
			details[c.Name] = c.Detail
		}
		require.Contains(t, details["experts"], "all 2 answer")
		require.Contains(t, details["DHT"], "a walk among 1 peers")
		require.Contains(t, details["data directory"], data)
		require.Contains(t, kwaaid(t, "doctor", "--api", h.API).ok(t).stdout, "Nothing is wrong")

		require.NoError(t, os.Chmod(p2p.IdentityPath(data), 0o644))
		o := kwaaid(t, "doctor", "--api", h.API)
		require.Equal(t, exitFailed, o.code)
		require.Contains(t, o.stdout, "chmod 600")
		require.NoError(t, os.Chmod(p2p.IdentityPath(data), 0o600))
	})
	t.Run("finds the address that leads nowhere", func(t *testing.T) {
		h := startNode(t, "--announce", "/ip4/127.0.0.1/tcp/1")
		o := kwaaid(t, "doctor", "--json", "--api", h.API)
		require.Equal(t, exitFailed, o.code)
		for _, c := range decode[doctor.Report](t, o).Checks {
			require.Equal(t, c.Name != "addresses", c.OK, "%+v", c)
		}
	})
	t.Run("tells that no node answers where one was said to be", func(t *testing.T) {
		o := kwaaid(t, "doctor", "--json", "--data", data, "--api", "127.0.0.1:1")
		require.Equal(t, exitFailed, o.code)
		require.NotEmpty(t, decode[doctor.Report](t, o).Checks)
	})
}
