package api

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
)

// CallRequest asks for one forward pass.
type CallRequest struct {
	Name     string        // as the user wrote it; see expert.ParseRef
	Input    *tensor.Dense // float32, [hidden], [rows, hidden] or [a, b, hidden]; nil: Rows rows are drawn from Seed
	Rows     int           // without Input; 0 counts as 1
	Seed     uint64        // without Input
	Timeout  time.Duration // over all, look-up included; 0: the node's calls.timeout
	Digest   string        // 64 hexadecimal digits of the weights that are meant; empty: see expert.Pair
	Codec    string        // of activations on the wire: f32, bf16 or f16; empty: the node's calls.codec
	Numerics string        // exact, dot or tile; empty: whatever the host has
}

// Where says where the answer was computed.
type Where string

// The places.
const (
	WhereLocal    Where = "local"
	WhereRemote   Where = "remote"
	WhereFallback Where = "fallback" // a fallback expert answered, wherever it lives
)

// AnsweredBy says who answered: Expert differs from the call's when a fallback did.
type AnsweredBy struct {
	Peer   string    `json:"peer"`
	Expert expert.ID `json:"expert"`
	Where  Where     `json:"where"`
}

// Attempt is one try at one peer, in order.
type Attempt struct {
	Expert expert.ID `json:"expert"`
	Peer   string    `json:"peer"`
	Status string    `json:"status"`
	MS     float64   `json:"ms"`
	Op     string    `json:"op,omitempty"`     // what was being done when it failed: dial, send, wait or decode
	Detail string    `json:"detail,omitempty"` // the error, for people
}

// CallResult is the document of a forward pass. The output itself travels beside it.
type CallResult struct {
	Expert     expert.ID  `json:"expert"`
	Name       string     `json:"name,omitempty"`
	AnsweredBy AnsweredBy `json:"answered_by"`
	Attempts   []Attempt  `json:"attempts"`
	Shape      []int      `json:"shape"`
	Digest     string     `json:"digest"`
	Numerics   string     `json:"numerics"`
	Codec      string     `json:"codec"`
	MS         float64    `json:"ms"`     // from the request to the answer, inside the node
	SHA256     string     `json:"sha256"` // of the output's float32 little-endian bytes
}

// HashOutput returns what CallResult.SHA256 holds: the hash of the little-endian bytes of a float32 output.
func HashOutput(y []float32) string {
	bytes, ok := codec.ViewBytes(y)
	if !ok { // a big-endian machine
		bytes = make([]byte, 4*len(y))
		codec.EncodeF32(bytes, y)
	}
	sum := sha256.Sum256(bytes)
	return hex.EncodeToString(sum[:])
}
