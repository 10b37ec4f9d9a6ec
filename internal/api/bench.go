package api

// BenchRequest asks a node to make load: Clients concurrent callers make Calls calls each, one of Names drawn at random per call.
type BenchRequest struct {
	Names   []string `json:"names"`
	Rows    int      `json:"rows"`
	Clients int      `json:"clients"`
	Calls   int      `json:"calls"`
	Codec   string   `json:"codec,omitempty"`
	Combine string   `json:"combine,omitempty"` // of layers, as in LayerRequest
	Local   bool     `json:"local,omitempty"`   // this node's own experts, without the network
	Seed    uint64   `json:"seed,omitempty"`
}

// BenchProgress is how far a bench is.
type BenchProgress struct {
	Done   int     `json:"done"`
	Total  int     `json:"total"`
	Errors int     `json:"errors"`
	TookS  float64 `json:"took_s"`
}

// BenchResult is what a bench measured.
type BenchResult struct {
	Names        []string `json:"names"`
	Rows         int      `json:"rows"`
	Clients      int      `json:"clients"`
	Calls        int      `json:"calls"` // in all
	TookS        float64  `json:"took_s"`
	SamplesPerS  float64  `json:"samples_per_s"` // rows answered a second
	CallsPerS    float64  `json:"calls_per_s"`
	P50MS        float64  `json:"p50_ms"`
	P90MS        float64  `json:"p90_ms"`
	P99MS        float64  `json:"p99_ms"`
	MaxMS        float64  `json:"max_ms"`
	Errors       int      `json:"errors"`
	FirstError   string   `json:"first_error,omitempty"`
	BytesPerCall float64  `json:"bytes_per_call"` // both ways, headers in
	Hedges       int      `json:"hedges"`
	// With Local only.
	GFLOPS  *float64 `json:"gflops,omitempty"`
	GBS     *float64 `json:"gbs,omitempty"`      // weights read, 10^9 bytes a second
	OfLimit *float64 `json:"of_limit,omitempty"` // fraction of the limit that binds: memory bandwidth or arithmetic
}

// Event is one line of the stream that a node answers with to what takes long: progress, and at last either a result or an error.
type Event[P, R any] struct {
	Progress *P         `json:"progress,omitempty"`
	Result   *R         `json:"result,omitempty"`
	Error    *ErrorBody `json:"error,omitempty"`
}
