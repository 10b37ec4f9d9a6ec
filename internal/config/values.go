package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/kwaai/kwaaid/internal/expert"
)

// Size is a number of bytes; it is written as `256MiB`, with the units B, KiB, MiB, GiB, TiB and their powers of ten kB, MB, GB, TB, or without one.
type Size int64

// sizeUnits, the largest first, binary before decimal: String takes the first that divides the size.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40},
	{"GiB", 1 << 30},
	{"MiB", 1 << 20},
	{"KiB", 1 << 10},
	{"TB", 1e12},
	{"GB", 1e9},
	{"MB", 1e6},
	{"kB", 1e3},
	{"KB", 1e3},
	{"B", 1},
}

// String returns the size in the largest binary unit that holds it as a whole number.
func (s Size) String() string {
	for _, u := range sizeUnits[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText writes what String returns.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a number, whole or decimal, and a unit.
func (s *Size) UnmarshalText(text []byte) error {
	digits, factor := string(text), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.name); ok {
			digits, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	errSize := fmt.Errorf("%q is no size: expected a number of bytes such as 256MiB, 1.5GiB or 65536", text)
	if digits == "" || strings.Trim(digits, "0123456789.") != "" {
		return errSize
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if n > math.MaxInt64/factor {
			return fmt.Errorf("%q is above 8 EiB", text)
		}
		*s = Size(n * factor)
		return nil
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return errSize
	}
	if f *= float64(factor); f >= math.MaxInt64 {
		return fmt.Errorf("%q is above 8 EiB", text)
	}
	*s = Size(f)
	return nil
}

// Ref names one expert as the operator did: by ID, or by name. Two Refs of one expert have the same ID.
type Ref struct {
	ID   expert.ID
	Name string // canonical, MODEL[@REVISION]/LAYER/INDEX; empty where the ID was written
}

// String returns what was written, in its canonical form.
func (r Ref) String() string {
	if r.Name != "" {
		return r.Name
	}
	return r.ID.String()
}

// MarshalText writes what String returns.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads an ID, in both forms, or an expert's name.
func (r *Ref) UnmarshalText(text []byte) error {
	ref, err := expert.ParseRef(string(text))
	if err != nil {
		return err
	}
	if ref.Layer != nil {
		return fmt.Errorf("%q names a layer: expected one expert, such as %s", text, ref.Layer.Expert(0))
	}
	*r = Ref{ID: ref.ID}
	if ref.Name != nil {
		r.Name = ref.Name.String()
	}
	return nil
}

// Selection chooses from a checkpoint's layers or experts: `0-7,12`. The zero value chooses all.
type Selection struct {
	ranges []span
	words  []string // layers that are called by their module's path
}

// span is one range, both ends in it.
type span struct{ first, last int }

// All tells whether nothing is left out.
func (s Selection) All() bool { return len(s.ranges) == 0 && len(s.words) == 0 }

// Has tells whether the number is chosen.
func (s Selection) Has(n int) bool {
	for _, r := range s.ranges {
		if r.first <= n && n <= r.last {
			return true
		}
	}
	return s.All()
}

// HasLayer tells whether the layer is chosen: by its number, or by its module's dotted path.
func (s Selection) HasLayer(layer string) bool {
	n, err := strconv.Atoi(layer)
	return s.All() || slices.Contains(s.words, layer) || err == nil && s.Has(n)
}

// String returns the selection as it is written; empty for all.
func (s Selection) String() string {
	parts := make([]string, 0, len(s.ranges)+len(s.words))
	for _, r := range s.ranges {
		if r.first == r.last {
			parts = append(parts, strconv.Itoa(r.first))
		} else {
			parts = append(parts, strconv.Itoa(r.first)+"-"+strconv.Itoa(r.last))
		}
	}
	return strings.Join(append(parts, s.words...), ",")
}

// MarshalText writes what String returns.
func (s Selection) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads numbers, ranges with both ends in them, and modules' paths, separated by commas.
func (s *Selection) UnmarshalText(text []byte) error {
	var out Selection
	for part := range strings.SplitSeq(string(text), ",") {
		part = strings.TrimSpace(part)
		if part != "" && strings.Trim(part[:1], "0123456789-") != "" {
			out.words = append(out.words, part)
			continue
		}
		low, high, isRange := strings.Cut(part, "-")
		first, err1 := parseIndex(low)
		last, err2 := first, error(nil)
		if isRange {
			last, err2 = parseIndex(high)
		}
		if err1 != nil || err2 != nil {
			return fmt.Errorf("%q is no selection: expected numbers and ranges such as 0-7,12", text)
		}
		if last < first {
			return fmt.Errorf("the range %s runs backwards: expected %d-%d", part, last, first)
		}
		out.ranges = append(out.ranges, span{first, last})
	}
	*s = out
	return nil
}

// parseIndex reads the number of a layer or an expert: decimal, at most nine digits, as in a name.
func parseIndex(s string) (int, error) {
	if len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.Atoi(s)
}
