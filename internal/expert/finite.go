package expert

import (
	"math"
	"unsafe"
)

// Finite tells whether no value is NaN or Inf: no exponent has all its bits set. It looks at two values at a time, since it is done
// for every input and output: adding the lowest bit of the exponent carries into the sign's place only from an exponent of all ones.
func Finite(values []float32) bool {
	const (
		exponents = 0x7f800000_7f800000
		lowest    = 0x00800000_00800000
		signs     = 0x80000000_80000000
	)
	// Two float32 side by side are one uint64 in memory; where the first stands in it does not matter here.
	for len(values) > 0 && uintptr(unsafe.Pointer(unsafe.SliceData(values)))%8 != 0 {
		if !finiteOne(values[0]) {
			return false
		}
		values = values[1:]
	}
	if len(values) < 2 {
		return len(values) == 0 || finiteOne(values[0])
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(values))), len(values)/2)
	for len(words) >= 8 {
		w := words[:8:8]
		carry := (w[0]&exponents + lowest) | (w[1]&exponents + lowest) | (w[2]&exponents + lowest) | (w[3]&exponents + lowest) |
			(w[4]&exponents + lowest) | (w[5]&exponents + lowest) | (w[6]&exponents + lowest) | (w[7]&exponents + lowest)
		if carry&signs != 0 {
			return false
		}
		words = words[8:]
	}
	for _, w := range words {
		if (w&exponents+lowest)&signs != 0 {
			return false
		}
	}
	return len(values)%2 == 0 || finiteOne(values[len(values)-1])
}

func finiteOne(v float32) bool {
	const exponent = 0x7f800000
	return math.Float32bits(v)&exponent != exponent
}
