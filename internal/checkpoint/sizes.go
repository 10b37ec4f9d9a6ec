package checkpoint

import (
	"fmt"
	"strconv"
	"strings"
)

// sizes are the lengths of the axes that layouts name; 0 while not known.
type sizes struct{ experts, inner, hidden int }

// axis returns the size that an axis stands for and by what it is multiplied: 2*inner is inner by 2.
func (s *sizes) axis(name string) (size *int, factor int) {
	factor = 1
	if rest, ok := strings.CutPrefix(name, "2*"); ok {
		name, factor = rest, 2
	} else if rest, ok := strings.CutPrefix(name, "experts*"); ok {
		name, factor = rest, s.experts
	}
	switch name {
	case "experts":
		return &s.experts, factor
	case "inner":
		return &s.inner, factor
	default:
		return &s.hidden, factor
	}
}

// match compares a shape with the axes that it should have, and takes sizes from it that were not known. The error says
// what was expected; sizes are then as before.
func (s *sizes) match(axes string, shape []int) error {
	names, next := strings.Split(axes, ","), *s
	fits := len(names) == len(shape)
	for i := 0; fits && i < len(names); i++ {
		size, factor := next.axis(names[i])
		switch {
		case factor == 0 || shape[i] == 0 || shape[i]%factor != 0:
			fits = false
		case *size == 0:
			*size = shape[i] / factor
		default:
			fits = *size == shape[i]/factor
		}
	}
	if !fits {
		return fmt.Errorf("expected %s, found %v", s.describe(names), shape)
	}
	*s = next
	return nil
}

// describe writes a shape for people: numbers where they are known, else names.
func (s *sizes) describe(axes []string) string {
	words := make([]string, len(axes))
	for i, name := range axes {
		words[i] = name
		if size, factor := s.axis(name); *size*factor > 0 {
			words[i] = strconv.Itoa(*size * factor)
		}
	}
	return "[" + strings.Join(words, " ") + "] (" + strings.Join(axes, ", ") + ")"
}

// lengths returns the lengths of axes that are all known.
func (s *sizes) lengths(axes []string) []int {
	n := make([]int, len(axes))
	for i, name := range axes {
		size, factor := s.axis(name)
		n[i] = *size * factor
	}
	return n
}
