package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/npy"
	"github.com/kwaai/kwaaid/internal/wire"
)

const mimeJSON = "application/json"

// bodyKind is what a call's body is.
type bodyKind int

const (
	bodyEmpty bodyKind = iota // rows are drawn from a seed
	bodyNpy
	bodyJSON // {"input": [[...], ...]}
)

// call makes one forward pass of an expert or of a MoE layer.
//
// The body is an array file (application/x-npy or application/octet-stream), JSON {"input": [[...]]} (application/json), or empty,
// with the query's rows and seed; without a type it is known by its first byte. The query holds timeout, codec and numerics besides, for
// an expert digest, for a layer combine, policy and top_k. The answer is the output as array file with the document in the header Kwaai-Result where Accept asks for application/x-npy;
// else the document, with the rows under "output" when the input came as JSON. Without Accept an array file answers an array file.
func (g *Gateway) call(w http.ResponseWriter, r *http.Request, name string) error {
	ref, err := expert.ParseRef(name)
	if err != nil {
		return err
	}
	q, err := parseCallQuery(r.URL.RawQuery, ref)
	if err != nil {
		return err
	}
	b, err := g.openBody(w, r, g.cfg.MaxFrame)
	if err != nil {
		return err
	}
	defer b.Close()
	kind, x, err := readInput(b, r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if kind != bodyEmpty && q.drawn {
		return refuse(wire.InvalidArgument, "rows and seed are for calls without a body: this one has rows of its own")
	}
	result, output, err := g.forward(r.Context(), name, ref, q, x)
	if err != nil {
		return err
	}
	data, err := floats(output)
	if err != nil {
		return err
	}
	if wantsNpy(r.Header.Get("Accept"), kind) {
		return writeNpy(w, result, output.Shape(), data)
	}
	if kind != bodyJSON {
		return writeJSON(w, http.StatusOK, result)
	}
	return writeRows(w, result, output.Shape(), data)
}

// forward calls what the name stands for. The document is an api.CallResult or an api.LayerResult.
func (g *Gateway) forward(ctx context.Context, name string, ref expert.Ref, q callQuery, x *tensor.Dense) (any, *tensor.Dense, error) {
	if ref.Layer == nil {
		return g.inference.Call(ctx, api.CallRequest{
			Name: name, Input: x, Rows: q.rows, Seed: q.seed, Timeout: q.timeout, Digest: q.digest, Codec: q.codec, Numerics: q.numerics,
		})
	}
	result, output, err := g.inference.CallLayer(ctx, api.LayerRequest{
		Name: name, Input: x, Rows: q.rows, Seed: q.seed, Timeout: q.timeout, Codec: q.codec, Numerics: q.numerics,
		Combine: q.combine, Policy: q.policy, TopK: q.topK,
	})
	return result, output.HiddenStates, err
}

// callQuery is what stands behind the question mark of a call.
type callQuery struct {
	timeout                 time.Duration
	digest, codec, numerics string
	combine, policy         string // of layers
	topK                    int    // likewise
	drawn                   bool   // rows are to be drawn from a seed
	rows                    int
	seed                    uint64
}

// parseCallQuery reads the query's parameters. One that is unknown, or not for what the name stands for, is a mistake.
func parseCallQuery(raw string, ref expert.Ref) (q callQuery, err error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return q, refuse(wire.InvalidArgument, "the query: "+err.Error())
	}
	for key, values := range query {
		if err := q.set(key, values[len(values)-1], ref.Layer != nil); err != nil {
			return q, refuse(wire.InvalidArgument, "query parameter "+quoted(key)+": "+err.Error())
		}
	}
	return q, nil
}

func (q *callQuery) set(key, value string, layer bool) (err error) {
	switch key {
	case "timeout":
		q.timeout, err = time.ParseDuration(value)
		if err == nil && q.timeout <= 0 {
			err = fmt.Errorf("%s is no time to answer in", value)
		}
	case "codec":
		q.codec = value
	case "numerics":
		q.numerics = value
	case "rows":
		q.drawn = true
		q.rows, err = count(value)
	case "seed":
		q.drawn = true
		q.seed, err = strconv.ParseUint(value, 10, 64)
	case "digest":
		if layer {
			return errors.New("pins the weights of one expert: this is a layer")
		}
		q.digest = value
		if value != "" {
			_, err = expert.ParseDigest(value)
		}
	case "combine", "policy", "top_k":
		if !layer {
			return errors.New("is for layers: this is one expert")
		}
		switch key {
		case "combine":
			q.combine, err = text(value, "caller", "peer")
		case "policy":
			q.policy, err = text(value, "fail", "skip")
		default:
			q.topK, err = count(value)
		}
	default:
		err = errors.New("unknown: expected timeout, codec, numerics, rows or seed, for an expert digest, for a layer combine, policy or top_k")
	}
	return err
}

