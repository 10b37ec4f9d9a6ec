package npy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

var (
	// ErrFormat: the bytes are no array file that this package takes. The message says what was expected.
	ErrFormat = errors.New("no usable .npy")
	// ErrTooLarge: the array is above the limit. No memory was taken for it.
	ErrTooLarge = errors.New("array too large")
)

const (
	magic = "\x93NUMPY"
	// maxHeader is NumPy's own bound on a header that it reads without being told to trust the file.
	maxHeader = 10000
	// maxDims: rows may come as one row [hidden], as [rows, hidden] and as [batch, sequence, hidden].
	maxDims = 3
)

// header is what stands before the elements.
type header struct {
	itemSize int // bytes per element: 2, 4 or 8, an IEEE float, little-endian
	fortran  bool
	shape    []int
	elements int // product of shape; fits an int also when multiplied by 8
	length   int // bytes from the file's start to its first element
}

// readHeader reads up to the first element. The error matches ErrFormat or ErrTooLarge, or is the reader's.
func readHeader(r io.Reader) (header, error) {
	var fixed [12]byte
	if err := readFull(r, fixed[:8], "magic"); err != nil {
		return header{}, err
	}
	if string(fixed[:6]) != magic {
		return header{}, fmt.Errorf("%w: it does not begin with \\x93NUMPY", ErrFormat)
	}
	var lengthBytes int
	switch version := fixed[6]; version {
	case 1:
		lengthBytes = 2
	case 2, 3:
		lengthBytes = 4
	default:
		return header{}, fmt.Errorf("%w: version %d, expected 1 to 3", ErrFormat, version)
	}
	if err := readFull(r, fixed[8:8+lengthBytes], "length of the header"); err != nil {
		return header{}, err
	}
	n := binary.LittleEndian.Uint32(fixed[8:12]) // the upper half is zero in version 1
	if n > maxHeader {
		return header{}, fmt.Errorf("%w: a header of %d bytes, at most %d are read", ErrFormat, n, maxHeader)
	}
	text := make([]byte, n)
	if err := readFull(r, text, "header"); err != nil {
		return header{}, err
	}
	h, err := parseDict(string(text))
	if err != nil {
		return header{}, err
	}
	h.length = 8 + lengthBytes + int(n)
	return h, nil
}

// readFull fills p or says which part of the file broke off.
func readFull(r io.Reader, p []byte, part string) error {
	n, err := io.ReadFull(r, p)
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends in its %s: %d of %d bytes", ErrFormat, part, n, len(p))
	}
	return err
}

// parseDict reads the Python literal that NumPy writes, such as {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
func parseDict(text string) (header, error) {
	p := parser{rest: text}
	var h header
	var descr string
	seen := map[string]bool{}
	p.expect("{")
	for p.err == nil && !p.take("}") {
		key := p.str()
		if p.err == nil && seen[key] {
			return h, fmt.Errorf("%w: the header names %q twice", ErrFormat, key)
		}
		seen[key] = true
		p.expect(":")
		switch key {
		case "descr":
			descr = p.str()
		case "fortran_order":
			h.fortran = p.boolean()
		case "shape":
			h.shape = p.tuple()
		default:
			p.fail("an unknown key %q", key)
		}
		if !p.take(",") {
			p.expect("}")
			break
		}
	}
	if p.err == nil && strings.TrimSpace(p.rest) != "" {
		p.fail("something behind the dictionary")
	}
	if p.err != nil {
		return h, p.err
	}
	for _, key := range []string{"descr", "fortran_order", "shape"} {
		if !seen[key] {
			return h, fmt.Errorf("%w: the header has no %q", ErrFormat, key)
		}
	}
	switch descr {
	case "<f2":
		h.itemSize = 2
	case "<f4":
		h.itemSize = 4
	case "<f8":
		h.itemSize = 8
	default:
		return h, fmt.Errorf("%w: dtype %q, expected float32 (<f4), float64 (<f8) or float16 (<f2)", ErrFormat, descr)
	}
	if len(h.shape) == 0 || len(h.shape) > maxDims {
		return h, fmt.Errorf("%w: %d dimensions, expected 1 to %d", ErrFormat, len(h.shape), maxDims)
	}
	h.elements = 1
	for _, d := range h.shape {
		if d > 0 && h.elements > math.MaxInt/8/d {
			return h, fmt.Errorf("%w: shape %v", ErrTooLarge, h.shape)
		}
		h.elements *= d
	}
	return h, nil
}

// parser walks over a Python literal; the first failure stays in err and everything after it does nothing.
type parser struct {
	rest string
	err  error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: its header holds "+format, append([]any{ErrFormat}, args...)...)
	}
}

// take skips white space and then token, if it comes next.
func (p *parser) take(token string) bool {
	p.rest = strings.TrimLeft(p.rest, " \t\n")
	rest, found := strings.CutPrefix(p.rest, token)
	if found {
		p.rest = rest
	}
	return found
}

func (p *parser) expect(token string) {
	if !p.take(token) {
		p.fail("%.20q where %q belongs", p.rest, token)
	}
}

// str reads a quoted string; nothing that belongs in a header needs an escape.
func (p *parser) str() string {
	quote := "'"
	if p.take(`"`) {
		quote = `"`
	} else {
		p.expect("'")
	}
	s, rest, found := strings.Cut(p.rest, quote)
	if !found {
		p.fail("a string without an end")
	}
	if p.err != nil {
		return ""
	}
	p.rest = rest
	return s
}

func (p *parser) boolean() bool {
	if p.take("True") {
		return true
	}
	p.expect("False")
	return false
}

// tuple reads (), (3,) or (3, 4), also with the L that Python 2 put behind a long.
func (p *parser) tuple() []int {
	var dims []int
	p.expect("(")
	for p.err == nil && !p.take(")") {
		p.take("") // white space
		end := 0
		for end < len(p.rest) && p.rest[end] >= '0' && p.rest[end] <= '9' {
			end++
		}
		d, err := strconv.Atoi(p.rest[:end])
		if err != nil {
			p.fail("%.20q where a dimension belongs", p.rest)
			return nil
		}
		p.rest = strings.TrimPrefix(p.rest[end:], "L")
		if dims = append(dims, d); len(dims) > maxDims {
			p.fail("more than %d dimensions", maxDims)
			return nil
		}
		if !p.take(",") {
			p.expect(")")
			break
		}
	}
	return dims
}
