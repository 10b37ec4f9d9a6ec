package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/npy"
)

// ResultHeader carries the JSON document of a call whose body is the output as npy.
const ResultHeader = "Kwaai-Result"

// MIMENpy is the media type of a tensor in numpy's format.
const MIMENpy = "application/x-npy"

// MIMEEvents is the media type of a stream of events, a JSON document a line.
const MIMEEvents = "application/x-ndjson"

// maxDocument bounds a JSON document from a node: 100,000 experts take some 30 MB.
const maxDocument = 64 << 20

// maxHeader bounds the reply's header, where the attempts of a call stand.
const maxHeader = 1 << 20

// maxOutput bounds the output of a call; a node's own max_frame is the limit that counts.
const maxOutput = 4 << 30

// maxShort bounds documents of a few lines: errors, readiness.
const maxShort = 1 << 20

// patience bounds the wait for a document that a node has at hand, or finds within the 10 s of a look-up, and for a sign of life beside longer
// work. A node that hangs takes connections all the same, as its system does that, and would be waited for without an end.
const patience = 30 * time.Second

// errHangs is the cause of giving up.
var errHangs = fmt.Errorf("%w: it hangs, or its machine does; `kwaaid doctor` tells more", context.DeadlineExceeded)

// ErrNoNode: nothing answers at the node's address.
var ErrNoNode = errors.New("no node")

// Client calls the HTTP address of a node. Its methods return *Error where the node answered with one, and an error that
// matches ErrNoNode where nobody did.
type Client struct {
	base     string
	addr     string
	token    string
	http     *http.Client
	patience time.Duration
}

// NewClient returns a client of the node at addr (HOST:PORT, or a URL); token may be empty. Close ends its connections.
func NewClient(addr, token string) *Client {
	base := addr
	if !strings.Contains(addr, "://") {
		base = "http://" + addr
	}
	return &Client{
		base:     strings.TrimSuffix(base, "/"),
		addr:     addr,
		token:    token,
		patience: patience,
		http: &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true, // activations do not compress, and the length is wanted
		}},
	}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks the node about itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, http.MethodGet, "/api/v1/status", nil)
}

// Experts asks for every expert that the node knows.
func (c *Client) Experts(ctx context.Context) ([]Expert, error) {
	return get[[]Expert](ctx, c, http.MethodGet, "/api/v1/experts", nil)
}

// Peers asks for the node's peers.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return get[[]Peer](ctx, c, http.MethodGet, "/api/v1/peers", nil)
}

// Layers asks for the layers that the node can route.
func (c *Client) Layers(ctx context.Context) ([]Layer, error) {
	return get[[]Layer](ctx, c, http.MethodGet, "/api/v1/layers", nil)
}

// Resolve asks who hosts the expert.
func (c *Client) Resolve(ctx context.Context, name string) (Resolved, error) {
	return get[Resolved](ctx, c, http.MethodGet, "/api/v1/resolve/"+escapeName(name), nil)
}

// Load has the node host more experts; progress is called as it goes, in this goroutine.
func (c *Client) Load(ctx context.Context, req LoadRequest, progress func(LoadProgress)) (ExpertList, error) {
	return stream[LoadProgress, ExpertList](ctx, c, "/api/v1/experts", req, progress)
}

// Unload has the node stop hosting an expert.
func (c *Client) Unload(ctx context.Context, name string) (ExpertList, error) {
	return get[ExpertList](ctx, c, http.MethodDelete, "/api/v1/experts/"+escapeName(name), nil)
}

// Checkup has the node examine itself; it takes up to half a minute.
func (c *Client) Checkup(ctx context.Context) (Checkup, error) {
	return get[Checkup](ctx, c, http.MethodPost, "/api/v1/checkup", nil)
}

