package registry

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestExpert_IsWhatTheListSaysOfIt(t *testing.T) {
	start := time.Unix(0, 0)
	table := New(DefaultLimits(), start)
	_, ok := table.Expert(42, start)
	require.False(t, ok)
	table.AddProvider(42, "peer-a", DHT, start)
	table.Described("peer-b", expert.Description{Experts: []expert.Hosted{{
		ID: 42, Name: "mixtral/0/3", State: expert.StateReady, Spec: expert.Spec{Kind: expert.KindGLU, Hidden: 64, Inner: 96, DType: "bf16"},
	}}}, start)
	one, ok := table.Expert(42, start)
	require.True(t, ok)
	require.Equal(t, []ExpertView{one}, table.Experts(start))
	require.Equal(t, 2, one.Providers)
	require.Equal(t, 64, one.Hidden)
}

func TestPeer_TellsHowLongItsAnswersTake(t *testing.T) {
	now := time.Unix(0, 0)
	table := New(DefaultLimits(), now)
	dice := rand.New(rand.NewPCG(1, 2))
	for id := range expert.ID(2) {
		table.AddProvider(id, "peer-a", DHT, now)
		pick, err := table.Pick(Query{Expert: id, Rows: 1}, now, dice)
		require.NoError(t, err)
		now = now.Add(20 * time.Millisecond)
		table.Report(pick, Outcome{Kind: Answered, Took: 20 * time.Millisecond}, now)
	}
	v, ok := table.Peer("peer-a", now)
	require.True(t, ok)
	require.InDelta(t, 20*time.Millisecond, v.Latency, float64(time.Microsecond))
	_, ok = table.Peer(peer.ID("peer-b"), now)
	require.False(t, ok)
}
