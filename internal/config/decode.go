package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// decoder puts YAML nodes into Go values. It is stricter than the library and knows more about where it is: every key must
// be in the schema and come once, and each value's line is kept, so that a later check can point at it.
type decoder struct {
	problems Problems
	lines    map[string]int // line of each path that was set
}

// decodeInto fills the struct that target points to and returns what could not be read.
func decodeInto(target any, node *yaml.Node) Problems {
	d := decoder{lines: map[string]int{}}
	d.value(reflect.ValueOf(target).Elem(), node, "")
	return d.problems
}

// fail reports a node that cannot be what stands at path.
func (d *decoder) fail(path string, node *yaml.Node, format string, args ...any) {
	d.problems = append(d.problems, Problem{Path: path, Line: node.Line, Message: fmt.Sprintf(format, args...)})
}

// value decodes node into out. An empty value leaves the default. Recursion ends: it follows the schema's types, which do
// not contain themselves, however an alias turns.
func (d *decoder) value(out reflect.Value, node *yaml.Node, path string) {
	d.lines[path] = node.Line
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null" {
		return
	}
	if out.Kind() == reflect.Pointer {
		fresh := reflect.New(out.Type().Elem())
		d.value(fresh.Elem(), node, path)
		out.Set(fresh)
		return
	}
	if _, isText := reflect.TypeAssert[encoding.TextUnmarshaler](out.Addr()); isText {
		d.scalar(out, node, path)
		return
	}
	switch out.Kind() {
	case reflect.Struct:
		d.section(out, node, path)
	case reflect.Slice:
		d.list(out, node, path)
	case reflect.Map:
		d.table(out, node, path)
	default:
		d.scalar(out, node, path)
	}
}

// section decodes a mapping into a struct. An expert may also be written as its SPEC.
func (d *decoder) section(out reflect.Value, node *yaml.Node, path string) {
	if e, isExpert := reflect.TypeAssert[*Expert](out.Addr()); isExpert && node.Kind == yaml.ScalarNode {
		for _, p := range decodeExpertSpec(e, node.Value) {
			d.fail(join(path, p.Path), node, "%s", p.Message)
		}
		return
	}
	d.pairs(node, path, func(key, value *yaml.Node) {
		field, found := fieldByKey(out, key.Value)
		if !found {
			d.fail(join(path, key.Value), key, "unknown key%s", suggestion(key.Value, keysOf(out.Type())))
			return
		}
		d.value(field, value, join(path, key.Value))
	})
}

// table decodes a mapping into a map whose keys are text.
func (d *decoder) table(out reflect.Value, node *yaml.Node, path string) {
	fresh := reflect.MakeMap(out.Type())
	d.pairs(node, path, func(key, value *yaml.Node) {
		k := reflect.New(out.Type().Key()).Elem()
		before := len(d.problems)
		d.scalar(k, key, join(path, key.Value))
		if len(d.problems) > before {
			return
		}
		at := join(path, fmt.Sprint(k.Interface()))
		if fresh.MapIndex(k).IsValid() {
			d.fail(at, key, "set twice: %q is the same", key.Value)
			return
		}
		v := reflect.New(out.Type().Elem()).Elem()
		d.value(v, value, at)
		fresh.SetMapIndex(k, v)
	})
	out.Set(fresh)
}

// pairs calls visit for each key of a mapping, once.
func (d *decoder) pairs(node *yaml.Node, path string, visit func(key, value *yaml.Node)) {
	if node.Kind != yaml.MappingNode {
		d.fail(path, node, "expected keys with values, got %s", describe(node))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.fail(path, key, "expected a key, got %s", describe(key))
			continue
		}
		if key.ShortTag() == "!!merge" {
			d.fail(join(path, key.Value), key, "merge keys are not known here: write the values out")
			continue
		}
		if line, twice := seen[key.Value]; twice {
			d.fail(join(path, key.Value), key, "set twice: it stands on line %d already", line)
			continue
		}
		seen[key.Value] = key.Line
		visit(key, value)
	}
}

// list decodes a sequence; a single value stands for a list of one.
func (d *decoder) list(out reflect.Value, node *yaml.Node, path string) {
	elements := node.Content
	if node.Kind != yaml.SequenceNode {
		elements = []*yaml.Node{node}
	}
	fresh := reflect.MakeSlice(out.Type(), len(elements), len(elements))
	for i, element := range elements {
		d.value(fresh.Index(i), element, fmt.Sprintf("%s[%d]", path, i))
	}
	out.Set(fresh)
}

// scalar decodes a single value.
func (d *decoder) scalar(out reflect.Value, node *yaml.Node, path string) {
	if node.Kind != yaml.ScalarNode {
		d.fail(path, node, "expected %s, got %s", wanted(out.Type()), describe(node))
		return
	}
	switch target := out.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		if err := target.UnmarshalText([]byte(node.Value)); err != nil {
			d.fail(path, node, "%s", plain(err))
		}
	case *time.Duration:
		v, err := time.ParseDuration(node.Value)
		if err != nil {
			d.fail(path, node, "expected %s, got %q", wanted(out.Type()), node.Value)
			return
		}
		*target = v
	case *string:
		*target = node.Value
	case *int:
		// The library would cut 1.5 down to 1.
		v, err := strconv.Atoi(node.Value)
		if err != nil || node.ShortTag() == "!!str" {
			d.fail(path, node, "expected %s, got %q", wanted(out.Type()), node.Value)
			return
		}
		*target = v
	default:
		if err := node.Decode(target); err != nil {
			d.fail(path, node, "expected %s, got %q", wanted(out.Type()), node.Value)
		}
	}
}

// wanted says in words what a value of type t looks like.
func wanted(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration such as 5s or 1m30s"
	case t == reflect.TypeFor[Size]():
		return "a size such as 256MiB"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Uint64:
		return "a whole number from 0"
	case t.Kind() == reflect.Int:
		return "a whole number"
	case t.Kind() == reflect.Float64:
		return "a number"
	default:
		return "a single value"
	}
}

// describe says in words what a node is.
func describe(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "keys with values"
	case yaml.SequenceNode:
		return "a list"
	default:
		return fmt.Sprintf("%q", node.Value)
	}
}

// textNode is a scalar that was not read from YAML: a flag's or an environment variable's value. Empty is text, not null.
func textNode(value string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.ScalarNode, Value: value}
	if value == "" {
		node.Tag, node.Style = "!!str", yaml.DoubleQuotedStyle
	}
	return node
}

// fieldByKey returns the field of a struct whose yaml tag is key.
func fieldByKey(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("yaml") == key {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// keysOf returns the yaml tags of a struct's fields, in order.
func keysOf(t reflect.Type) []string {
	keys := make([]string, t.NumField())
	for i := range keys {
		keys[i] = t.Field(i).Tag.Get("yaml")
	}
	return keys
}

// suggestion names the known key that the unknown one was most likely meant to be, else all of them.
func suggestion(unknown string, known []string) string {
	best, distance := "", len(unknown)/3+1
	for _, key := range known {
		if n := editDistance(unknown, key); n <= distance {
			best, distance = key, n-1
		}
	}
	if best != "" {
		return ": did you mean " + best + "?"
	}
	return ": expected " + list(known)
}

// editDistance counts the letters to insert, delete or replace to get from a to b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// join appends a key to a path; either may be empty.
func join(path, key string) string {
	if path == "" || key == "" {
		return path + key
	}
	return path + "." + key
}

// list writes words as `a, b or c`.
func list(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