// count reads a number of things of which there is at least one.
func count(value string) (int, error) {
	n, err := strconv.Atoi(value)
	if err == nil && n <= 0 {
		err = fmt.Errorf("%d: expected at least one", n)
	}
	return n, err
}

// readInput reads the body and says what it was; x is nil where it is empty.
func readInput(b *body, contentType string) (kind bodyKind, x *tensor.Dense, err error) {
	src := bufio.NewReader(b) // a read larger than its 4 KiB goes past it, straight into the tensor
	var shape []int
	var data []float32
	switch kind = kindOf(contentType, src); kind {
	case bodyEmpty:
		return kind, nil, b.ended()
	case bodyNpy:
		if b.size >= 0 {
			shape, data, err = npy.ReadSized(src, b.size, b.limit)
		} else {
			shape, data, err = npy.Read(src, b.limit)
		}
	case bodyJSON:
		shape, data, err = readRows(src, b)
	}
	if err != nil {
		return kind, nil, err
	}
	if len(data) == 0 {
		return kind, nil, refuse(wire.InvalidArgument, fmt.Sprintf("an empty batch: the input's shape is %v", shape))
	}
	return kind, tensor.New(tensor.WithShape(shape...), tensor.WithBacking(data)), nil
}

// kindOf goes by the content's type, and by its first byte where that says nothing (as with curl --data-binary).
func kindOf(contentType string, src *bufio.Reader) bodyKind {
	first, err := src.Peek(1)
	if err != nil {
		return bodyEmpty // or unreadable, which the next read tells
	}
	switch mediaType, _, _ := mime.ParseMediaType(contentType); mediaType {
	case api.MIMENpy, "application/octet-stream":
		return bodyNpy
	case mimeJSON:
		return bodyJSON
	}
	if first[0] == 0x93 {
		return bodyNpy
	}
	return bodyJSON
}

// readRows reads {"input": [[...], ...]}.
func readRows(src *bufio.Reader, b *body) (shape []int, data []float32, err error) {
	text, err := b.readAll(src)
	if err != nil {
		return nil, nil, err
	}
	return parseRows(text)
}

// parseRows reads the document of a call's rows: one, two or three dimensions.
func parseRows(text []byte) (shape []int, data []float32, err error) {
	s := &scanner{text: text}
	err = s.object(func(key string) error {
		if key != "input" {
			return s.fail(`unknown key %s: expected "input"`, quoted(key))
		}
		var err error
		shape, data, err = numbers(s, parseFloat32)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if err := s.end(); err != nil {
		return nil, nil, err
	}
	if len(shape) == 0 || len(shape) > 3 {
		return nil, nil, s.fail(`"input" has %d dimensions: expected 1 to 3`, len(shape))
	}
	return shape, data, nil
}

// wantsNpy tells whether the answer is the output as array file.
func wantsNpy(accept string, kind bodyKind) bool {
	for part := range strings.SplitSeq(accept, ",") {
		switch mediaType, _, _ := mime.ParseMediaType(part); mediaType {
		case api.MIMENpy, "application/octet-stream":
			return true
		case mimeJSON:
			return false
		}
	}
	return kind == bodyNpy
}

// writeNpy sends the output, the document in a header.
func writeNpy(w http.ResponseWriter, result any, shape []int, data []float32) error {
	doc, err := json.Marshal(result)
	if err != nil {
		return err
	}
	w.Header().Set(api.ResultHeader, asciiJSON(doc))
	w.Header().Set("Content-Type", api.MIMENpy)
	w.Header().Set("Content-Length", strconv.FormatInt(npy.Size(shape), 10))
	w.WriteHeader(http.StatusOK)
	return npy.Write(w, shape, data)
}

// asciiJSON escapes what a header cannot hold: errors of strangers may be in any script.
func asciiJSON(doc []byte) string {
	var b strings.Builder
	for _, r := range string(doc) {
		switch {
		case r < 0x7f:
			b.WriteByte(byte(r))
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return b.String()
}

// writeRows sends the document with the output's rows in it.
func writeRows(w http.ResponseWriter, result any, shape []int, data []float32) error {
	if !expert.Finite(data) {
		return refuse(wire.Unimplemented, "the output holds NaN or infinity, which JSON cannot: ask for it with Accept: "+api.MIMENpy)
	}
	doc, err := json.Marshal(result)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mimeJSON)
	b := append(doc[:len(doc)-1], `,"output":`...)
	flushed := false
	b, err = appendRows(b, shape, data, func(b []byte) ([]byte, error) {
		flushed = true
		_, err := w.Write(b)
		return b[:0], err
	})
	if err != nil {
		return err
	}
	b = append(b, "}\n"...)
	if !flushed {
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	}
	_, err = w.Write(b)
	return err
}
