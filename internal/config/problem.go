package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Path is the key, such as `calls.timeout` or `experts[2].hidden`; empty where the document as a whole is meant.
	Path string `json:"path"`
	// Line is where it stands in the file, from 1; 0 where it comes from elsewhere.
	Line int `json:"line"`
	// Source is where the value comes from: the file's name, an environment variable, a flag, or `default`.
	Source string `json:"source,omitempty"`
	// Message says what is wrong and what was expected.
	Message string `json:"message"`
}

// Error returns `SOURCE:LINE: PATH: MESSAGE`, less what is not known.
func (p Problem) Error() string {
	var b strings.Builder
	if p.Source != "" {
		b.WriteString(p.Source)
		if p.Line > 0 {
			b.WriteString(":" + strconv.Itoa(p.Line))
		}
		b.WriteString(": ")
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is all that is wrong with a configuration, in the order of the schema; as an error it is never empty.
type Problems []Problem

// Error returns one line per problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// add appends a problem of the key at path.
func (ps *Problems) add(path, format string, args ...any) {
	*ps = append(*ps, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
}

// addAll appends what a part of the node says of its own configuration, one problem per error that was joined. Such an error
// starts with the key, one of paths when it is put behind one of the sections; else it is about the first section as a whole.
// What is known of a key already is not said twice.
func (ps *Problems) addAll(err error, paths []string, sections ...string) {
	known := slices.Clone(*ps)
	for _, err := range leaves(err) {
		path, message := sections[0], err.Error()
		if key, rest, found := strings.Cut(message, ": "); found {
			for _, section := range sections {
				if full := join(section, key); slices.Contains(paths, full) {
					path, message = full, rest
					break
				}
			}
		}
		if path == "" || !slices.ContainsFunc(known, func(p Problem) bool { return within(p.Path, path) }) {
			ps.add(path, "%s", message)
		}
	}
}

// within tells whether a path is that key or leads to something in it: listen[0] is within listen, timeout_after_k_min not within timeout.
func within(path, key string) bool {
	rest, ok := strings.CutPrefix(path, key)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// leaves takes joined errors apart; nil has none.
func leaves(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, leaves(e)...)
	}
	return all
}

// err returns the problems as an error, nil if there are none.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}
