package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// commentWidth is where comments above a key wrap, in letters.
const commentWidth = 100

// documentHead starts the default file.
const documentHead = `Configuration of kwaaid: the defaults, as ` + "`kwaaid config default`" + ` prints them. Keep what you change and leave out the rest.

Each key can be set by an environment variable too: KWAAI_ and the path in upper case, with __ between levels, lists separated by commas, maps as YAML, such as KWAAI_CALLS__TIMEOUT=2s. Flags of ` + "`kwaaid run`" + ` go before the environment, the environment before this file. ` + "`kwaaid config check FILE`" + ` checks a file. Relative paths start at the file's directory.`

// examples stand, commented out, where a default says nothing.
var examples = map[string]string{
	"data": `data: ~/.local/share/kwaaid
`,
	"experts": `experts:
  # Those of a checkpoint: a Hugging Face directory with config.json and safetensors, in one file or sharded.
  - checkpoint: ./olmoe-1b-7b
    model: olmoe-1b-7b    # its name in the swarm; default: the directory's name
    revision: main
    layers: 0-7           # default: all; ranges are clipped to what exists, layers without experts are skipped
    experts: 0-15,32      # default: all
  # A single expert out of a file of its own: kind mlp or glu; its ID is given, or follows from model, revision, layer and index.
  - {id: 42, kind: glu, file: ./expert-42.safetensors}
  # Weights drawn from a seed, for benchmarks and fresh training: the same bytes on every machine.
  - {id: 8, kind: mlp, hidden: 1024, inner: 4096, activation: gelu, init: {seed: 1}}
  # Returns its input, for tests and probes.
  - {id: 7, kind: identity, hidden: 1024}
`,
	"layers": `layers:
  - {checkpoint: ./olmoe-1b-7b, model: olmoe-1b-7b}    # only gates and shared experts are loaded
`,
	"fallbacks": `fallbacks:
  expert-42: [expert-43, olmoe-1b-7b/3/17]
`,
	"remotes": `remotes:
  expert-9: [/ip4/10.0.0.2/tcp/7577/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN]
`,
}

// Document returns the defaults as a file with comments; Load reads it back as Default.
func Document() []byte {
	var out bytes.Buffer
	comment(&out, documentHead)
	v := reflect.ValueOf(Default()).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		key := field.Tag.Get("yaml")
		out.WriteByte('\n')
		comment(&out, field.Tag.Get("doc"))
		switch example, found := examples[key]; {
		case found:
			for line := range strings.Lines(example) {
				out.WriteString("# " + line)
			}
		case field.Type.Kind() == reflect.Struct:
			writeSection(&out, key, v.Field(i))
		default:
			out.WriteString(key + ":" + writeValue(v.Field(i)) + "\n")
		}
	}
	return out.Bytes()
}

// writeSection writes a section's keys, one a line, with their comments aligned behind them.
func writeSection(out *bytes.Buffer, key string, v reflect.Value) {
	out.WriteString(key + ":\n")
	lines := make([]string, v.NumField())
	width := 0
	for i := range lines {
		lines[i] = "  " + v.Type().Field(i).Tag.Get("yaml") + ":" + writeValue(v.Field(i))
		width = max(width, len(lines[i]))
	}
	for i, line := range lines {
		fmt.Fprintf(out, "%-*s  # %s\n", width, line, v.Type().Field(i).Tag.Get("doc"))
	}
}

// writeValue writes what stands behind a key's colon.
func writeValue(v reflect.Value) string {
	switch value := v.Interface().(type) {
	case []string:
		if len(value) == 0 {
			return " []"
		}
		return "\n  - " + strings.Join(value, "\n  - ")
	case string:
		if value == "" {
			return ` ""`
		}
		return " " + value
	case time.Duration:
		return " " + shortDuration(value)
	default:
		return fmt.Sprint(" ", value)
	}
}

// shortDuration leaves out zeros at the end: 1m0s is 1m.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// comment writes paragraphs as comment lines, wrapped.
func comment(out *bytes.Buffer, text string) {
	for paragraph := range strings.SplitSeq(text, "\n") {
		line := "#"
		for word := range strings.FieldsSeq(paragraph) {
			if utf8.RuneCountInString(line)+1+len(word) > commentWidth {
				out.WriteString(line + "\n")
				line = "#"
			}
			line += " " + word
		}
		out.WriteString(line + "\n")
	}
}
