package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"gorgonia.org/tensor"

	"github.com/kwaai/kwaaid/internal/api"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/npy"
)

// maxInput bounds an input file, as the default max_frame bounds a frame.
const maxInput = 256 << 20

// grace is how long a command waits beyond a call's deadline for the node to say that it passed.
const grace = 2 * time.Second

type callCmd struct {
	Name     string        `arg:"" help:"An expert: expert-N, N, MODEL[@REVISION]/LAYER/INDEX. Or a MoE layer: MODEL[@REVISION]/LAYER."`
	Input    string        `placeholder:"X.npy" help:"Rows to send: 1-D, 2-D or 3-D float32; - reads stdin."`
	Output   string        `placeholder:"Y.npy" help:"Where to write the answer; - writes stdout."`
	Rows     *int          `placeholder:"N" help:"Without --input: how many random rows to send (default: 1)."`
	Seed     uint64        `help:"Without --input: the seed of the random rows."`
	Timeout  time.Duration `default:"5s" help:"Deadline of the whole call, look-up included."`
	Digest   string        `placeholder:"HEX" help:"Pin the weights: 64 hexadecimal digits."`
	Codec    string        `enum:",f32,bf16,f16" default:"" help:"Activations on the wire: f32, bf16 or f16 (default: the node's)."`
	Numerics string        `enum:",exact,dot,tile" default:"" help:"Order of operations: exact, dot or tile (default: the host's)."`
	Combine  string        `enum:",caller,peer" default:"" help:"Layers: where the experts' outputs are added up: caller (the same bits whoever hosts) or peer (fewer bytes) (default: the node's)."`
	Policy   string        `enum:",fail,skip" default:"" help:"Layers: when nobody answers for an expert, fail (default) or leave it out."`
	TopK     *int          `placeholder:"K" help:"Layers: experts for each row (default: as the model says)."`
	join     `embed:""`
}

func (c *callCmd) check(a *app) error {
	switch {
	case c.Output == "-" && a.JSON:
		return usageError("--output - and --json both want stdout: choose one")
	case c.Input != "" && c.Rows != nil:
		return usageError("--input brings its own rows: leave out --rows")
	case c.Rows != nil && *c.Rows <= 0:
		return usagef("--rows %d: expected a positive number", *c.Rows)
	case c.TopK != nil && *c.TopK <= 0:
		return usagef("--top-k %d: expected a positive number", *c.TopK)
	case c.Timeout <= 0:
		return usagef("--timeout %v: expected a positive duration, such as 5s", c.Timeout)
	}
	if c.Digest != "" {
		if _, err := expert.ParseDigest(c.Digest); err != nil {
			return usageError(err.Error())
		}
	}
	ref, err := expert.ParseRef(c.Name)
	switch {
	case err != nil:
		return usageError(err.Error())
	case ref.Layer == nil && (c.Combine != "" || c.Policy != "" || c.TopK != nil):
		return usagef("--combine, --policy and --top-k are for layers: %s is one expert", c.Name)
	case ref.Layer != nil && c.Digest != "":
		return usagef("--digest pins one expert's weights: %s is a layer", c.Name)
	case ref.Layer != nil && len(c.Bootstrap) > 0:
		return usagef("%s is a layer: it takes a node that has its router; leave out --bootstrap", c.Name)
	}
	return nil
}

// Run makes the call.
func (c *callCmd) Run(a *app) error {
	if err := c.check(a); err != nil {
		return err
	}
	x, err := c.readInput(a)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(a.ctx, c.Timeout+grace)
	defer cancel()
	if ref, err := expert.ParseRef(c.Name); err == nil && ref.Layer != nil {
		return c.callLayer(ctx, a, x)
	}
	s, err := c.open(a)
	if err != nil {
		return err
	}
	defer s.Close()
	res, y, err := s.Call(ctx, api.CallRequest{
		Name: c.Name, Input: x, Rows: c.drawn(), Seed: c.Seed,
		Timeout: c.Timeout, Digest: c.Digest, Codec: c.Codec, Numerics: c.Numerics,
	})
	if err != nil {
		return err
	}
	if err := c.writeOutput(a, y); err != nil {
		return err
	}
	if c.Output == "-" {
		return nil
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%s answered in %s\n", c.Name, millis(res.MS))
		fmt.Fprintf(w, "  by        %s, %s (%s)\n", res.AnsweredBy.Expert, res.AnsweredBy.Peer, res.AnsweredBy.Where)
		for _, t := range res.Attempts {
			if t.Status != "OK" {
				fmt.Fprintf(w, "  tried     %s at %s: %s after %s\n", t.Expert, shortPeer(t.Peer), t.Status, millis(t.MS))
			}
		}
		fmt.Fprintf(w, "  output    %v float32, sha256 %s\n", res.Shape, res.SHA256)
		fmt.Fprintf(w, "  digest    %s\n  numerics  %s\n", res.Digest, dash(res.Numerics))
		if c.Output != "" {
			fmt.Fprintf(w, "  written   %s\n", c.Output)
		}
	})
}

