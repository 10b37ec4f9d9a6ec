package gateway

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/kwaai/kwaaid/internal/wire"
)

// parseInfer reads the JSON of a request; limit bounds each tensor's bytes. Inputs with a binary size still lack their elements.
func parseInfer(text []byte, limit int64) (httpInfer, []httpInput, error) {
	req := httpInfer{binary: map[string]bool{}}
	var inputs []httpInput
	s := &scanner{text: text}
	err := s.object(func(key string) error {
		switch key {
		case "id":
			return s.decode(&req.id)
		case "parameters":
			return s.optional(func() error {
				return s.object(func(key string) error {
					value, err := s.scalar()
					if err != nil {
						return err
					}
					return req.params.set(key, value)
				})
			})
		case "inputs":
			return s.optional(func() error {
				return s.array(func() error {
					in, err := parseInput(s, limit)
					inputs = append(inputs, in)
					return err
				})
			})
		case "outputs":
			return s.optional(func() error {
				return s.array(func() error { return parseOutput(s, &req) })
			})
		default:
			return s.fail("unknown key %s: expected id, parameters, inputs or outputs", quoted(key))
		}
	})
	if err == nil {
		err = s.end()
	}
	if err != nil {
		return httpInfer{}, nil, err
	}
	return req, inputs, nil
}

// scalar reads a bool, a string or a number.
func (s *scanner) scalar() (any, error) {
	var value any
	if err := s.decode(&value); err != nil {
		return nil, err
	}
	switch value.(type) {
	case bool, string, json.Number:
		return value, nil
	default:
		return nil, s.fail("a bool, a string or a number was expected")
	}
}

// parseInput reads one input. Its data may stand before its datatype and shape: then it is read once these are known.
func parseInput(s *scanner, limit int64) (httpInput, error) {
	in := httpInput{binarySize: -1}
	var shape []int64
	dataAt := -1 // where data begins
	dataEnd := -1
	err := s.object(func(key string) error {
		switch key {
		case "name":
			return s.decode(&in.tensor.name)
		case "datatype":
			return s.decode(&in.tensor.datatype)
		case "shape":
			return s.decode(&shape)
		case "parameters":
			return s.optional(func() error {
				return s.object(func(key string) error {
					if key != "binary_data_size" {
						return refuseTensorParam(in.tensor.name, key)
					}
					var size *int64
					if err := s.decode(&size); err != nil || size == nil {
						return err
					}
					if in.binarySize = *size; *size < 0 {
						return s.fail("binary_data_size %d is no number of bytes", *size)
					}
					return nil
				})
			})
		case "data":
			return s.optional(func() error {
				dataAt = s.at
				if d, ok := datatypeOf(in.tensor.datatype); ok && d.plain() {
					return in.parseData(s, d)
				}
				_, err := s.raw()
				dataEnd = s.at
				return err
			})
		default:
			return s.fail("unknown key %s: expected name, datatype, shape, parameters or data", quoted(key))
		}
	})
	if err != nil {
		return in, err
	}
	name := in.tensor.name
	if in.dtype, in.elements, err = elements(name, in.tensor.datatype, shape, limit); err != nil {
		return in, err
	}
	dataShape := in.tensor.shape
	in.tensor.shape = toInts(shape)
	switch {
	case in.binarySize >= 0 && dataAt >= 0:
		return in, refuse(wire.InvalidArgument, fmt.Sprintf("input %s has both data and a binary_data_size", quoted(name)))
	case in.binarySize >= 0:
		if want := int64(in.elements) * int64(in.dtype.size); in.binarySize != want {
			return in, refuse(wire.InvalidArgument, fmt.Sprintf("input %s has binary_data_size %d: its shape takes %d", quoted(name), in.binarySize, want))
		}
		return in, nil
	case dataAt < 0:
		return in, refuse(wire.InvalidArgument, fmt.Sprintf("input %s has neither data nor a binary_data_size", quoted(name)))
	case !in.dtype.plain():
		return in, refuse(wire.InvalidArgument, fmt.Sprintf("input %s: %s travels as binary", quoted(name), in.tensor.datatype))
	}
	if dataEnd >= 0 {
		late := &scanner{text: s.text[:dataEnd], at: dataAt}
		if err := in.parseData(late, in.dtype); err != nil {
			return in, err
		}
		dataShape, in.tensor.shape = in.tensor.shape, toInts(shape)
	}
	if in.tensor.count() != in.elements || (len(dataShape) > 1 && !slices.Equal(dataShape, in.tensor.shape)) {
		return in, refuse(wire.InvalidArgument, fmt.Sprintf("input %s has shape %v, its data %v", quoted(name), shape, dataShape))
	}
	return in, nil
}

// parseData reads the elements, flat or nested; their shape stands in tensor.shape until the one that the request states takes its place.
func (in *httpInput) parseData(s *scanner, d datatype) (err error) {
	if d.ints {
		in.tensor.shape, in.tensor.ints, err = numbers(s, parseInt64)
	} else {
		in.tensor.shape, in.tensor.data, err = numbers(s, parseFloat32)
	}
	return err
}

// parseOutput reads which output is wanted, and how.
func parseOutput(s *scanner, req *httpInfer) error {
	name := ""
	var params []string
	var binary *bool
	err := s.object(func(key string) error {
		switch key {
		case "name":
			return s.decode(&name)
		case "parameters":
			return s.optional(func() error {
				return s.object(func(key string) error {
					if key != "binary_data" {
						params = append(params, key)
						_, err := s.scalar()
						return err
					}
					return s.decode(&binary)
				})
			})
		default:
			return s.fail("unknown key %s: expected name or parameters", quoted(key))
		}
	})
	if err != nil {
		return err
	}
	for _, key := range params {
		return refuseTensorParam(name, key)
	}
	if binary != nil {
		req.binary[name] = *binary
	}
	req.outputs = append(req.outputs, name)
	return nil
}
