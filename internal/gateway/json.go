package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unsafe"

	"github.com/kwaai/kwaaid/internal/expert"
)

// maxNesting bounds how deep arrays of numbers may nest: no tensor here has more dimensions.
const maxNesting = 8

// scanner walks over a JSON document (RFC 8259) in memory, so that a batch of numbers becomes floats in one pass: encoding/json takes
// several times as long for them. Everything else is left to it: see raw. Errors match expert.ErrInvalidArgument.
type scanner struct {
	text []byte
	at   int
}

func (s *scanner) fail(format string, args ...any) error {
	return fmt.Errorf("%w: JSON, byte %d: %s", expert.ErrInvalidArgument, s.at, fmt.Sprintf(format, args...))
}

// peek skips white space and returns the byte that comes next, 0 at the end.
func (s *scanner) peek() byte {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return c
		}
	}
	return 0
}

// take steps over c if it comes next.
func (s *scanner) take(c byte) bool {
	if s.peek() != c || s.at == len(s.text) {
		return false
	}
	s.at++
	return true
}

// end says whether the document is over.
func (s *scanner) end() error {
	if s.peek() != 0 || s.at < len(s.text) {
		return s.fail("something follows the document")
	}
	return nil
}

// object calls field for each key, in order; field must consume the value. A key that comes twice is an error.
func (s *scanner) object(field func(key string) error) error {
	if !s.take('{') {
		return s.fail("an object was expected")
	}
	if s.take('}') {
		return nil
	}
	seen := map[string]bool{}
	for {
		if s.peek() != '"' {
			return s.fail("a key was expected")
		}
		var key string
		if err := s.decode(&key); err != nil {
			return err
		}
		if seen[key] {
			return s.fail("%s stands here twice", quoted(key))
		}
		seen[key] = true
		if !s.take(':') {
			return s.fail("a colon was expected behind %s", quoted(key))
		}
		if err := field(key); err != nil {
			return err
		}
		if s.take('}') {
			return nil
		}
		if !s.take(',') {
			return s.fail("a comma or a closing brace was expected")
		}
	}
}

// optional has read take the value that comes next, but for null: that is as good as no value, as in protobuf's JSON.
func (s *scanner) optional(read func() error) error {
	if s.peek() != 'n' {
		return read()
	}
	_, err := s.raw() // no other value begins like this
	return err
}

// array calls element at the beginning of each one; element must consume it.
func (s *scanner) array(element func() error) error {
	if !s.take('[') {
		return s.fail("an array was expected")
	}
	if s.take(']') {
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		if s.take(']') {
			return nil
		}
		if !s.take(',') {
			return s.fail("a comma or a closing bracket was expected")
		}
	}
}

// decode has encoding/json read the next value into v.
func (s *scanner) decode(v any) error {
	raw, err := s.raw()
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	d.UseNumber() // for values that go into an any
	if err := d.Decode(v); err != nil {
		return s.fail("%v", err)
	}
	return nil
}

// raw returns the next value's text, which it has checked. It is part of the document's memory.
func (s *scanner) raw() ([]byte, error) {
	s.peek()
	start := s.at
	for depth := 0; s.at < len(s.text); {
		switch s.text[s.at] {
		case '{', '[':
			depth++
			s.at++
		case '}', ']':
			depth--
			s.at++
		case ',', ':', ' ', '\t', '\n', '\r':
			s.at++
		case '"':
			s.skipString()
		default: // a number, true, false or null
			n := bytes.IndexAny(s.text[s.at:], ",:{}[]\" \t\n\r")
			if n < 0 {
				n = len(s.text) - s.at
			}
			s.at += n
		}
		if depth <= 0 {
			break
		}
	}
	value := s.text[start:s.at]
	if !json.Valid(value) {
		s.at = start
		return nil, s.fail("a value was expected")
	}
	return value, nil
}

// skipString steps behind the string that begins here, or to the end of the document.
func (s *scanner) skipString() {
	for s.at++; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\':
			s.at++
		case '"':
			s.at++
			return
		}
	}
	s.at = len(s.text)
}

