package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Checkpoint is an open Hugging Face directory: config.json, and safetensors in one file or in shards. Its methods are safe
// for concurrent use, but for Close, which comes last.
type Checkpoint struct {
	dir     string
	src     *source
	config  *Config
	layers  []*Layer
	buffers buffers
}

// UnknownError says that no experts were recognised in a checkpoint.
type UnknownError struct {
	Dir          string
	Architecture string   // as config.json names it
	LookedFor    []string // the tensors by which layouts are recognised
	Found        string   // a tensor that looks as if it belonged to an expert; empty: there is none
}

func (e *UnknownError) Error() string {
	found := "no tensor there has \"expert\" in its name"
	if e.Found != "" {
		found = fmt.Sprintf("it has %q instead", e.Found)
	}
	return fmt.Sprintf("%s: %s: no experts in a layout that is known: looked for tensors <block>.%s; %s",
		e.Dir, e.Architecture, strings.Join(e.LookedFor, ", <block>."), found)
}

// Open reads config.json and the headers of the safetensors files, and finds the MoE layers by their tensors. Weights are
// read by Layer.Load. Errors name the file, the tensor, what was expected and what was found; an architecture without
// experts that we know is an UnknownError.
func Open(dir string, opts ...Option) (_ *Checkpoint, err error) {
	config, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	src, err := openSource(dir, opts...)
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{dir: dir, src: src, config: config}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := c.findLayers(); err != nil {
		return nil, err
	}
	if len(c.layers) == 0 {
		return nil, c.unknown()
	}
	return c, nil
}

// Close closes the files. Experts that were loaded live on.
func (c *Checkpoint) Close() error {
	c.buffers.drop()
	return c.src.close()
}

// Dir returns the directory that was opened.
func (c *Checkpoint) Dir() string { return c.dir }

// Config returns config.json.
func (c *Checkpoint) Config() *Config { return c.config }

// Layers returns the MoE layers that are part of the model, in its order.
func (c *Checkpoint) Layers() []*Layer { return slices.Clone(c.layers) }

