package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
)

// maxJSON bounds config.json and the index: that of DeepSeek-V3, with 91,991 tensors, takes 9 MB.
const maxJSON = 256 << 20

// Config is a checkpoint's config.json. Keys are looked up in the section of the text model where there is one (llama4's
// text_config), else at the top.
type Config struct {
	path string
	root map[string]any
	text map[string]any
}

// textSections are the keys under which models with more than text keep the configuration of their text model.
var textSections = []string{"text_config", "language_config", "llm_config"}

// ParseConfig reads the bytes of a config.json; path is named in errors.
func ParseConfig(path string, data []byte) (*Config, error) {
	d := json.NewDecoder(bytes.NewReader(withoutPythonWords(data)))
	d.UseNumber()
	var root map[string]any
	if err := d.Decode(&root); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if root == nil {
		return nil, fmt.Errorf("%s: expected an object, found null", path)
	}
	c := &Config{path: path, root: root, text: root}
	for _, key := range textSections {
		if section, ok := root[key].(map[string]any); ok {
			c.text = section
			break
		}
	}
	return c, nil
}

func readConfig(dir string) (*Config, error) {
	path := filepath.Join(dir, "config.json")
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	return ParseConfig(path, data)
}

// readBounded reads a JSON file that a person or a tool wrote.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxJSON {
		return nil, fmt.Errorf("%s: expected a file of at most %d bytes, found %v of %d", path, maxJSON, info.Mode().Type(), info.Size())
	}
	return os.ReadFile(path)
}

// ModelType is the family's name in transformers, such as mixtral; empty where config.json has none.
func (c *Config) ModelType() string {
	s, _ := c.root["model_type"].(string)
	return s
}

// Architecture names the model for people: the class that transformers would load, else the model type.
func (c *Config) Architecture() string {
	if list, ok := c.root["architectures"].([]any); ok && len(list) > 0 {
		if s, ok := list[0].(string); ok {
			return s
		}
	}
	if s := c.ModelType(); s != "" {
		return s
	}
	return "unnamed architecture"
}

// IsNull tells whether a key is there and null.
func (c *Config) IsNull(key string) bool { v, found := c.text[key]; return found && v == nil }

// Section returns the object under a key as a Config of its own, empty where there is none.
func (c *Config) Section(key string) *Config {
	section, _ := c.text[key].(map[string]any)
	return &Config{path: c.path + ": " + key, root: section, text: section}
}

// Int returns the whole number under the first of the keys that is there and not null, else the default.
func (c *Config) Int(otherwise int, keys ...string) (int, error) {
	key, v := c.first(keys)
	if key == "" {
		return otherwise, nil
	}
	n, ok := wholeNumber(v)
	if !ok {
		return 0, c.errorf(key, "expected a whole number", v)
	}
	return n, nil
}

// IntAt is Int for keys that hold one number, or a list with one for each layer; layer counts from 0.
func (c *Config) IntAt(layer, otherwise int, keys ...string) (int, error) {
	key, v := c.first(keys)
	list, ok := v.([]any)
	if !ok {
		return c.Int(otherwise, keys...)
	}
	if layer < 0 || layer >= len(list) {
		return 0, c.errorf(key, fmt.Sprintf("expected an entry for layer %d", layer), v)
	}
	n, ok := wholeNumber(list[layer])
	if !ok {
		return 0, c.errorf(key, "expected whole numbers", v)
	}
	return n, nil
}

// Ints returns the list of whole numbers under a key, nil where there is none.
func (c *Config) Ints(key string) ([]int, error) {
	v := c.text[key]
	if v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, c.errorf(key, "expected a list", v)
	}
	numbers := make([]int, len(list))
	for i, item := range list {
		if numbers[i], ok = wholeNumber(item); !ok {
			return nil, c.errorf(key, "expected whole numbers", v)
		}
	}
	return numbers, nil
}

// Float returns the number under the first of the keys that is there and not null, else the default.
func (c *Config) Float(otherwise float64, keys ...string) (float64, error) {
	key, v := c.first(keys)
	if key == "" {
		return otherwise, nil
	}
	if n, ok := v.(json.Number); ok {
		if f, err := n.Float64(); err == nil {
			return f, nil
		}
	}
	return 0, c.errorf(key, "expected a number", v)
}

// Bool returns the truth value under the first of the keys that is there and not null, else the default.
func (c *Config) Bool(otherwise bool, keys ...string) (bool, error) {
	key, v := c.first(keys)
	if key == "" {
		return otherwise, nil
	}
	b, ok := v.(bool)
	if !ok {
		return false, c.errorf(key, "expected true or false", v)
	}
	return b, nil
}

// String returns the text under the first of the keys that is there and not null, else the default.
func (c *Config) String(otherwise string, keys ...string) (string, error) {
	key, v := c.first(keys)
	if key == "" {
		return otherwise, nil
	}
	s, ok := v.(string)
	if !ok {
		return "", c.errorf(key, "expected a string", v)
	}
	return s, nil
}

// first returns the first key that is there and not null.
func (c *Config) first(keys []string) (string, any) {
	for _, key := range keys {
		if v := c.text[key]; v != nil {
			return key, v
		}
	}
	return "", nil
}

func (c *Config) errorf(key, expected string, found any) error {
	return fmt.Errorf("%s: %s: %s, found %.100s", c.path, key, expected, fmt.Sprint(found))
}

// wholeNumber reads 8 and 8.0, as far as an int32 goes.
func wholeNumber(v any) (int, bool) {
	number, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	f, err := strconv.ParseFloat(number.String(), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > math.MaxInt32 {
		return 0, false
	}
	return int(f), true
}

// pythonWords are what Python's json writes for numbers that JSON does not know.
var pythonWords = [][]byte{[]byte("-Infinity"), []byte("Infinity"), []byte("NaN")}

// withoutPythonWords turns NaN and Infinity outside of strings into null: the time steps of Mamba layers have them, and
// nothing that we read does.
func withoutPythonWords(data []byte) []byte {
	out := make([]byte, 0, len(data)+16)
	inString := false
next:
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\' && i+1 < len(data):
			out = append(out, c)
			i++
		case c == '"':
			inString = !inString
		case !inString && (c == '-' || c == 'I' || c == 'N'):
			for _, word := range pythonWords {
				if bytes.HasPrefix(data[i:], word) {
					out = append(out, "null"...)
					i += len(word) - 1
					continue next
				}
			}
		}
		out = append(out, data[i])
	}
	return out
}
