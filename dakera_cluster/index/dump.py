"""The bytes of a view's snapshot: named numpy arrays behind a small, checked header.

Layout: magic ``DKIX``, uint32 header length, uint64 total length (little endian), msgpack header, arrays at 64-byte
boundaries. A dump is refused, never half-loaded: wrong magic, kind or version, a length that does not match, or an
array that reaches past the end. The checksum over the file is the owner's (a view is derived data: on any refusal the
owner rebuilds it from rows). Called by the views of this package only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from dakera_cluster.model.errors import CorruptionError

MAGIC = b"DKIX"
ALIGNMENT_BYTES = 64
_PLAIN_TYPE = re.compile(r"[<>|][biuf]\d{1,2}")
"""Booleans, integers and floats: nothing that numpy would interpret further, or evaluate as Python."""
_PREFIX = struct.Struct("<4sIQ")


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class _Header(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    version: int
    meta: dict[str, Any]
    arrays: list[_Array]


def pack(
    kind: str, version: int, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> list[bytes | memoryview]:
    """Serialise ``arrays`` and the msgpack-able ``meta``: the parts, in order, of one dump of a ``kind`` of view.

    Arrays are not copied: the parts must be written before the arrays change. Joining them doubles the memory.
    """
    entries: list[_Array] = []
    chunks: list[bytes | memoryview] = []
    offset = 0
    for name, array in arrays.items():
        contiguous = np.ascontiguousarray(array)
        entries.append(_Array(name, contiguous.dtype.str, contiguous.shape, offset))
        padding = -contiguous.nbytes % ALIGNMENT_BYTES
        if contiguous.nbytes:
            chunks.append(contiguous.data.cast("B"))
        chunks.append(bytes(padding))
        offset += contiguous.nbytes + padding
    header = msgspec.msgpack.encode(_Header(kind, version, dict(meta), entries))
    body_start = _body_start(len(header))
    gap = bytes(body_start - _PREFIX.size - len(header))
    return [_PREFIX.pack(MAGIC, len(header), body_start + offset), header, gap, *chunks]


def unpack(kind: str, version: int, data: bytes | memoryview) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return ``(meta, arrays)``; the arrays are read-only views of ``data``.

    Raises CorruptionError when ``data`` is not a whole dump of that ``kind`` and ``version``.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size:
        raise CorruptionError(f"{kind} dump is {len(view)} bytes long, shorter than its prefix")
    magic, header_bytes, total_bytes = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise CorruptionError(f"{kind} dump does not begin with {MAGIC!r}")
    body_start = _body_start(header_bytes)
    if total_bytes != len(view) or body_start > total_bytes:
        raise CorruptionError(f"{kind} dump is {len(view)} bytes long, its prefix says {total_bytes}")
    try:
        header = msgspec.msgpack.decode(view[_PREFIX.size : _PREFIX.size + header_bytes], type=_Header)
        if (header.kind, header.version) != (kind, version):
            raise CorruptionError(f"expected {kind} v{version}, the dump holds {header.kind} v{header.version}")
        arrays = {entry.name: _array(entry, view[body_start:]) for entry in header.arrays}
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise CorruptionError(f"{kind} dump cannot be decoded: {error}") from error
    return header.meta, arrays


def _body_start(header_bytes: int) -> int:
    return -(-(_PREFIX.size + header_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _array(entry: _Array, body: memoryview) -> np.ndarray:
    if _PLAIN_TYPE.fullmatch(entry.dtype) is None:
        raise ValueError(f"array {entry.name} has no plain type")
    dtype = np.dtype(entry.dtype)
    if entry.offset < 0 or any(side < 0 for side in entry.shape):
        raise ValueError(f"array {entry.name} has an impossible layout")
    count = int(np.prod(entry.shape, dtype=np.int64))
    if entry.offset + count * dtype.itemsize > len(body):
        raise ValueError(f"array {entry.name} reaches past the end")
    return np.frombuffer(body, dtype=dtype, count=count, offset=entry.offset).reshape(entry.shape)