// Ready asks whether the node is ready, and if not, why.
func (c *Client) Ready(ctx context.Context) (Readiness, error) {
	resp, err := c.do(ctx, http.MethodGet, "/readyz", "", nil, "")
	if err != nil {
		return Readiness{}, err
	}
	defer resp.Body.Close()
	// 503 brings the reasons; anything else is no answer to the question.
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusServiceUnavailable {
		return Readiness{}, c.errorOf(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxShort))
	if err != nil {
		return Readiness{}, fmt.Errorf("reading /readyz of %s: %w", c.addr, err)
	}
	var doc Readiness
	if err := json.Unmarshal(body, &doc); err != nil {
		return Readiness{}, fmt.Errorf("/readyz of %s answered %s with something else than a node's document", c.addr, resp.Status)
	}
	return doc, nil
}

// Call makes one forward pass of an expert through the node.
func (c *Client) Call(ctx context.Context, req CallRequest) (res CallResult, y *tensor.Dense, err error) {
	q := query{}
	q.set("digest", req.Digest)
	q.set("codec", req.Codec)
	q.set("numerics", req.Numerics)
	q.timeout(req.Timeout)
	y, err = c.call(ctx, req.Name, q, req.Input, req.Rows, req.Seed, &res)
	return res, y, err
}

// CallLayer makes one forward pass of a layer through the node. Of the outputs the hidden states come back; the others go by the Open
// Inference Protocol.
func (c *Client) CallLayer(ctx context.Context, req LayerRequest) (res LayerResult, out LayerOutput, err error) {
	q := query{}
	q.set("codec", req.Codec)
	q.set("numerics", req.Numerics)
	q.set("combine", req.Combine)
	q.set("policy", req.Policy)
	q.timeout(req.Timeout)
	if req.TopK > 0 {
		q.set("top_k", strconv.Itoa(req.TopK))
	}
	out.HiddenStates, err = c.call(ctx, req.Name, q, req.Input, req.Rows, req.Seed, &res)
	return res, out, err
}

// query is what stands behind the question mark.
type query map[string][]string

func (q query) set(key, value string) {
	if value != "" {
		url.Values(q).Set(key, value)
	}
}

func (q query) timeout(d time.Duration) {
	if d > 0 {
		q.set("timeout", d.String())
	}
}

// call posts rows, or has them drawn, and decodes the document and the output of the reply.
func (c *Client) call(ctx context.Context, name string, q query, x *tensor.Dense, rows int, seed uint64, res any) (*tensor.Dense, error) {
	var body io.Reader
	contentType := ""
	if x != nil {
		values, ok := x.Data().([]float32)
		if !ok {
			return nil, NewError("INVALID_ARGUMENT", fmt.Sprintf("the input is %v: expected float32", x.Dtype()), nil)
		}
		var buf bytes.Buffer
		if err := npy.Write(&buf, x.Shape(), values); err != nil {
			return nil, err
		}
		body, contentType = &buf, MIMENpy
	} else {
		q.set("rows", strconv.Itoa(max(rows, 1)))
		q.set("seed", strconv.FormatUint(seed, 10))
	}
	resp, err := c.do(ctx, http.MethodPost, "/api/v1/call/"+escapeName(name)+"?"+url.Values(q).Encode(), contentType, body, MIMENpy)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, c.errorOf(resp)
	}
	if err := json.Unmarshal([]byte(resp.Header.Get(ResultHeader)), res); err != nil {
		return nil, fmt.Errorf("the header %s of %s: %w", ResultHeader, c.addr, err)
	}
	shape, y, err := npy.Read(resp.Body, maxOutput)
	if err != nil {
		return nil, fmt.Errorf("reading the output from %s: %w", c.addr, err)
	}
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(y)), nil
}

// Bench has the node make load; progress is called as it goes, in this goroutine.
func (c *Client) Bench(ctx context.Context, req BenchRequest, progress func(BenchProgress)) (BenchResult, error) {
	return stream[BenchProgress, BenchResult](ctx, c, "/api/v1/bench", req, progress)
}

