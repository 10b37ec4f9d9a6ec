package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Expert is one entry of `experts`: the experts of a checkpoint, or a single one. Which keys belong to which, Validate says.
type Expert struct {
	// Of a checkpoint, and with `layer` and `index` the name of a single expert.
	Checkpoint string    `yaml:"checkpoint" json:"checkpoint,omitempty"` // Hugging Face directory: config.json and safetensors
	Model      string    `yaml:"model" json:"model,omitempty"`           // its name in the swarm; empty for a checkpoint: the directory's name
	Revision   string    `yaml:"revision" json:"revision,omitempty"`     // empty: main
	Layers     Selection `yaml:"layers" json:"layers,omitzero"`          // all, unless said otherwise
	Experts    Selection `yaml:"experts" json:"experts,omitzero"`        // all, unless said otherwise

	// Of a single expert.
	ID         *expert.ID `yaml:"id" json:"id,omitempty"` // nil: it follows from model, revision, layer and index
	Layer      string     `yaml:"layer" json:"layer,omitempty"`
	Index      *int       `yaml:"index" json:"index,omitempty"`
	Kind       string     `yaml:"kind" json:"kind,omitempty"`     // identity, mlp or glu
	File       string     `yaml:"file" json:"file,omitempty"`     // safetensors; sizes come from the shapes
	Init       *Init      `yaml:"init" json:"init,omitempty"`     // draws weights instead of reading a file
	DType      string     `yaml:"dtype" json:"dtype,omitempty"`   // of drawn weights: f32, bf16 or f16; empty: f32
	Hidden     int        `yaml:"hidden" json:"hidden,omitempty"` // 0 with a file: as its shapes say
	Inner      int        `yaml:"inner" json:"inner,omitempty"`   // 0 with a file: as its shapes say
	Activation string     `yaml:"activation" json:"activation,omitempty"`
	Bias       *bool      `yaml:"bias" json:"bias,omitempty"` // nil: as is usual for the kind
	Residual   bool       `yaml:"residual" json:"residual,omitempty"`
	Norm       bool       `yaml:"norm" json:"norm,omitempty"`
	Eps        float64    `yaml:"eps" json:"eps,omitempty"`     // of the norm; 0: 1e-5
	Limit      float64    `yaml:"limit" json:"limit,omitempty"` // of swiglu_clamped
}

// Init draws an expert's weights: kind, sizes, dtype and seed fix every byte.
type Init struct {
	Seed uint64 `yaml:"seed" json:"seed"`
}

// ParseExpert reads the SPEC of `--expert` and `kwaaid load`: the keys of an entry of `experts` as KEY=VALUE with commas
// between, such as `id=7,kind=identity,hidden=1024` or `checkpoint=./olmoe,layers=0-3,experts=0-7,12`, with `seed=1` for
// `init`; or the entry as a YAML mapping in braces. A part without `=` belongs to the value before it.
// The error is Problems, with the key in Path.
func ParseExpert(spec string) (Expert, error) {
	var e Expert
	problems := decodeExpertSpec(&e, spec)
	if len(problems) == 0 {
		problems = e.problems()
	}
	for i := range problems {
		problems[i].Line = 0 // a SPEC has one line
	}
	return e, problems.err()
}

// String returns the SPEC that ParseExpert reads.
func (e Expert) String() string {
	// JSON is YAML, and no value here can fail to be written.
	doc, err := json.Marshal(e)
	if err != nil {
		return err.Error()
	}
	return string(doc)
}

// Rebase returns the entry with its relative paths starting at dir.
func (e Expert) Rebase(dir string) Expert {
	e.Checkpoint, e.File = rebase(dir, e.Checkpoint), rebase(dir, e.File)
	return e
}

// rebase lets a relative path start at dir; an empty one stays empty.
func rebase(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// Name returns the name of a single expert, and whether it has one. It is that of a valid entry.
func (e Expert) Name() (expert.Name, bool) {
	if e.Checkpoint != "" || e.Index == nil {
		return expert.Name{}, false
	}
	layer, err := expert.NewLayerName(e.Model, e.Revision, e.Layer)
	if err != nil {
		return expert.Name{}, false
	}
	return layer.Expert(*e.Index), true
}

// ExpertID returns the ID of a single expert: the one given, or the one that follows from its name. It is that of a valid entry.
func (e Expert) ExpertID() (expert.ID, bool) {
	if e.ID != nil {
		return *e.ID, true
	}
	name, ok := e.Name()
	return name.ID(), ok
}

// ModelName returns the name under which a checkpoint's experts are known, and checks it.
func (e Expert) ModelName() (string, error) {
	model := e.Model
	if model == "" {
		dir, err := filepath.Abs(e.Checkpoint)
		if err != nil {
			return "", err
		}
		model = filepath.Base(dir)
	}
	if _, err := expert.NewLayerName(model, e.Revision, "0"); err != nil {
		return "", err
	}
	return model, nil
}

// decodeExpertSpec fills e from a SPEC and returns what cannot be read.
func decodeExpertSpec(e *Expert, spec string) Problems {
	var root yaml.Node
	if strings.HasPrefix(strings.TrimSpace(spec), "{") {
		if err := yaml.Unmarshal([]byte(spec), &root); err != nil {
			return Problems{{Message: syntaxMessage(err)}}
		}
		return decodeInto(e, root.Content[0])
	}
	mapping := &yaml.Node{Kind: yaml.MappingNode}
	for part := range strings.SplitSeq(spec, ",") {
		key, value, found := strings.Cut(part, "=")
		last := len(mapping.Content) - 1
		switch {
		case found:
			mapping.Content = append(mapping.Content, textNode(strings.TrimSpace(key)), textNode(value))
		case last >= 0:
			mapping.Content[last].Value += "," + part
		default:
			return Problems{{Message: fmt.Sprintf("%q is no expert: expected KEY=VALUE with commas between, such as id=7,kind=identity,hidden=1024", spec)}}
		}
	}
	// `seed=1` stands for `init: {seed: 1}`; no key of an entry is called seed.
	for i := 0; i < len(mapping.Content); i += 2 {
		if key, value := mapping.Content[i], mapping.Content[i+1]; key.Value == "seed" {
			mapping.Content[i] = textNode("init")
			mapping.Content[i+1] = &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{key, value}}
		}
	}
	return decodeInto(e, mapping)
}

