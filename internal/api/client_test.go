package api

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The system takes connections for a process that hangs.
func TestClient_DoesNotWaitForANodeThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c := NewClient(l.Addr().String(), "")
	defer c.Close()
	c.patience = 10 * time.Millisecond

	for name, ask := range map[string]func() error{
		"status":  func() error { _, err := c.Status(t.Context()); return err },
		"experts": func() error { _, err := c.Experts(t.Context()); return err },
		"peers":   func() error { _, err := c.Peers(t.Context()); return err },
		"layers":  func() error { _, err := c.Layers(t.Context()); return err },
		"resolve": func() error { _, err := c.Resolve(t.Context(), "7"); return err },
		"ready": func() error {
			ctx, cancel := context.WithTimeout(t.Context(), c.patience)
			defer cancel()
			_, err := c.Ready(ctx)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := ask()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, ErrNoNode)
			require.ErrorContains(t, err, "no answer from the node at "+l.Addr().String())
		})
	}
}