func (c *callCmd) callLayer(ctx context.Context, a *app, x *tensor.Dense) error {
	n := a.node()
	defer n.Close()
	res, out, err := n.CallLayer(ctx, api.LayerRequest{
		Name: c.Name, Input: x, Rows: c.drawn(), Seed: c.Seed, TopK: c.topK(),
		Timeout: c.Timeout, Codec: c.Codec, Numerics: c.Numerics, Combine: c.Combine, Policy: c.Policy,
	})
	if err != nil {
		return err
	}
	if err := c.writeOutput(a, out.HiddenStates); err != nil {
		return err
	}
	if c.Output == "-" {
		return nil
	}
	return a.print(res, func(w io.Writer) {
		fmt.Fprintf(w, "%s answered in %s\n", res.Layer, millis(res.MS))
		rows := [][]string{{"  EXPERT", "ROWS", "BY", "WHERE"}}
		for _, by := range res.AnsweredBy {
			rows = append(rows, []string{fmt.Sprintf("  %d", by.Index), strconv.Itoa(by.Rows), by.Peer, string(by.Where)})
		}
		table(w, rows)
		if len(res.MissingNames) > 0 {
			fmt.Fprintf(w, "  missing   %s\n", strings.Join(res.MissingNames, " "))
		}
		fmt.Fprintf(w, "  output    %v float32, sha256 %s\n", res.Shape, res.SHA256)
		fmt.Fprintf(w, "  numerics  %s, balance %.2f\n", dash(res.Numerics), res.Balance)
		if c.Output != "" {
			fmt.Fprintf(w, "  written   %s\n", c.Output)
		}
	})
}

// drawn is how many rows are drawn where none are given.
func (c *callCmd) drawn() int {
	if c.Rows == nil {
		return 1
	}
	return *c.Rows
}

// topK is 0 where the node shall decide.
func (c *callCmd) topK() int {
	if c.TopK == nil {
		return 0
	}
	return *c.TopK
}

// readInput returns nil where the rows are drawn.
func (c *callCmd) readInput(a *app) (*tensor.Dense, error) {
	if c.Input == "" {
		return nil, nil
	}
	r := a.stdin
	if c.Input != "-" {
		f, err := os.Open(c.Input)
		if err != nil {
			return nil, usagef("--input: %v", err)
		}
		defer f.Close() //nolint:errcheck // it is only read
		r = f
	}
	shape, x, err := npy.Read(bufio.NewReader(r), maxInput)
	if err != nil {
		return nil, usagef("--input %s: %v", c.Input, err)
	}
	if len(x) == 0 {
		return nil, usagef("--input %s: shape %v holds no rows: expected [hidden], [rows, hidden] or [a, b, hidden]", c.Input, shape)
	}
	return tensor.New(tensor.WithShape(shape...), tensor.WithBacking(x)), nil
}

func (c *callCmd) writeOutput(a *app, y *tensor.Dense) error {
	if c.Output == "" {
		return nil
	}
	data, ok := y.Data().([]float32)
	if !ok {
		return fmt.Errorf("the answer is %v: expected float32", y.Dtype())
	}
	if c.Output == "-" {
		return npy.Write(a.stdout, y.Shape(), data)
	}
	f, err := os.Create(c.Output)
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	w := bufio.NewWriter(f)
	return errors.Join(npy.Write(w, y.Shape(), data), w.Flush(), f.Close())
}