// Layer returns the layer of that name, nil if there is none.
func (c *Checkpoint) Layer(name string) *Layer {
	for _, l := range c.layers {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// findLayers recognises the blocks.
func (c *Checkpoint) findLayers() error {
	limits, err := c.layerLimits()
	if err != nil {
		return err
	}
	blocks := map[string]bool{}
	for _, name := range c.src.names {
		for i := range layouts {
			prefix, ok := strings.CutSuffix(name, layouts[i].anchor())
			if ok && strings.HasSuffix(prefix, ".") && limits.holds(prefix) {
				blocks[prefix] = true
			}
		}
	}
	for prefix := range blocks {
		if l := c.recognise(prefix); l != nil {
			c.layers = append(c.layers, l)
		}
	}
	slices.SortFunc(c.layers, func(a, b *Layer) int { return comparePaths(a.net.prefix, b.net.prefix) })
	for i, l := range c.layers {
		if j := slices.IndexFunc(c.layers[:i], func(other *Layer) bool { return other.Name == l.Name }); j >= 0 {
			return fmt.Errorf("%s: %s: both %s and %s would be layer %s", c.dir, c.config.Architecture(), c.layers[j].net.prefix, l.net.prefix, l.Name)
		}
	}
	return nil
}

// anchor is the tensor by which a layout is recognised: the first part of expert 0.
func (l *layout) anchor() string {
	name := strings.Replace(l.parts[0].tensor, "{e}", "0", 1)
	if l.mxfp4 {
		name += "_blocks"
	}
	return name
}

// recognise returns the layer whose block has that prefix, nil where no layout has such tensors at all. A layout whose tensors are
// there but do not fit makes a layer that only says what is wrong.
func (c *Checkpoint) recognise(prefix string) *Layer {
	var first error
	for i := range layouts {
		n, err := c.try(&layouts[i], prefix)
		if err == nil && n != nil {
			return &Layer{
				Name: layerName(prefix), Experts: n.sizes.experts, Function: n.fn, ExpertBytes: n.storedBytes(), checkpoint: c, net: *n,
			}
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		return nil
	}
	return &Layer{Name: layerName(prefix), Err: first, checkpoint: c, net: network{prefix: prefix}}
}

// try fits a layout to a block. It returns nil and no error where tensors of the layout are not there.
func (c *Checkpoint) try(l *layout, prefix string) (*network, error) {
	n := &network{src: c.src, layout: l, prefix: prefix}
	for _, p := range l.parts {
		name := n.name(p, 0)
		if l.mxfp4 && p.isMatrix() {
			name += "_blocks"
		}
		if !p.optional && !c.src.has(name) {
			return nil, nil
		}
	}
	if t, err := c.src.find(prefix + l.anchor()); err == nil && !l.mxfp4 && len(t.Shape) != len(strings.Split(l.parts[0].axes, ",")) {
		return nil, nil // a namesake, such as a shared network beside stacked experts
	}
	if err := c.configure(n); err != nil {
		return nil, err
	}
	if router, err := c.src.find(prefix + firstOf(c.src, prefix, routerNames)); err == nil {
		if err := n.sizes.match("experts,hidden", router.Shape); err != nil {
			return nil, router.errorf("%w", err)
		}
	}
	if n.sizes.experts == 0 && strings.Contains(l.parts[0].tensor, "{e}") {
		n.sizes.experts = n.count()
	}
	if err := n.measure(); err != nil {
		return nil, err
	}
	if name := n.stray(); name != "" {
		return nil, fmt.Errorf("%s: tensor %q: it has no part in the layout of %s", c.dir, name, l.families)
	}
	return n, n.fn.Validate()
}

// count returns how many experts have a first part of their own, without a gap.
func (n *network) count() int {
	count := 1
	for n.src.has(n.name(n.layout.parts[0], count)) {
		count++
	}
	return count
}

// configure fills in what config.json says of a network.
func (c *Checkpoint) configure(n *network) (err error) {
	if n.sizes.hidden, err = c.config.Int(0, "hidden_size", "d_model"); err != nil {
		return err
	}
	if n.fn.Activation, err = c.config.activation(n.layout.activation); err != nil {
		return err
	}
	if n.fn.Activation == swigluClamped {
		limit, err := c.config.Float(defaultSwigluLimit, "swiglu_limit")
		if err != nil {
			return err
		}
		n.fn.Limit = float32(limit)
	}
	n.block, err = c.config.weightBlock()
	return err
}

// unknown explains why there is no layer.
func (c *Checkpoint) unknown() error {
	e := &UnknownError{Dir: c.dir, Architecture: c.config.Architecture()}
	for i := range layouts {
		if anchor := layouts[i].anchor(); !slices.Contains(e.LookedFor, anchor) {
			e.LookedFor = append(e.LookedFor, anchor)
		}
	}
	for _, name := range c.src.names {
		if strings.Contains(name, "expert") {
			e.Found = name
			break
		}
	}
	return e
}

// layerLimits are the numbers of layers that the model has; checkpoints may hold more, such as DeepSeek's for predicting
// several tokens.
type layerLimits struct{ plain, encoder, decoder int }

func (c *Checkpoint) layerLimits() (l layerLimits, err error) {
	var errs [3]error
	l.plain, errs[0] = c.config.Int(0, "num_hidden_layers", "n_layers", "num_layers")
	l.encoder, errs[1] = c.config.Int(l.plain, "num_layers", "encoder_layers")
	l.decoder, errs[2] = c.config.Int(l.plain, "num_decoder_layers", "decoder_layers")
	return l, errors.Join(errs[:]...)
}

// holds tells whether a block is part of the model.
func (l layerLimits) holds(prefix string) bool {
	words := strings.Split(prefix, ".")
	limit := l.plain
	switch {
	case slices.Contains(words, "mtp"): // Qwen's layers for predicting several tokens
		return false
	case slices.Contains(words, "encoder"):
		limit = l.encoder
	case slices.Contains(words, "decoder"):
		limit = l.decoder
	}
	for _, word := range words {
		if n, err := strconv.Atoi(word); err == nil {
			return limit == 0 || n < limit
		}
	}
	return true
}

// layerName names a block: the number in its path, or in encoder-decoder models, and where there is not exactly one number,
// the module's path without the block itself.
func layerName(prefix string) string {
	words := strings.Split(strings.TrimSuffix(prefix, "."), ".")
	var numbers []string
	for _, word := range words {
		if n, err := strconv.Atoi(word); err == nil && n >= 0 {
			numbers = append(numbers, strconv.Itoa(n))
		}
	}
	if len(numbers) == 1 && !slices.Contains(words, "encoder") && !slices.Contains(words, "decoder") {
		return numbers[0]
	}
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ".")
}

// comparePaths orders dotted paths as a person does: numbers by their size, the encoder before the decoder.
func comparePaths(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	return slices.CompareFunc(as, bs, func(x, y string) int {
		n, errN := strconv.Atoi(x)
		m, errM := strconv.Atoi(y)
		if errN == nil && errM == nil {
			return cmp.Compare(n, m)
		}
		return cmp.Or(cmp.Compare(stage(x), stage(y)), cmp.Compare(x, y))
	})
}

// stage is where a part of an encoder-decoder model stands in the way of its data.
func stage(word string) int { return slices.Index([]string{"encoder", "decoder"}, word) }
