package gateway

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/wire"
)

// v2Models is where the paths of models begin.
const v2Models = "/v2/models/"

// headerLength names the header that says how long the JSON in front of binary tensors is.
const headerLength = "Inference-Header-Content-Length"

// isV2 tells whether a path speaks the Open Inference Protocol.
func isV2(path string) bool { return path == "/v2" || strings.HasPrefix(path, "/v2/") }

// v2Error is the protocol's error document, with the name of the status beside it.
type v2Error struct {
	Error string `json:"error"`
	Code  string `json:"code"`
}

// v2Server describes the server.
func (g *Gateway) v2Server(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Status(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		Name       string   `json:"name"`
		Version    string   `json:"version"`
		Extensions []string `json:"extensions"`
	}{serverName, doc.Version, serverExtensions})
}

// okOr503 is the status of a question that is answered with yes or no.
func okOr503(yes bool) int {
	if yes {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// v2Live tells whether the node's loops beat.
func (g *Gateway) v2Live(w http.ResponseWriter, _ *http.Request, _ string) error {
	live := g.node.Alive() == nil
	return writeJSON(w, okOr503(live), struct {
		Live bool `json:"live"`
	}{live})
}

// v2Ready tells whether the node is ready.
func (g *Gateway) v2Ready(w http.ResponseWriter, r *http.Request, _ string) error {
	doc, err := g.node.Ready(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, okOr503(doc.Ready), struct {
		Ready bool `json:"ready"`
	}{doc.Ready})
}

// modelPath reads NAME[/versions/V][/VERB] from the right; VERB is one of verbs, where "" means none. A name may end in what looks
// like a version or a verb: what leaves no name is part of it.
func modelPath(path string, verbs ...string) (name modelName, verb string, err error) {
	for _, verb := range verbs {
		rest := path
		if verb != "" {
			var found bool
			if rest, found = strings.CutSuffix(path, "/"+verb); !found {
				continue
			}
		}
		parts := strings.Split(rest, "/")
		if n := len(parts); n >= 3 && parts[n-2] == "versions" {
			versioned, versionErr := parseModelName(strings.Join(parts[:n-2], "/"), parts[n-1])
			if versionErr == nil {
				return versioned, verb, nil
			}
			err = errors.Join(err, versionErr)
		}
		plain, plainErr := parseModelName(rest, "")
		if plainErr == nil {
			return plain, verb, nil
		}
		err = errors.Join(err, plainErr)
	}
	if err == nil {
		err = refuse(wire.NotFound, "nothing is at "+quoted(v2Models+path)+": expected NAME[/versions/V] and "+strings.Join(verbs, " or "))
	}
	return modelName{}, "", err
}

// v2Model describes a model, or tells whether it is ready.
func (g *Gateway) v2Model(w http.ResponseWriter, r *http.Request, path string) error {
	name, verb, err := modelPath(path, "ready", "")
	if err != nil {
		return err
	}
	m := g.model(name)
	if verb == "ready" {
		ready, err := m.ready(r.Context())
		if err != nil {
			return err
		}
		return writeJSON(w, okOr503(ready), struct {
			Name  string `json:"name"`
			Ready bool   `json:"ready"`
		}{name.name, ready})
	}
	doc, err := m.metadata(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, doc)
}

// v2Infer makes one forward pass. Tensors travel in the JSON, or behind it as binary.
func (g *Gateway) v2Infer(w http.ResponseWriter, r *http.Request, path string) error {
	name, _, err := modelPath(path, "infer")
	if err != nil {
		return err
	}
	m := g.model(name)
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return refuse(wire.Unimplemented, "Content-Encoding "+quoted(encoding)+": bodies are taken as they are")
	}
	b, err := g.openBody(w, r, g.cfg.MaxFrame)
	if err != nil {
		return err
	}
	defer b.Close()
	req, err := readInfer(b, r.Header.Get(headerLength))
	if err != nil {
		return err
	}
	reply, err := m.infer(r.Context(), req.inferRequest)
	if err != nil {
		return err
	}
	return writeInfer(w, name, req, reply)
}

// httpInfer is a request with what only this face knows of it.
type httpInfer struct {
	inferRequest
	id     string
	binary map[string]bool // by output, where the request says; else params.binary counts
}

// httpInput is an input as its JSON says.
type httpInput struct {
	tensor     inferTensor
	dtype      datatype
	elements   int
	binarySize int64 // bytes behind the JSON; -1: the elements are in the JSON
}

// readInfer reads the whole body: JSON of the length that the header says (all of it without the header), then binary tensors.
func readInfer(b *body, headerLength string) (httpInfer, error) {
	src := bufio.NewReader(b) // a read larger than its 4 KiB goes past it, straight into the tensor
	document := io.Reader(src)
	length := int64(-1)
	if headerLength != "" {
		var err error
		length, err = strconv.ParseInt(headerLength, 10, 64)
		if err != nil || length < 0 {
			return httpInfer{}, refuse(wire.InvalidArgument, fmt.Sprintf("the header is said to have %s bytes: that is no number of bytes", quoted(headerLength)))
		}
		if b.size >= 0 && length > b.size {
			return httpInfer{}, refuse(wire.InvalidArgument, fmt.Sprintf("the header is said to have %s bytes, the body has %d", quoted(headerLength), b.size))
		}
		if length > b.limit {
			return httpInfer{}, tooLarge(b.limit, fmt.Sprintf("the header is said to have %d bytes", length))
		}
		document = io.LimitReader(src, length)
	}
	text, err := b.readAll(document)
	if err != nil {
		return httpInfer{}, err
	}
	if length > int64(len(text)) {
		return httpInfer{}, refuse(wire.InvalidArgument, fmt.Sprintf("the body ends in its header: %d of %d bytes", len(text), length))
	}
	req, inputs, err := parseInfer(text, b.limit)
	if err != nil {
		return httpInfer{}, err
	}
	if err := readBinary(src, b, int64(len(text)), inputs); err != nil {
		return httpInfer{}, err
	}
	for _, in := range inputs {
		req.inputs = append(req.inputs, in.tensor)
	}
	return req, nil
}

// readBinary fills in the inputs whose elements stand behind the JSON, and expects the body to end there.
func readBinary(src io.Reader, b *body, read int64, inputs []httpInput) error {
	for _, in := range inputs {
		read += max(in.binarySize, 0)
	}
	if read > b.limit {
		return tooLarge(b.limit, fmt.Sprintf("the inputs' sizes add up to %d bytes", read))
	}
	if b.size >= 0 && read != b.size {
		return refuse(wire.InvalidArgument, fmt.Sprintf("header and inputs take %d bytes, the body has %d", read, b.size))
	}
	for i := range inputs {
		in := &inputs[i]
		if in.binarySize < 0 {
			continue
		}
		if err := readTensor(src, b, in); err != nil {
			return err
		}
	}
	var more [1]byte
	switch _, err := io.ReadFull(src, more[:]); {
	case err == nil:
		return refuse(wire.InvalidArgument, "bytes follow the last input")
	case errors.Is(err, io.EOF):
		return nil
	default:
		return err
	}
}

// readTensor reads one binary input: into the memory of its floats where the body's size vouches for it, else as fast as it arrives.
func readTensor(src io.Reader, b *body, in *httpInput) error {
	if b.size >= 0 && !in.dtype.ints && in.dtype.codec == codec.F32 {
		data := make([]float32, in.elements)
		if raw, ok := codec.ViewBytes(data); ok {
			if n, err := io.ReadFull(src, raw); err != nil {
				return b.brokeOff(in.tensor.name, n, len(raw))
			}
			in.tensor.data = data
			return nil
		}
	}
	raw, err := b.readAll(io.LimitReader(src, in.binarySize))
	if err != nil {
		return err
	}
	if int64(len(raw)) < in.binarySize {
		return b.brokeOff(in.tensor.name, len(raw), int(in.binarySize))
	}
	return in.tensor.decodeRaw(in.dtype, in.elements, raw)
}

// brokeOff says why a tensor is not whole: the body's own failure, or that it ended.
func (b *body) brokeOff(name string, n, of int) error {
	if err := b.ended(); err != nil {
		return err
	}
	return refuse(wire.InvalidArgument, fmt.Sprintf("the body ends in input %s: %d of %d bytes", quoted(name), n, of))
}

// pieces is the beginning of a document, in pieces: in one buffer that grows it would leave several times as much garbage as is sent.
type pieces struct {
	done [][]byte
	size int
}

// pieceSize is more than what appendRows hands over: 64 KiB and a number.
const pieceSize = 72 << 10

// add takes a piece, and returns the buffer of the next.
func (p *pieces) add(b []byte) ([]byte, error) {
	p.done, p.size = append(p.done, b), p.size+len(b)
	return make([]byte, 0, pieceSize), nil
}

// writeInfer sends the reply: JSON alone, or with the outputs behind it that were asked for as binary.
func writeInfer(w http.ResponseWriter, name modelName, req httpInfer, reply inferReply) error {
	var out pieces
	b := []byte(`{"model_name":`)
	b = appendString(b, name.name)
	if name.version != "" {
		b = appendString(append(b, `,"model_version":`...), name.version)
	}
	if req.id != "" {
		b = appendString(append(b, `,"id":`...), req.id)
	}
	for i, p := range reply.params {
		b = append(b, delimiter(i, `,"parameters":{`, `,`)...)
		b = appendString(append(appendString(b, p.key), ':'), p.value)
	}
	if len(reply.params) > 0 {
		b = append(b, '}')
	}
	var behind [][]byte
	b = append(b, `,"outputs":[`...)
	for i, t := range reply.outputs {
		b = append(b, delimiter(i, `{"name":`, `,{"name":`)...)
		b = appendString(b, t.name)
		b = appendString(append(b, `,"datatype":`...), t.datatype)
		b = append(b, `,"shape":[`...)
		for j, size := range t.shape {
			b = strconv.AppendInt(append(b, delimiter(j, ``, `,`)...), int64(size), 10)
		}
		binary, said := req.binary[t.name]
		if !said {
			binary = req.params.binary
		}
		if binary {
			raw := t.encodeRaw()
			behind = append(behind, raw)
			b = append(b, `],"parameters":{"binary_data_size":`...)
			b = append(strconv.AppendInt(b, int64(len(raw)), 10), `}}`...)
			continue
		}
		var err error
		if b, err = t.appendJSON(append(b, `],"data":`...), out.add); err != nil {
			return err
		}
		b = append(b, '}')
	}
	b = append(b, `]}`...)
	length := out.size + len(b)
	total := length
	w.Header().Set("Content-Type", mimeJSON)
	if len(behind) > 0 {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set(headerLength, strconv.Itoa(length))
		for _, raw := range behind {
			total += len(raw)
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(total))
	for _, part := range append(append(out.done, b), behind...) {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// appendJSON writes a tensor's elements as one flat array; flush is as in appendRows.
func (t *inferTensor) appendJSON(b []byte, flush func([]byte) ([]byte, error)) ([]byte, error) {
	d, _ := datatypeOf(t.datatype)
	if d.ints {
		b = append(b, '[')
		for i, v := range t.ints {
			b = strconv.AppendInt(append(b, delimiter(i, ``, `,`)...), v, 10)
		}
		return append(b, ']'), nil
	}
	data := t.data
	if !d.plain() { // the numbers are those that the datatype holds
		data = make([]float32, len(t.data))
		codec.Decode(data, d.codec, t.encodeRaw())
	}
	if !expert.Finite(data) {
		return nil, refuse(wire.Unimplemented, "output "+quoted(t.name)+" holds NaN or infinity as "+t.datatype+", which JSON cannot: ask for it as binary")
	}
	return appendRows(b, []int{len(data)}, data, flush)
}

// delimiter is what stands in front of element i of a list.
func delimiter(i int, first, others string) string {
	if i == 0 {
		return first
	}
	return others
}

// appendString writes a JSON string.
func appendString(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil {
		return append(b, `""`...) // a string always becomes JSON
	}
	return append(b, quoted...)
}
