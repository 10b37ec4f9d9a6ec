package api

import (
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/expert"
)

// LayerRequest asks for one forward pass of a MoE layer.
type LayerRequest struct {
	Name     string        // MODEL[@REVISION]/LAYER
	Input    *tensor.Dense // float32, [hidden], [rows, hidden] or [sequences, rows, hidden]; nil: Rows rows are drawn from Seed
	Rows     int           // without Input; 0 counts as 1
	Seed     uint64        // without Input
	Experts  []int64       // [rows, k]: the caller's own choice; nil: the gate chooses
	Weights  []float32     // [rows, k], with Experts
	TopK     int           // experts for each row; 0: the node's calls.top_k, or as the model says
	Timeout  time.Duration // over all, look-ups included; 0: the node's calls.timeout
	Codec    string        // as in CallRequest
	Numerics string        // as in CallRequest
	Combine  string        // where the experts' outputs are added up: caller or peer; empty: the node's calls.combine
	NoShared bool          // the layer's shared expert is left to the caller, who has it
	Policy   string        // fail or skip: what to do about an expert that nobody answers for; empty: fail
}

// LayerAnswer says who answered for one expert of a layer; Expert differs from the layer's own when a fallback did.
type LayerAnswer struct {
	AnsweredBy
	Index int `json:"index"` // of the layer's expert
	Rows  int `json:"rows"`  // that went to it
}

// LayerResult is the document of a layer's forward pass. Outputs travel beside it.
type LayerResult struct {
	Layer          string        `json:"layer"`
	AnsweredBy     []LayerAnswer `json:"answered_by"` // by ascending index
	Attempts       []Attempt     `json:"attempts"`
	MissingExperts []expert.ID   `json:"missing_experts"` // left out by policy skip; their weights were made up for
	MissingNames   []string      `json:"missing_names,omitempty"`
	Shape          []int         `json:"shape"`
	Digest         string        `json:"digest"` // over the digests of the experts that answered, see docs/PROTOCOL.md
	Numerics       string        `json:"numerics"`
	Codec          string        `json:"codec"`
	Balance        float64       `json:"balance"` // rows of the busiest expert over the mean of all of the layer's: 1 is even
	AuxLoss        float64       `json:"aux_loss"`
	MS             float64       `json:"ms"`     // from the request to the answer, inside the node
	SHA256         string        `json:"sha256"` // of the output's float32 little-endian bytes
}

// LayerOutput is what a layer computed.
type LayerOutput struct {
	HiddenStates *tensor.Dense // of the input's shape
	Rows, K      int
	Experts      []int64   // [rows, k], best first; -1: none
	Weights      []float32 // [rows, k]
	RouterLogits []float32 // [rows, experts of the layer]
}

// Layer is a MoE layer that a node can route.
type Layer struct {
	Layer         string `json:"layer"`
	Hidden        int    `json:"hidden"`
	Experts       int    `json:"experts"`
	TopK          int    `json:"top_k"`
	Shared        bool   `json:"shared"`                    // it has a shared expert, computed where the caller's node is
	Error         string `json:"error,omitempty"`           // why it cannot be routed
	Code          string `json:"code,omitempty"`            // the status of a call of it, with Error
	RowsPerExpert []int  `json:"rows_per_expert,omitempty"` // routed by this node since it started

	// Balance is the rows of the busiest expert over the mean of all: 1 is even; 0 while none were routed.
	Balance float64 `json:"balance"`
}
