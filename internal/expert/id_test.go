package expert_test

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/expert"
)

func TestParseID_ReadsBothForms(t *testing.T) {
	for text, want := range map[string]expert.ID{
		"expert-42": 42, "42": 42, "0": 0, "expert-0": 0,
		"18446744073709551615": math.MaxUint64, "expert-18446744073709551615": math.MaxUint64,
	} {
		id, err := expert.ParseID(text)
		require.NoError(t, err, text)
		require.Equal(t, want, id, text)
	}
	require.Equal(t, "expert-42", expert.ID(42).String())
}

func TestParseID_RefusesOtherForms(t *testing.T) {
	for _, text := range []string{
		"", "expert-", "-1", "+1", "042", "00", "expert-042", "Expert-1", "1e3", "0x10", " 1", "1 ", "4２",
		"18446744073709551616", "expert-99999999999999999999999999", "expert-expert-1",
	} {
		_, err := expert.ParseID(text)
		require.ErrorIs(t, err, expert.ErrInvalidArgument, text)
	}
}

func TestID_IsAStringInJSON(t *testing.T) {
	raw, err := json.Marshal(map[string]expert.ID{"expert": math.MaxUint64})
	require.NoError(t, err)
	require.JSONEq(t, `{"expert": "expert-18446744073709551615"}`, string(raw))

	var ids []expert.ID
	require.NoError(t, json.Unmarshal([]byte(`["expert-7", "8", 9, 18446744073709551615]`), &ids))
	require.Equal(t, []expert.ID{7, 8, 9, math.MaxUint64}, ids)
	for _, bad := range []string{`[1.5]`, `[-1]`, `["x"]`, `[null]`, `[true]`, `[{}]`} {
		require.Error(t, json.Unmarshal([]byte(bad), &ids), bad)
	}

	byID := map[expert.ID]int{}
	require.NoError(t, json.Unmarshal([]byte(`{"expert-3": 1, "4": 2}`), &byID))
	require.Equal(t, map[expert.ID]int{3: 1, 4: 2}, byID)
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"expert-42", "42", "olmoe/3/17", "m@v1/encoder.block.1.layer.1/0", "a/b", "1/2/3", "m@/1/2", "////"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := expert.ParseRef(s)
		if err != nil {
			require.ErrorIs(t, err, expert.ErrInvalidArgument)
			return
		}
		again, err := expert.ParseRef(ref.String())
		require.NoError(t, err, "the canonical form %q of %q", ref, s)
		require.Equal(t, ref, again)
	})
}