// stream posts req and reads the events of the answer up to the result. progress, which may be nil, is called in this goroutine.
func stream[P, R any](ctx context.Context, c *Client, path string, req any, progress func(P)) (result R, err error) {
	doc, err := json.Marshal(req)
	if err != nil {
		return result, err
	}
	ctx, cancel := c.whileAlive(ctx)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, path, "application/json", bytes.NewReader(doc), MIMEEvents)
	if err != nil {
		return result, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return result, c.errorOf(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxDocument)
	for lines.Scan() {
		var event Event[P, R]
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return result, fmt.Errorf("a line of %s from %s: %w", path, c.addr, err)
		}
		switch {
		case event.Result != nil:
			return *event.Result, nil
		case event.Error != nil:
			return result, &Error{Body: *event.Error}
		case event.Progress != nil && progress != nil:
			progress(*event.Progress)
		}
	}
	if err := lines.Err(); err != nil {
		return result, fmt.Errorf("%s of %s broke off: %w", path, c.addr, cmp.Or(context.Cause(ctx), err))
	}
	return result, fmt.Errorf("%s of %s broke off before its result", path, c.addr)
}

// get sends in (nil: no body) as JSON and decodes the document that comes back.
func get[T any](ctx context.Context, c *Client, method, path string, in any) (T, error) {
	var out T
	var body io.Reader
	contentType := ""
	if in != nil {
		doc, err := json.Marshal(in)
		if err != nil {
			return out, err
		}
		body, contentType = bytes.NewReader(doc), "application/json"
	}
	var cancel context.CancelFunc
	if method == http.MethodGet {
		ctx, cancel = context.WithTimeoutCause(ctx, c.patience, errHangs)
	} else {
		ctx, cancel = c.whileAlive(ctx)
	}
	defer cancel()
	resp, err := c.do(ctx, method, path, contentType, body, "application/json")
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out, c.errorOf(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxDocument)).Decode(&out); err != nil {
		return out, fmt.Errorf("the document %s of %s: %w", path, c.addr, err)
	}
	return out, nil
}

// whileAlive returns a context for work that takes as long as it takes: its cause is errHangs once the node leaves even a question about its
// health unanswered. cancel has to be called; it returns when nothing is asked any more.
func (c *Client) whileAlive(ctx context.Context) (work context.Context, cancel context.CancelFunc) {
	work, end := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-work.Done():
				return
			case <-time.After(c.patience / 2):
			}
			if c.hangs(work) {
				end(errHangs)
			}
		}
	}()
	return work, func() {
		end(nil)
		<-ended
	}
}

// hangs asks how the node is; any answer will do, and a connection that is refused or breaks ends the work's own request too.
func (c *Client) hangs(ctx context.Context) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, c.patience, errHangs)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, "/healthz", "", nil, "")
	if err != nil {
		return errors.Is(err, errHangs)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxShort)) // the connection is of use again
	_ = resp.Body.Close()
	return false
}

func (c *Client) do(ctx context.Context, method, path, contentType string, body io.Reader, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: not an address: expected HOST:PORT", ErrNoNode, c.addr)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	switch {
	case err == nil:
		return resp, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("no answer from the node at %s: %w", c.addr, context.Cause(ctx))
	default:
		return nil, fmt.Errorf("%w at %s; start one with `kwaaid run` (%w)", ErrNoNode, c.addr, err)
	}
}

// errorOf turns a reply that is not 200 into an error, whoever wrote it.
func (c *Client) errorOf(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxShort))
	if err != nil {
		return fmt.Errorf("%s answered %s, and then: %w", c.addr, resp.Status, err)
	}
	doc := &Error{}
	if json.Unmarshal(body, doc) != nil || doc.Body.Code == "" {
		return fmt.Errorf("%s answered %s with something else than a node's document: is it a kwaaid?", c.addr, resp.Status)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		doc.RetryAfter = time.Duration(s) * time.Second
	}
	return doc
}

// escapeName keeps the slashes of a NAME and escapes what a URL cannot hold.
func escapeName(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
