"""The wire format: requests and replies of the Open Inference Protocol v2 with binary tensors.

A body is JSON, as long as the header ``Inference-Header-Content-Length`` says, and behind it the tensors' bytes, little-endian, in
the order in which the JSON names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import BadReply

HEADER_LENGTH = "Inference-Header-Content-Length"

# How each datatype lies in memory. numpy has no bfloat16: its bits travel as uint16.
_DTYPES: dict[str, np.dtype] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2"), "BF16": np.dtype("<u2"), "INT64": np.dtype("<i8")}


@dataclass(frozen=True)
class BF16:
    """A bfloat16 tensor as its bits, uint16, since numpy has no such type."""

    bits: np.ndarray

    def float32(self) -> np.ndarray:
        """The same values as float32, exactly."""
        return (self.bits.astype(np.uint32) << 16).view(np.float32)


Array = np.ndarray | BF16


@dataclass
class Reply:
    """What a model answered: its outputs by name, and what the node says about the answer."""

    outputs: dict[str, Array]
    parameters: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    @property
    def answered_by(self) -> list[str]:
        """The peers that computed it."""
        return _split(self.parameters.get("answered_by"))

    @property
    def missing_experts(self) -> list[str]:
        """The experts that policy ``skip`` left out."""
        return _split(self.parameters.get("missing_experts"))


def _split(value: Any) -> list[str]:
    return [part for part in str(value or "").split(",") if part]


def _raw(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _prepare(value: Any) -> tuple[str, np.ndarray]:
    """The datatype and a contiguous little-endian array: floats that are not float16 go as float32, integers as int64."""
    if isinstance(value, BF16):
        return "BF16", np.ascontiguousarray(value.bits, dtype=_DTYPES["BF16"])
    array = np.asarray(value)
    if array.dtype == np.float16:
        datatype = "FP16"
    elif array.dtype.kind == "f":
        datatype = "FP32"
    elif array.dtype.kind in "iu":
        datatype = "INT64"
    else:
        raise TypeError(f"a tensor of {array.dtype}: expected floats or integers")
    return datatype, np.ascontiguousarray(array, dtype=_DTYPES[datatype])


def encode(inputs: Mapping[str, Any], outputs: Iterable[str], parameters: Mapping[str, Any]) -> tuple[bytes, list[memoryview]]:
    """The JSON of a request and the bytes that follow it, which share the inputs' memory where they can."""
    described, behind = [], []
    for name, value in inputs.items():
        datatype, array = _prepare(value)
        described.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": {"binary_data_size": array.nbytes}})
        behind.append(_raw(array))
    document: dict[str, Any] = {"inputs": described, "parameters": {"binary_data_output": True, **parameters}}
    if wanted := [{"name": name, "parameters": {"binary_data": True}} for name in outputs]:
        document["outputs"] = wanted
    return json.dumps(document, separators=(",", ":")).encode(), behind


def decode(text: bytes | bytearray, read: Callable[[memoryview], None], available: int) -> Reply:
    """The reply whose JSON is text. ``read`` fills a buffer with what follows, of which there are ``available`` bytes."""
    try:
        document = json.loads(text)
        reply = Reply({}, dict(document.get("parameters") or {}))
        for output in document["outputs"]:
            datatype, shape = output["datatype"], [int(size) for size in output["shape"]]
            dtype = _DTYPES.get(datatype)
            if dtype is None or min(shape, default=0) < 0:
                raise BadReply(f"output {output['name']!r} is {datatype} {shape}: expected one of {', '.join(_DTYPES)}")
            size = (output.get("parameters") or {}).get("binary_data_size")
            if size is None:
                array = np.array(output["data"], dtype=dtype).reshape(shape)
            else:
                needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if size != needed or size > available:
                    raise BadReply(f"output {output['name']!r} of {size} bytes: its shape takes {needed}, {available} are there")
                available -= size
                array = np.empty(shape, dtype)
                read(_raw(array))
            reply.outputs[output["name"]] = BF16(array) if datatype == "BF16" else array
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise BadReply(f"no reply of the Open Inference Protocol: {err!r}") from err
    if available:
        raise BadReply(f"{available} bytes follow the last output")
    return reply
