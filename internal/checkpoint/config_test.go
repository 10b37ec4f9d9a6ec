package checkpoint_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/kwaai/kwaaid/internal/checkpoint"
)

func TestConfig_AnswersByTypeAndNamesTheKey(t *testing.T) {
	c, err := checkpoint.ParseConfig("dir/config.json", []byte(`{
		"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"], "hidden_size": 1,
		"text_config": {
			"hidden_size": 32.0, "moe_topk": [3, 2], "k": 4, "norm": true, "nothing": null, "scale": 2.5, "act": "silu",
			"ffn_config": {"moe_top_k": 5}, "huge": 1e300, "time_step": [0.0, Infinity], "low": -Infinity, "bad": NaN,
			"text": "NaN \" Infinity"
		}
	}`))
	require.NoError(t, err)
	require.Equal(t, "llama4", c.ModelType())
	require.Equal(t, "Llama4ForConditionalGeneration", c.Architecture())

	n, err := c.Int(0, "d_model", "hidden_size")
	require.NoError(t, err)
	require.Equal(t, 32, n, "the text model's section comes first")
	n, err = c.Int(7, "absent", "nothing")
	require.NoError(t, err)
	require.Equal(t, 7, n)
	for layer, want := range []int{3, 2} {
		n, err = c.IntAt(layer, 0, "moe_topk")
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	n, err = c.IntAt(9, 0, "k")
	require.NoError(t, err)
	require.Equal(t, 4, n, "one number for all layers")
	_, err = c.IntAt(2, 0, "moe_topk")
	require.ErrorContains(t, err, "dir/config.json: moe_topk: expected an entry for layer 2")

	b, err := c.Bool(false, "norm")
	require.NoError(t, err)
	require.True(t, b)
	f, err := c.Float(0, "scale")
	require.NoError(t, err)
	require.InDelta(t, 2.5, f, 0)
	n, err = c.Section("ffn_config").Int(0, "moe_top_k")
	require.NoError(t, err)
	require.Equal(t, 5, n)
	require.True(t, c.IsNull("nothing"))
	require.False(t, c.IsNull("absent"))
	require.True(t, c.IsNull("low"), "Python's constants")
	s, err := c.String("", "text")
	require.NoError(t, err)
	require.Equal(t, `NaN " Infinity`, s, "words in strings stay")

	for key, ask := range map[string]func() error{
		"scale": func() error { _, err := c.Int(0, "scale"); return err },
		"huge":  func() error { _, err := c.Int(0, "huge"); return err },
		"act":   func() error { _, err := c.Float(0, "act"); return err },
		"k":     func() error { _, err := c.Bool(true, "k"); return err },
		"norm":  func() error { _, err := c.String("", "norm"); return err },
	} {
		require.ErrorContains(t, ask(), "dir/config.json: "+key+": expected")
	}
	for _, bad := range []string{"", "null", "[]", "7", `{"a"}`} {
		_, err := checkpoint.ParseConfig("dir/config.json", []byte(bad))
		require.ErrorContains(t, err, "dir/config.json", bad)
	}
}
