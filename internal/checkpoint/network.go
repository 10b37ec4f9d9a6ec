package checkpoint

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kwaai/kwaaid/internal/expert"
)

// mxfp4Block is how many numbers share an exponent; they take half as many bytes.
const mxfp4Block = 32

// network is a feed-forward network as it lies in a checkpoint: the experts of one block, a shared expert, or a single one.
type network struct {
	src    *source
	layout *layout
	prefix string // of its tensors, with the dot at its end
	sizes  sizes
	fn     expert.Function
	// block is the rows and columns that share a scale in float8 checkpoints; 0 where config.json has none.
	block [2]int
}

// stored is a part with the tensor that holds it.
type stored struct {
	part
	tensor tensorAt
	beside tensorAt // its scales or exponents, where its dtype has such
	dtype  dtype
	shape  []int // of the numbers, however they are packed
}

// isMatrix tells the three products' weights from biases and the like.
func (p part) isMatrix() bool {
	return strings.Contains(p.axes, "inner") && strings.Contains(p.axes, "hidden")
}

// sliceAxes are the axes of one expert's share.
func (p part) sliceAxes() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.axes, "experts,"), "experts*")
}

// stacked tells whether the tensor holds all experts.
func (p part) stacked() bool { return p.sliceAxes() != p.axes }

// name returns the tensor's name for expert e.
func (n *network) name(p part, e int) string {
	return n.prefix + strings.Replace(p.tensor, "{e}", strconv.Itoa(e), 1)
}

// locate finds the tensor that holds a part of expert e, and checks its dtype. It returns nil for an optional part that is
// not there.
func (n *network) locate(p part, e int) (*stored, error) {
	name := n.name(p, e)
	if n.layout.mxfp4 && p.isMatrix() {
		return n.locateMXFP4(p, name)
	}
	if p.optional && !n.src.has(name) {
		return nil, nil
	}
	t, err := n.src.find(name)
	if err != nil {
		return nil, err
	}
	if d, ok := plainDTypes[t.DType]; ok {
		return &stored{part: p, tensor: t, dtype: d, shape: t.Shape}, nil
	}
	if t.DType == "F8_E4M3" && p.isMatrix() {
		return n.locateF8(p, t)
	}
	return nil, t.errorf("expected F32, BF16, F16, or F8_E4M3 with block scales, found %s", t.found())
}

// locateF8 finds a float8 matrix's scales. Only matrices [out, in] of a single network are published so.
func (n *network) locateF8(p part, t tensorAt) (*stored, error) {
	if n.block[0] < 1 || n.block[1] < 1 {
		return nil, t.errorf("expected quantization_config.weight_block_size with two sizes in config.json for %s", t.DType)
	}
	if p.axes != "inner,hidden" && p.axes != "hidden,inner" || len(t.Shape) != 2 {
		return nil, t.errorf("expected F32, BF16 or F16 in the layout of %s, found %s", n.layout.families, t.found())
	}
	scales, err := n.src.find(t.name + "_scale_inv")
	if err != nil {
		return nil, fmt.Errorf("scales of float8 weights: %w", err)
	}
	want := []int{ceilDiv(t.Shape[0], n.block[0]), ceilDiv(t.Shape[1], n.block[1])}
	if _, ok := plainDTypes[scales.DType]; !ok || !slices.Equal(scales.Shape, want) {
		return nil, scales.errorf("expected F32 %v, one scale for each %d by %d weights, found %s", want, n.block[0], n.block[1], scales.found())
	}
	return &stored{part: p, tensor: t, beside: scales, dtype: f8E4M3, shape: t.Shape}, nil
}

// locateMXFP4 finds a matrix that is stored as X_blocks [..., blocks, 16] and X_scales [..., blocks].
func (n *network) locateMXFP4(p part, name string) (*stored, error) {
	blocks, err := n.src.find(name + "_blocks")
	if err != nil {
		return nil, err
	}
	exponents, err := n.src.find(name + "_scales")
	if err != nil {
		return nil, err
	}
	last := len(blocks.Shape) - 1
	if blocks.DType != "U8" || last < 1 || blocks.Shape[last] != mxfp4Block/2 {
		return nil, blocks.errorf("expected U8 [... %d] with %d numbers in each block, found %s", mxfp4Block/2, mxfp4Block, blocks.found())
	}
	if exponents.DType != "U8" || !slices.Equal(exponents.Shape, blocks.Shape[:last]) {
		return nil, exponents.errorf("expected U8 %v, one exponent for each block, found %s", blocks.Shape[:last], exponents.found())
	}
	shape := slices.Clone(blocks.Shape[:last])
	shape[last-1] *= mxfp4Block
	return &stored{part: p, tensor: blocks, beside: exponents, dtype: mxfp4, shape: shape}, nil
}

// measure takes the sizes that are not known yet from the tensors of expert 0, and the dtype; it checks them all.
func (n *network) measure() error {
	for _, p := range n.layout.parts {
		s, err := n.locate(p, 0)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		if err := n.check(s); err != nil {
			return err
		}
	}
	n.fn.Kind, n.fn.Hidden, n.fn.Inner = n.layout.kind, n.sizes.hidden, n.sizes.inner
	return nil
}

// check compares a part's shape and dtype with what is known, and takes what is not.
func (n *network) check(s *stored) error {
	if err := n.sizes.match(s.axes, s.shape); err != nil {
		return s.tensor.errorf("%w", err)
	}
	if !s.isMatrix() {
		return nil
	}
	if n.fn.DType == "" {
		n.fn.DType = s.dtype.name
	}
	if n.fn.DType != s.dtype.name {
		return s.tensor.errorf("expected %s as the other matrices of the expert, found %s", n.fn.DType, s.dtype.name)
	}
	return nil
}

// stray returns a tensor that belongs to expert 0 but to no part of the layout, if there is one: with it the expert means
// something else than the layout says, such as another quantisation.
func (n *network) stray() string {
	known := map[string]bool{}
	for _, p := range n.layout.parts {
		name := n.name(p, 0)
		for _, suffix := range []string{"", "_scale_inv", "_blocks", "_scales"} {
			known[name+suffix] = true
		}
	}
	for _, p := range n.layout.parts {
		owner, _, single := strings.Cut(p.tensor, "{e}")
		if single {
			owner += "0."
		} else {
			owner, _, _ = strings.Cut(p.tensor, ".")
			owner += "."
		}
		for _, name := range n.src.under(n.prefix + owner) {
			if !known[name] {
				return name
			}
		}
	}
	return ""
}

// storedBytes is what one expert's slices take in the files.
func (n *network) storedBytes() int64 {
	var total int64
	for _, p := range n.layout.parts {
		if p.optional && !n.src.has(n.name(p, 0)) {
			continue
		}
		s, err := n.locate(p, 0)
		if err != nil {
			continue
		}
		count := s.dtype.bytes(n.perExpert(p))
		total += count
		switch s.dtype.name {
		case expert.DTypeMXFP4:
			total += count * 2 / mxfp4Block
		case expert.DTypeF8E4M3:
			total += s.beside.size()
		}
	}
	return total
}

// perExpert is how many numbers of a part one expert has.
func (n *network) perExpert(p part) int64 {
	count := int64(1)
	for _, length := range n.sizes.lengths(strings.Split(p.sliceAxes(), ",")) {
		count *= int64(length)
	}
	return count
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
