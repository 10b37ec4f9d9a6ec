package expert

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// manifestHeader is the first line of every manifest; it changes when the encoding does.
const manifestHeader = "kwaai-digest/v1"

// Manifest is all that makes an expert's result: its function and the hashes of its weights. Its digest is what two hosts
// of one ID compare. The order in which sums are added (numerics) is no part of it.
type Manifest struct {
	Function
	Slices []Slice // in any order
}

// Slice is one run of an expert's bytes as stored: a tensor, or the expert's share of a tensor that holds all experts.
type Slice struct {
	// Part says which part it plays: gate, up, down, gate+up (gate first on the doubled axis), gate|up (by turns);
	// with .bias, .scale or .exponent behind it; or norm.weight, norm.bias. An mlp's W1 is up, its W2 down.
	Part string
	// DType of the elements as stored: f32, bf16, f16, f8_e4m3, mxfp4 (two to a byte), u8 (exponents).
	DType string
	// Axes, slowest first: inner, 2*inner or hidden, a /n behind it where n elements share one entry; joined by commas.
	Axes string
	// Sum is the SHA-256 of the bytes.
	Sum [sha256.Size]byte
}

// Encode returns the manifest's one encoding, the bytes that the digest covers: lines that end in a newline, described
// in docs/PROTOCOL.md, "Digest of an expert".
func (m Manifest) Encode() []byte {
	var b strings.Builder
	line := func(words ...string) {
		b.WriteString(strings.Join(words, " "))
		b.WriteByte('\n')
	}
	// Bits rather than decimals: languages differ in how they print the shortest one.
	float := func(v float32) string { return fmt.Sprintf("%08x", math.Float32bits(v)) }

	line(manifestHeader)
	line("kind", m.Kind)
	line("hidden", strconv.Itoa(m.Hidden))
	if m.Kind != KindIdentity {
		line("inner", strconv.Itoa(m.Inner))
	}
	line("dtype", m.DType)
	if m.Kind != KindIdentity {
		line("activation", m.Activation)
	}
	if m.Activation == ActivationSwiGLUClamped {
		line("limit", float(m.Limit))
	}
	if m.Kind == KindMLP {
		line("residual", strconv.FormatBool(m.Residual))
		line("norm", strconv.FormatBool(m.Norm))
	}
	if m.Norm {
		line("eps", float(m.Eps))
	}
	lines := make([]string, 0, len(m.Slices))
	for _, s := range m.Slices {
		lines = append(lines, strings.Join([]string{"slice", s.Part, s.DType, s.Axes, hex.EncodeToString(s.Sum[:])}, " "))
	}
	slices.Sort(lines)
	for _, l := range lines {
		line(l)
	}
	return []byte(b.String())
}

// Digest is the SHA-256 of the encoding.
func (m Manifest) Digest() Digest { return sha256.Sum256(m.Encode()) }
