// Package kernel computes feed-forward networks: products of packed weights with rows of activations, the functions between them, and the
// workers that share the labour. It takes slices and knows no tensors.
//
// # Order of operations
//
// A result is the same to the last bit on every machine, whatever rows share the batch, however many threads there are. This is the whole
// definition; a row of x gives a row of y. All numbers are float32; fma(a, b, c) is a*b + c rounded once; every other operation is
// rounded to nearest even as well; nothing is fused unless it says fma, and nothing reordered.
//
// Each output of a matrix W [out, in] is c of the following, where k counts inputs; x and W are padded with zeros to a multiple of 32 inputs.
//
// exact-1: k is cut into blocks of 128 (the last may be shorter). For one block after the other, ascending
//
//	s = 0; for each k of the block, ascending: s = fma(x[k], w[k], s)
//	c = fma(scale, s, c)                       c begins with 0
//
// The scale is 1 for F32, BF16 and F16, whose weights are widened exactly. For F8E4M3 blocks are those of the scales (a scale's columns, cut at
// the end of the padded inputs); w is the float8 number times 2^-8, scale the stored one times 2^8. For MXFP4 blocks have 32 inputs; w is the
// number of 4 bits, scale is 2^(exponent-127), infinite for 255. F8E4M3 whose blocks are no multiple of 32 inputs (and do not hold all of them)
// counts as F32: number times scale, rounded.
//
// dot-1, for BF16 weights: x is rounded to bf16 first (subnormal numbers to zero with their sign, then to nearest even). Subnormal weights count as zero.
// fma and add flush as well: a result that is below the normal numbers after rounding becomes zero with its sign. For each pair of inputs, ascending
//
//	c = fma(x[k], w[k], fma(x[k+1], w[k+1], c))       the odd one first; c begins with 0
//
// tile-1, for BF16 weights: x, weights and results are treated likewise. For each block of 32 inputs, ascending
//
//	even = odd = 0
//	for each pair of the block, ascending: even = fma(x[k], w[k], even); odd = fma(x[k+1], w[k+1], odd)
//	c = c + (even + odd)
//
// In all three, the bias is added to c in the end (0 where there is none; not flushed). With g and u the results of gate and up,
//
//	h = act(g) * u                 or act(u) without a gate; swiglu_clamped below
//	y = down's result for h, each NaN replaced by the canonical one, 0x7fc00000
//
// dot and tile round h to bf16 like x. The functions, with the constants of package consts, the same in all three:
//
//	min(b, v), max(b, v)   b if b < v (b > v), else v: NaN stays NaN
//	exp(v)                 v = min(89, max(-104, v)); t = fma(v, log2(e), 1.5*2^23); n = t - 1.5*2^23
//	                       r = fma(n, -ln2low, fma(n, -ln2high, v)); p = the polynomial ExpPoly of r, by Horner's rule with fma
//	                       p * 2^(n>>1) * 2^(n-(n>>1)), from the left
//	silu(v)                v / (1 + exp(-v))
//	gelu_tanh(v)           v / (1 + exp((v*a) * fma(v*v, b, 1))), a = -2 sqrt(2/pi), b = 0.044715
//	gelu(v)                z = min(20, |v|); s = z*z; l = fma(z, z, -s); e = exp(s*-0.5); e = fma(l*-0.5, e, e)
//	                       q = (z-4) / (z+4); p = the polynomial GELUPoly of q, by Horner's rule with fma
//	                       fma(-z, (e*p) / fma(z, 0.5, 1), max(0, v))
//	relu(v)                max(0, v)
//	swiglu_clamped(g, u)   g = min(limit, g); u = max(-limit, min(limit, u)); (u + 1) * (g / (1 + exp(g*-1.702)))
//
// docs/NUMERICS.md says the same with all constants, for those who build it themselves.
//
// # Packed weights
//
// Outputs are packed in panels of 32; where there is a gate, the first 16 are gate's and the others up's. In a panel inputs follow each other, from
// the first to the last, in groups of which each holds something for each of the 32 outputs in turn:
//
//	F32     1 input:   4 bytes
//	F16     1 input:   2 bytes
//	BF16    2 inputs:  2 bytes each, the even input first
//	F8E4M3  2 inputs:  a byte each, the even input first
//	MXFP4   8 inputs:  4 bytes; inputs 0, 2, 4, 6 in the four halves of the lower two bytes, from the lowest up; 1, 3, 5, 7 in the upper two
//
// # Files
//
//	types.go       what callers say: formats, activations, numerics, Weights, FFN
//	pack.go        packing
//	memory_*.go    where packed weights lie
//	ffn.go         PackedFFN, Forward: a call as phases of tasks
//	pool.go        Pool: workers, and how calls share them
//	spread_*.go    the threads of a call keep apart
//	path.go        the functions that each path provides
//	machine*.go    which paths this machine has
//	avx*.go, .s    the paths with vectors, written by internal/gen (go generate); selftest_amd64.bin what VDPBF16PS is tried with
//	limits.go      what the machine can do at most, to compare with
//	portable.go    the portable path: the definition above, in Go
//	fma.go         fused multiply-adds in Go
//	activation.go  the functions above, in Go
package kernel
