package checkpoint

import (
	"github.com/kwaai/kwaaid/internal/codec"
	"github.com/kwaai/kwaaid/internal/expert"
	"github.com/kwaai/kwaaid/internal/kernel"
)

// dtype is a number format with the names that the packages have for it.
type dtype struct {
	name   string // in Function.DType and in manifests
	codec  codec.DType
	kernel kernel.DType
}

// plainDTypes are those whose elements need nothing beside them, by the name that safetensors has for them.
var plainDTypes = map[string]dtype{
	"F32":  {expert.DTypeF32, codec.F32, kernel.F32},
	"BF16": {expert.DTypeBF16, codec.BF16, kernel.BF16},
	"F16":  {expert.DTypeF16, codec.F16, kernel.F16},
}

var (
	f8E4M3 = dtype{expert.DTypeF8E4M3, codec.F8E4M3, kernel.F8E4M3}
	mxfp4  = dtype{expert.DTypeMXFP4, codec.MXFP4, kernel.MXFP4}
)

// bytes returns the size of n elements.
func (d dtype) bytes(n int64) int64 { return int64(d.codec.Size(int(n))) }

// widen decodes stored elements; d is a plain dtype.
func (d dtype) widen(raw []byte) []float32 {
	values := make([]float32, len(raw)/d.codec.Size(1))
	codec.Decode(values, d.codec, raw)
	return values
}
