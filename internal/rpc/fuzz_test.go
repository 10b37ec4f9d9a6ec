package rpc_test

import (
	"io"
	"testing"
	"time"

	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// FuzzServer writes noise to a live server, which must not panic (its handler would not be released) and goes on to answer.
func FuzzServer(f *testing.F) {
	s := newSwarm(f, options{})
	f.Add([]byte{}, true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), false)
	f.Add(append(frame(f, forward(1, 4, expert.Pair{Expert: 7})), make([]byte, 16)...), false)
	f.Add(append(frame(f, forward(2, 4, expert.Pair{Expert: 7, Rows: []int32{1, 0}}, expert.Pair{Expert: 9})), make([]byte, 31)...), true)
	f.Add(append(frame(f, wire.Request{Op: wire.OpPing}), frame(f, wire.Request{Op: wire.OpDescribe})...), true)
	f.Fuzz(func(t *testing.T, noise []byte, end bool) {
		st, err := s.caller.NewStream(t.Context(), s.host.ID(), "/kwaai/expert/1.0.0")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Write(noise); err != nil {
			t.Fatal(err)
		}
		if end {
			_ = st.CloseWrite()
			_ = st.SetReadDeadline(time.Now().Add(waitFor))
			_, _ = io.Copy(io.Discard, st)
		}
		_ = st.Reset()
		s.requireWell(t)
	})
}
