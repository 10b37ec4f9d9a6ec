package api

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
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
		"load":    func() error { _, err := c.Load(t.Context(), LoadRequest{}, nil); return err },
		"unload":  func() error { _, err := c.Unload(t.Context(), "7"); return err },
		"bench":   func() error { _, err := c.Bench(t.Context(), BenchRequest{}, nil); return err },
		"checkup": func() error { _, err := c.Checkup(t.Context()); return err },
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

// fakeNode answers what is asked about its health until it hangs, and nothing else before it has taken long.
type fakeNode struct {
	hangsAt time.Time     // zero: never
	begins  time.Duration // until the header of the answer to the work
	takes   time.Duration // from there to the result
}

func (n fakeNode) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Path == "/healthz" {
		if !n.hangsAt.IsZero() && time.Now().After(n.hangsAt) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		}
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	}
	select {
	case <-time.After(n.begins):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	r, w := io.Pipe()
	go func() {
		select {
		case <-time.After(n.takes):
			_, _ = w.Write([]byte(`{"result":{"experts":[{"expert":"expert-7"}]}}`))
			_ = w.Close()
		case <-req.Context().Done():
			_ = w.CloseWithError(req.Context().Err())
		}
	}()
	return &http.Response{StatusCode: http.StatusOK, Body: r}, nil
}

func TestClient_WaitsForLongWorkAsLongAsTheNodeIsAlive(t *testing.T) {
	for name, n := range map[string]fakeNode{
		"before the header": {begins: time.Hour},
		"after it":          {takes: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := NewClient("127.0.0.1:1", "")
				c.http.Transport = n
				began := time.Now()
				list, err := c.Load(t.Context(), LoadRequest{}, nil)
				require.NoError(t, err)
				require.Len(t, list.Experts, 1)
				require.Equal(t, time.Hour, time.Since(began))

				n.hangsAt = time.Now().Add(10 * time.Minute)
				c.http.Transport = n
				_, err = c.Load(t.Context(), LoadRequest{}, nil)
				require.ErrorIs(t, err, errHangs)
				require.ErrorContains(t, err, "127.0.0.1:1")
				require.LessOrEqual(t, time.Since(n.hangsAt), 2*patience)
			})
		})
	}
}
