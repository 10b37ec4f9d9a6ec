package checkpoint

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kwaai/kwaaid/internal/expert"
)

// LoadFile reads a single expert from a safetensors file of its own: kind mlp or glu with the tensors of the contract's
// section 5. Sizes and dtype come from the file; those that p gives must agree. progress may be nil.
func LoadFile(ctx context.Context, path string, p expert.Params, engine expert.Engine, progress Progress, opts ...Option) (_ *expert.FFN, err error) {
	if err := p.ValidateWithFile(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	f, err := OpenFile(path, opts...)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	src := &source{dir: path, files: map[string]*File{path: f}, where: map[string]string{}, names: f.Names()}
	for _, name := range src.names {
		src.where[name] = path
	}
	l, err := singleLayout(src, p)
	if err != nil {
		return nil, err
	}
	n := network{src: src, layout: l, fn: p.Function(), sizes: sizes{inner: p.Inner, hidden: p.Hidden}}
	n.fn.DType = p.DType
	if err := n.measure(); err != nil {
		return nil, err
	}
	return n.load(ctx, 0, engine, &buffers{}, progress)
}

// singleLayout chooses the layout by the names in the file, with the parts that the parameters ask for.
func singleLayout(src *source, p expert.Params) (*layout, error) {
	var looked []string
	for _, l := range singleLayouts[p.Kind] {
		if !src.has(l.parts[0].tensor) {
			looked = append(looked, l.families)
			continue
		}
		l.parts = slices.Clone(l.parts)
		known := map[string]bool{}
		for i, part := range l.parts {
			known[part.tensor] = true
			if strings.HasPrefix(part.plays, "norm.") {
				l.parts[i].optional = !p.Norm
			}
			if strings.HasSuffix(part.plays, ".bias") && !strings.HasPrefix(part.plays, "norm.") && p.Bias != nil {
				l.parts[i].optional = !*p.Bias
				if !*p.Bias && src.has(part.tensor) {
					return nil, fmt.Errorf("%s: tensor %q: expected none with bias: false", src.dir, part.tensor)
				}
			}
		}
		// A tensor that we leave out would make another function of it in silence.
		for _, name := range src.names {
			if !known[name] {
				return nil, fmt.Errorf("%s: tensor %q: it has no part in kind %s (%s)", src.dir, name, p.Kind, l.families)
			}
		}
		return &l, nil
	}
	found := "no tensors"
	if len(src.names) > 0 {
		found = strings.Join(src.names[:min(len(src.names), 8)], ", ")
	}
	return nil, fmt.Errorf("%s: kind %s: expected tensors %s; found %s", filepath.Clean(src.dir), p.Kind, strings.Join(looked, "; or "), found)
}
