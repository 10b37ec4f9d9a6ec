package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// EnvPrefix starts the environment variables of a configuration: KWAAI_CALLS__MAX_RETRIES is calls.max_retries.
const EnvPrefix = "KWAAI_"

// envFile names the configuration file where no flag does.
const envFile = EnvPrefix + "CONFIG"

// maxFile bounds a configuration file: 10,000 single experts take 2 MB.
const maxFile = 16 << 20

// serviceLink matches what Kubernetes and Docker set for a service called kwaai, such as KWAAI_PORT_7575_TCP: not ours, and
// not the operator's mistake.
var serviceLink = regexp.MustCompile(`^KWAAI_(SERVICE_(HOST|PORT)|PORT(_\d+_|$)|[A-Z0-9_]+_(SERVICE_(HOST|PORT)|PORT_\d+_))`)

// Override is what a flag says: it goes before file and environment.
type Override struct {
	Path   string   // the key, such as log.level
	Values []string // one, or a list's elements; a list is replaced as a whole
	Source string   // the flag, for messages: --log-level
}

// Load returns the configuration that follows from the file at path (empty: the one that KWAAI_CONFIG names, else none),
// the environment (as in os.Environ) and the overrides, each going before those to its left, all over Default.
// Relative paths in the file start at its directory, others at the working directory; Data is settled.
// The error is Problems: all that cannot be read, is unknown or cannot work, by line.
func Load(path string, environ []string, overrides ...Override) (*Config, error) {
	l := &loader{config: Default(), env: map[string]string{}, origins: map[string]origin{}}
	for _, variable := range environ {
		if name, value, ok := strings.Cut(variable, "="); ok {
			l.env[name] = value
		}
	}
	if path == "" {
		path = l.env[envFile]
	}
	if path != "" {
		l.readFile(path)
	}
	l.readEnviron()
	for _, o := range overrides {
		l.override(o)
	}
	l.settlePaths()
	l.validate()
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	return l.config, nil
}

// loader puts one layer over the other and remembers where each value came from.
type loader struct {
	config   *Config
	env      map[string]string
	origins  map[string]origin // by path
	problems Problems
}

// origin is where a value came from.
type origin struct {
	source string
	line   int // 0 outside of files
}

// apply decodes node into the value at path (empty: the whole configuration).
func (l *loader) apply(out reflect.Value, node *yaml.Node, path, source string, isFile bool) {
	for p := range l.origins {
		if rest, under := strings.CutPrefix(p, path); under && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			delete(l.origins, p)
		}
	}
	d := decoder{lines: map[string]int{}}
	d.value(out, node, path)
	for p, line := range d.lines {
		if !isFile {
			line = 0
		}
		l.origins[p] = origin{source, line}
	}
	// What stands in no file has no line, and what nobody wrote has no origin.
	delete(l.origins, "")
	for _, p := range d.problems {
		p.Source = source
		if !isFile {
			p.Line = 0
		}
		l.problems = append(l.problems, p)
	}
}

// readFile applies the file's one document.
func (l *loader) readFile(path string) {
	fail := func(line int, format string, args ...any) {
		l.problems = append(l.problems, Problem{Source: path, Line: line, Message: fmt.Sprintf(format, args...)})
	}
	f, err := os.Open(path)
	if err != nil {
		fail(0, "the configuration cannot be opened: %v", errors.Unwrap(err))
		return
	}
	defer f.Close() //nolint:errcheck // it is only read
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		fail(0, "the configuration cannot be read: %v", err)
		return
	case len(text) > maxFile:
		fail(0, "more than %v: is it a configuration?", Size(maxFile))
		return
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc, second yaml.Node
	switch err := decoder.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return // an empty file leaves all as it is
	case err != nil:
		fail(syntaxLine(err), "%s", syntaxMessage(err))
		return
	}
	l.apply(reflect.ValueOf(l.config).Elem(), doc.Content[0], "", path, true)
	switch err := decoder.Decode(&second); {
	case err == nil:
		fail(second.Line, "a second document begins here: a configuration is one")
	case !errors.Is(err, io.EOF):
		fail(syntaxLine(err), "%s", syntaxMessage(err))
	}
	dir := filepath.Dir(path)
	for i, e := range l.config.Experts {
		l.config.Experts[i] = e.expandHome(l.env["HOME"]).Rebase(dir)
	}
	for i := range l.config.Layers {
		path := &l.config.Layers[i].Checkpoint
		*path = rebase(dir, expandHome(*path, l.env["HOME"]))
	}
	l.config.Data = rebase(dir, expandHome(l.config.Data, l.env["HOME"]))
}

// readEnviron applies the variables that start with EnvPrefix, in the order of their names.
func (l *loader) readEnviron() {
	names := make([]string, 0, len(l.env))
	for name := range l.env {
		if strings.HasPrefix(name, EnvPrefix) && name != envFile {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		path := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, EnvPrefix)), "__", ".")
		field, unknown := l.field(path)
		if unknown != "" {
			if !serviceLink.MatchString(name) {
				l.problems = append(l.problems, Problem{Path: path, Source: name, Message: unknown})
			}
			continue
		}
		node, err := envNode(field.Type(), l.env[name])
		if err != nil {
			l.problems = append(l.problems, Problem{Path: path, Source: name, Message: syntaxMessage(err)})
			continue
		}
		l.apply(field, node, path, name, false)
	}
}

