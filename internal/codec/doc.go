// Package codec turns slices of float32 into the bytes of other number formats and back. It knows formats, not tensors.
//
//	dtype.go  DType, and the formats by name; Encode and Decode for those used on the wire
//	f32.go    float32: bytes as they are, and views of one slice as the other without a copy
//	bf16.go   bfloat16
//	f16.go    IEEE 754 binary16
//	f8.go     float8 E4M3 (OCP, finite only)
//
// All bytes are little-endian. Narrowing rounds to nearest, ties to even, subnormal numbers included. Every NaN becomes the
// canonical quiet one of the format that it is converted to (positive, first bit of the fraction set, or all bits where the format has but one);
// float32 to float32 alone copies bits as they are. Widening is exact.
//
// Functions panic when a slice is too short for the other one: lengths are checked where bytes enter the program.
package codec
