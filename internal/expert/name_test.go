package expert_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestName_IDFollowsFromTheName(t *testing.T) {
	// Computed apart from this code: the first 8 bytes, big-endian, of the SHA-256 that design.md describes.
	for text, want := range map[string]expert.ID{
		"olmoe-1b-7b/3/17":                           10577091210332685977,
		"olmoe-1b-7b@main/3/17":                      10577091210332685977,
		"switch-base-8@v2/encoder.block.1.layer.1/0": 14702567199549993988,
	} {
		ref, err := expert.ParseRef(text)
		require.NoError(t, err)
		require.Equal(t, want, ref.ID, text)
		require.Equal(t, want, ref.Name.ID(), text)
	}
}

func TestParseRef_TellsWhatWasReferredTo(t *testing.T) {
	ref, err := expert.ParseRef("mixtral@v0.1/12")
	require.NoError(t, err)
	require.Equal(t, &expert.LayerName{Model: "mixtral", Revision: "v0.1", Layer: "12"}, ref.Layer)
	require.Nil(t, ref.Name)
	require.Equal(t, "mixtral@v0.1/12", ref.String())

	ref, err = expert.ParseRef("mixtral@main/0/7")
	require.NoError(t, err)
	require.Equal(t, "mixtral/0/7", ref.String(), "the default revision is left out")
	require.Equal(t, 7, ref.Name.Index)

	ref, err = expert.ParseRef("7")
	require.NoError(t, err)
	require.Equal(t, "expert-7", ref.String())
}

func TestParseRef_RefusesWhatIsNoName(t *testing.T) {
	long := strings.Repeat("a", 300)
	for _, text := range []string{
		"", "/", "m/", "/1", "m//1", "m/1/", "m/1/2/3", "m/01", "m/1/01", "m/1/-1", "m/1/x", "m/1/9999999999", "m@/1", "m@v 1/1", "m@v@w/1",
		"42/1", "expert-42/1", "expert-007/1", "-m/1", "m m/1", "m/3x", "m/-1", "m/.a", "m/a b", long + "/1", "m@" + long + "/1", "m/" + long,
	} {
		_, err := expert.ParseRef(text)
		require.ErrorIs(t, err, expert.ErrInvalidArgument, text)
	}
}

func TestNewLayerName_FillsInTheRevision(t *testing.T) {
	l, err := expert.NewLayerName("m", "", "3")
	require.NoError(t, err)
	require.Equal(t, expert.DefaultRevision, l.Revision)
	require.Equal(t, "m/3/5", l.Expert(5).String())
}
