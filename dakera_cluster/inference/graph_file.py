"""Reads an ONNX file that inference/build.py wrote, without the `onnx` package, which a serving node does not load.

Just enough of the protocol-buffer encoding (https://protobuf.dev/programming-guides/encoding) to see the graph's constants and
the attributes of its nodes; the constants are views of the file's bytes. Field numbers are those of onnx.proto (ModelProto,
GraphProto, NodeProto, AttributeProto, TensorProto). Called by native_pass.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dakera_cluster.inference.models import ModelFormatError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DTYPES: dict[int, Any] = {1: "<f4", 2: "u1", 3: "i1", 7: "<i8"}
"""TensorProto.DataType to numpy, as far as our builder writes them."""


@dataclass(frozen=True, slots=True)
class GraphFile:
    """``producer``: who wrote the file; ``constants``: array by name; ``floats``: the float attributes of the nodes, by
    operator and attribute (``LayerNormalization.epsilon``), each value once."""

    producer: str
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    floats: dict[str, set[float]] = field(default_factory=dict)


def read_graph(path: Path) -> GraphFile:
    """Raises ModelFormatError when the file is cut off or no ONNX model."""
    data = memoryview(path.read_bytes())
    producer, graph = "", None
    try:
        for number, value in _fields(data):
            if number == 2:
                producer = bytes(value).decode()
            elif number == 7:
                graph = value
        if graph is None:
            raise ModelFormatError(f"{path}: no graph")
        found = GraphFile(producer)
        for number, value in _fields(graph):
            if number == 1:
                _read_node(value, found)
            elif number == 5:
                name, constant = _constant(value)
                if constant is not None:
                    found.constants[name] = constant
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise ModelFormatError(f"{path} is no whole ONNX model: {error}") from error
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value): an int, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"{size} bytes at {at} of {len(data)}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"an integer without end at byte {at}")


def _read_node(data: memoryview, found: GraphFile) -> None:
    kind, attributes = "", []
    for number, value in _fields(data):
        if number == 4:
            kind = bytes(value).decode()
        elif number == 5:
            attributes.append(value)
    for attribute in attributes:
        parts = dict(_fields(attribute))
        if isinstance(parts.get(2), memoryview):
            (number,) = struct.unpack("<f", parts[2])
            found.floats.setdefault(f"{kind}.{bytes(parts[1]).decode()}", set()).add(number)


def _constant(data: memoryview) -> tuple[str, np.ndarray | None]:
    """A tensor with its name; None for one of a type that our builder does not write."""
    shape: list[int] = []
    dtype, name, raw = 0, "", memoryview(b"")
    for number, value in _fields(data):
        if number == 1:
            # Packed or not, as the writer liked.
            shape += _packed(value) if isinstance(value, memoryview) else [value]
        elif number == 2:
            dtype = value
        elif number == 8:
            name = bytes(value).decode()
        elif number == 9:
            raw = value
    if dtype not in _DTYPES:
        return name, None
    return name, np.frombuffer(raw, _DTYPES[dtype]).reshape(shape)


def _packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values