// envNode reads a variable's value: text as it is, lists of texts separated by commas, all else as YAML.
func envNode(t reflect.Type, value string) (*yaml.Node, error) {
	isList := t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.String
	isYAML := t.Kind() == reflect.Map || t.Kind() == reflect.Slice || t.Kind() == reflect.Struct
	switch trimmed := strings.TrimSpace(value); {
	case isList && !strings.HasPrefix(trimmed, "["):
		var values []string
		for element := range strings.SplitSeq(trimmed, ",") {
			if element = strings.TrimSpace(element); element != "" {
				values = append(values, element)
			}
		}
		return listNode(values), nil
	case isYAML && trimmed != "":
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(trimmed), &doc); err != nil {
			return nil, err
		}
		return doc.Content[0], nil
	case isYAML:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}, nil
	default:
		return textNode(value), nil
	}
}

// listNode is a sequence of texts.
func listNode(values []string) *yaml.Node {
	node := &yaml.Node{Kind: yaml.SequenceNode}
	for _, v := range values {
		node.Content = append(node.Content, textNode(v))
	}
	return node
}

// override applies what a flag says.
func (l *loader) override(o Override) {
	field, unknown := l.field(o.Path)
	switch {
	case unknown != "":
		l.problems = append(l.problems, Problem{Path: o.Path, Source: o.Source, Message: unknown})
	case field.Kind() == reflect.Slice:
		l.apply(field, listNode(o.Values), o.Path, o.Source, false)
	case len(o.Values) != 1:
		l.problems = append(l.problems, Problem{Path: o.Path, Source: o.Source, Message: fmt.Sprintf("expected one value, got %d", len(o.Values))})
	default:
		l.apply(field, textNode(o.Values[0]), o.Path, o.Source, false)
	}
}

// field finds the value at a path through the sections; unknown says why there is none.
func (l *loader) field(path string) (field reflect.Value, unknown string) {
	field = reflect.ValueOf(l.config).Elem()
	for key := range strings.SplitSeq(path, ".") {
		if field.Kind() != reflect.Struct {
			return field, "unknown key: nothing lies below"
		}
		next, found := fieldByKey(field, key)
		if !found {
			return field, "unknown key" + suggestion(key, keysOf(field.Type()))
		}
		field = next
	}
	return field, ""
}

// settlePaths expands ~ and decides where the data lies.
func (l *loader) settlePaths() {
	home := l.env["HOME"]
	for i, e := range l.config.Experts {
		l.config.Experts[i] = e.expandHome(home)
	}
	for i := range l.config.Layers {
		l.config.Layers[i].Checkpoint = expandHome(l.config.Layers[i].Checkpoint, home)
	}
	state, _, _ := strings.Cut(l.env["STATE_DIRECTORY"], ":") // systemd separates several by colons
	data := l.env["XDG_DATA_HOME"]
	switch {
	case l.config.Data != "":
		l.config.Data = expandHome(l.config.Data, home)
	case state != "":
		l.config.Data = state
	case filepath.IsAbs(data): // a relative one is to be ignored, says the XDG specification
		l.config.Data = filepath.Join(data, "kwaaid")
	case home != "":
		l.config.Data = filepath.Join(home, ".local", "share", "kwaaid")
	default:
		l.problems.add("data", "no directory for key and records: neither HOME nor XDG_DATA_HOME nor STATE_DIRECTORY is set; give one with --data")
	}
}

// validate adds what cannot work, but for what only follows from a value that could not be read.
func (l *loader) validate() {
	unread := l.problems
	for _, p := range l.config.problems() {
		follows := slices.ContainsFunc(unread, func(u Problem) bool { return p.Path != "" && strings.HasPrefix(u.Path, p.Path) })
		if follows {
			continue
		}
		at := l.originOf(p.Path)
		p.Source, p.Line = at.source, at.line
		l.problems = append(l.problems, p)
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		return lineOrLast(a) - lineOrLast(b)
	})
}

// lineOrLast sorts what has no line behind what has.
func lineOrLast(p Problem) int {
	if p.Line == 0 {
		return maxFile
	}
	return p.Line
}

// originOf returns where the value at path came from, or else the nearest section around it.
func (l *loader) originOf(path string) origin {
	for path != "" {
		if at, found := l.origins[path]; found {
			return at
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return origin{source: "default"}
}

// expandHome replaces a leading ~/ by the home directory.
func expandHome(path, home string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok && home != "" {
		return filepath.Join(home, rest)
	}
	return path
}

// expandHome returns the entry with ~/ replaced in its paths.
func (e Expert) expandHome(home string) Expert {
	e.Checkpoint, e.File = expandHome(e.Checkpoint, home), expandHome(e.File, home)
	return e
}

// yamlLine finds the line in the library's syntax errors, which carry it in their text only.
var yamlLine = regexp.MustCompile(`line (\d+): `)

// yamlParser matches the messages of the library's parser: it counts lines from 0, its scanner from 1.
var yamlParser = regexp.MustCompile(`did not find expected (<|node content|key|'-'|',')`)

// syntaxLine returns the line of an error of the YAML library, which leaves the first one out.
func syntaxLine(err error) int {
	line := 0
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits, and at most as many as the file has lines
	}
	if line == 0 || yamlParser.MatchString(err.Error()) {
		line++
	}
	return line
}

// syntaxMessage returns the text of an error of the YAML library without its line.
func syntaxMessage(err error) string {
	return "not YAML: " + yamlLine.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), "")
}