// numbers reads nested arrays of numbers, all rows of a level equally long: their shape and, in order, what parse makes of them.
func numbers[T any](s *scanner, parse func(token string) (T, error)) (shape []int, data []T, err error) {
	// As many as there are commas, up to the end of the object: growing would leave several times as much garbage. A number takes two bytes.
	rest := s.text[s.at:]
	if end := bytes.IndexByte(rest, '}'); end >= 0 {
		rest = rest[:end]
	}
	data = make([]T, 0, min(bytes.Count(rest, []byte{','}), len(rest)/2)+1)
	leaf := -1 // the depth at which numbers stand, once one was seen
	var read func(depth int) error
	read = func(depth int) error {
		if depth == maxNesting {
			return s.fail("arrays nest deeper than %d", maxNesting)
		}
		if depth == len(shape) {
			shape = append(shape, -1)
		}
		n := 0
		err := s.array(func() error {
			n++
			if s.peek() == '[' {
				if leaf == depth {
					return s.fail("an array among numbers")
				}
				return read(depth + 1)
			}
			if leaf < 0 && depth == len(shape)-1 {
				leaf = depth
			}
			if leaf != depth {
				return s.fail("a number among arrays")
			}
			token, err := s.number()
			if err != nil {
				return err
			}
			v, err := parse(token)
			if err != nil {
				return s.fail("%v", err)
			}
			data = append(data, v)
			return nil
		})
		if err != nil {
			return err
		}
		if shape[depth] >= 0 && shape[depth] != n {
			return s.fail("a row of %d elements among rows of %d", n, shape[depth])
		}
		shape[depth] = n
		return nil
	}
	if err := read(0); err != nil {
		return nil, nil, err
	}
	return shape, data, nil
}

// number returns the next token, a number as JSON writes it. It is part of the document's memory.
func (s *scanner) number() (string, error) {
	s.peek()
	t, i := s.text, s.at
	digits := func() bool {
		start := i
		for i < len(t) && t[i]-'0' <= 9 {
			i++
		}
		return i > start
	}
	if i < len(t) && t[i] == '-' {
		i++
	}
	switch {
	case i < len(t) && t[i] == '0':
		i++
	case !digits():
		return "", s.fail("a number was expected")
	}
	if i < len(t) && t[i] == '.' {
		if i++; !digits() {
			return "", s.fail("digits were expected behind the point")
		}
	}
	if i < len(t) && t[i]|0x20 == 'e' {
		if i++; i < len(t) && (t[i] == '+' || t[i] == '-') {
			i++
		}
		if !digits() {
			return "", s.fail("digits were expected in the exponent")
		}
	}
	token := t[s.at:i]
	s.at = i
	return unsafe.String(unsafe.SliceData(token), len(token)), nil
}

// parseFloat32 rounds once, to the nearest float32.
func parseFloat32(token string) (float32, error) {
	v, err := strconv.ParseFloat(token, 32)
	if err != nil {
		return 0, fmt.Errorf("%s does not fit a float32", quoted(token))
	}
	return float32(v), nil
}

// parseInt64 takes whole numbers without point and exponent.
func parseInt64(token string) (int64, error) {
	v, err := strconv.ParseInt(token, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is no int64", quoted(token))
	}
	return v, nil
}

// appendRows writes data as nested arrays of the given shape, each number in the fewest digits that give the same float32 back. Every
// 64 KiB it hands what it has to flush and goes on with what flush returns. data must be finite; see expert.Finite.
func appendRows(b []byte, shape []int, data []float32, flush func([]byte) ([]byte, error)) ([]byte, error) {
	const enough = 64 << 10
	var err error
	if len(b) > enough {
		if b, err = flush(b); err != nil {
			return nil, err
		}
	}
	b = append(b, '[')
	if len(shape) == 1 {
		for i, v := range data {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendFloat(b, float64(v), 'g', -1, 32)
			if len(b) > enough {
				if b, err = flush(b); err != nil {
					return nil, err
				}
			}
		}
		return append(b, ']'), nil
	}
	each := 1
	for _, d := range shape[1:] {
		each *= d
	}
	for i := range shape[0] {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendRows(b, shape[1:], data[i*each:(i+1)*each], flush); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}