// problems returns what is wrong with the entry; paths are keys, or empty for the entry as a whole.
func (e Expert) problems() Problems {
	var ps Problems
	if e.Checkpoint != "" {
		e.checkCheckpoint(&ps)
		return ps
	}
	if e.Kind == "" {
		ps.add("", "expected a checkpoint, or the kind of a single expert (identity, mlp or glu)")
		return ps
	}
	e.checkName(&ps)
	validate := expert.Params.Validate
	if e.File != "" {
		validate = expert.Params.ValidateWithFile
	} else {
		e.checkSizes(&ps)
	}
	ps.addAll(validate(e.Params()), keysOf(reflect.TypeFor[Expert]()), "")
	return ps
}

// checkSizes says which sizes are missing where no file has them.
func (e Expert) checkSizes(ps *Problems) {
	if e.Hidden == 0 {
		ps.add("hidden", "missing: how wide is a row?")
	}
	if e.Inner == 0 && e.Kind != expert.KindIdentity {
		ps.add("inner", "missing: how wide is the inner layer?")
	}
}

// checkCheckpoint reports keys that mean nothing beside a checkpoint, and a name that the swarm cannot use.
func (e Expert) checkCheckpoint(ps *Problems) {
	e.refuse(ps, "a checkpoint (its experts are chosen by layers and experts, and its config.json says what they are)",
		"id", "layer", "index", "kind", "file", "init", "dtype", "hidden", "inner", "activation", "bias", "residual", "norm", "eps", "limit")
	if _, err := e.ModelName(); err != nil {
		path, hint := "model", ""
		if e.Model == "" {
			path, hint = "checkpoint", ": give the checkpoint a name with the key model"
		}
		ps.add(path, "%s%s", plain(err), hint)
	}
	if len(e.Experts.words) > 0 {
		ps.add("experts", "%q is no expert: expected numbers and ranges such as 0-15,32", e.Experts.words[0])
	}
}

// checkName reports an entry that has neither an ID nor a whole name.
func (e Expert) checkName(ps *Problems) {
	e.refuse(ps, "a single expert", "layers", "experts")
	named := e.Model != "" || e.Layer != "" || e.Index != nil
	switch {
	case e.ID != nil && !named:
		if e.Revision != "" {
			ps.add("revision", "means nothing without model, layer and index")
		}
	case e.ID != nil:
		ps.add("id", "an expert has an id, or model, layer and index, from which its ID follows: leave one of them out")
	case !named:
		ps.add("", "what is it called? Expected id, or model, layer and index")
	default:
		for _, missing := range []struct {
			key   string
			empty bool
		}{{"model", e.Model == ""}, {"layer", e.Layer == ""}, {"index", e.Index == nil}} {
			if missing.empty {
				ps.add("", "the name needs model, layer and index: %s is missing", missing.key)
				return
			}
		}
		if _, err := expert.NewLayerName(e.Model, e.Revision, e.Layer); err != nil {
			ps.add("", "%s", plain(err))
		}
		if *e.Index < 0 {
			ps.add("index", "%d is below 0", *e.Index)
		}
	}
}

// refuse reports those of the keys that are set, which mean nothing for what.
func (e Expert) refuse(ps *Problems, what string, keys ...string) {
	set := map[string]bool{
		"id": e.ID != nil, "layers": !e.Layers.All(), "experts": !e.Experts.All(), "layer": e.Layer != "", "index": e.Index != nil,
		"kind": e.Kind != "", "file": e.File != "", "init": e.Init != nil, "dtype": e.DType != "", "hidden": e.Hidden != 0,
		"inner": e.Inner != 0, "activation": e.Activation != "", "bias": e.Bias != nil, "residual": e.Residual, "norm": e.Norm,
		"eps": e.Eps != 0, "limit": e.Limit != 0,
	}
	for _, key := range keys {
		if set[key] {
			ps.add(""+key, "means nothing for %s", what)
		}
	}
}

// plain returns an error's text without the status before it, which says nothing to a reader of a configuration.
func plain(err error) string {
	if errors.Is(err, expert.ErrInvalidArgument) {
		return strings.TrimPrefix(err.Error(), expert.ErrInvalidArgument.Error()+": ")
	}
	return err.Error()
}
