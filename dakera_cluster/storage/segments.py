"""Segments: immutable sorted runs of rows as they lie in the bucket, and the manifest that lists them.

A segment is one object; keys and values are opaque bytes. Layout, integers little-endian::

    "DKSEG001"
    block, block, ...      zstd of rows: key length 4 | value length 4 | key | value
    index (msgpack)        meta, counts, and for each block: first key, offset, length, raw length, rows, digest (xxh3-128)
    tail (80 bytes)        index offset 8 | index length 8 | index digest 16 | digest of everything before (blake2b-256) 32
                           | "DKSEGEND" | reserved 8

``Segment`` checks tail and index when it is made and each block when it is read, so that a damaged block costs that block;
``verify`` checks the whole. Damage is a CorruptionError whose ``details`` name segment and block. Nothing is decompressed
beyond the length that the checked index promises.

A manifest is a line ``DKMAN1 <digest>`` and JSON: a person can read it, and a torn or edited one is refused.

Pure: bytes in, bytes out. Called by the bucket tier, by backup and by restore, in worker threads.
"""

from __future__ import annotations

import bisect
import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import xxhash
import zstandard

from dakera_cluster.model.errors import CorruptionError

MAGIC = b"DKSEG001"
END_MAGIC = b"DKSEGEND"
TAIL = struct.Struct("<QQ16s32s8s8s")
ROW = struct.Struct("<II")
MANIFEST_MAGIC = b"DKMAN1"
BLOCK_BYTES = 256 * 1024
"""Raw bytes after which a block is closed: large enough to compress well, small enough to fetch for one row."""
ZSTD_LEVEL = 3
WHOLE_DIGEST_BYTES = 32


class _Block(msgspec.Struct, frozen=True, array_like=True):
    first_key: bytes
    offset: int
    length: int
    raw_length: int
    rows: int
    digest: bytes


class _Index(msgspec.Struct, frozen=True, array_like=True):
    meta: dict[str, Any]
    rows: int
    last_key: bytes
    blocks: tuple[_Block, ...]


class SegmentEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One segment in a manifest. ``object_key`` is where it lies; the digest is that of the whole object, in hex."""

    object_key: str
    digest: str
    size_bytes: int
    rows: int
    first_key: bytes
    last_key: bytes
    meta: dict[str, Any]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The segments that make up ``name`` (a shard, a backup), oldest first. ``sequence`` grows with every change."""

    name: str
    sequence: int
    segments: tuple[SegmentEntry, ...]
    meta: dict[str, Any]


def encode(rows: Iterable[tuple[bytes, bytes]], *, meta: dict[str, Any], block_bytes: int = BLOCK_BYTES) -> bytes:
    """A segment of ``rows``, which must come in strictly ascending key order (ValueError otherwise)."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    out = bytearray(MAGIC)
    blocks: list[_Block] = []
    parts: list[bytes] = []
    first_key = last_key = b""
    raw_length = block_rows = 0

    def close_block() -> None:
        nonlocal raw_length, block_rows
        data = compressor.compress(b"".join(parts))
        blocks.append(_Block(first_key, len(out), len(data), raw_length, block_rows, _digest(data)))
        out.extend(data)
        parts.clear()
        raw_length = block_rows = 0

    for key, value in rows:
        if key <= last_key and (blocks or parts):
            raise ValueError(f"segment rows must ascend: {key!r} came after {last_key!r}")
        if not parts:
            first_key = key
        last_key = key
        parts += (ROW.pack(len(key), len(value)), key, value)
        raw_length += ROW.size + len(key) + len(value)
        block_rows += 1
        if raw_length >= block_bytes:
            close_block()
    if parts:
        close_block()
    index = msgspec.msgpack.encode(_Index(meta, sum(block.rows for block in blocks), last_key, tuple(blocks)))
    offset = len(out)
    out.extend(index)
    whole = hashlib.blake2b(out, digest_size=WHOLE_DIGEST_BYTES).digest()
    out.extend(TAIL.pack(offset, len(index), _digest(index), whole, END_MAGIC, bytes(8)))
    return bytes(out)


class Segment:
    """A segment that was read. ``name`` is what errors call it, its object key as a rule."""

    def __init__(self, name: str, data: bytes) -> None:
        """Check tail and index of ``data``. Raises CorruptionError."""
        self.name = name
        self._data = memoryview(data)
        self._index = self._read_index()
        self._first_keys = [block.first_key for block in self._index.blocks]
        self._decompressor = zstandard.ZstdDecompressor()

    @property
    def meta(self) -> dict[str, Any]:
        return self._index.meta

    @property
    def blocks(self) -> int:
        return len(self._index.blocks)

    def __len__(self) -> int:
        """Number of rows."""
        return self._index.rows

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return self.scan()

    def get(self, key: bytes) -> bytes | None:
        """The value of ``key``, or None. Reads one block."""
        number = bisect.bisect_right(self._first_keys, key) - 1
        if number < 0 or key > self._index.last_key:
            return None
        return next((value for found, value in self.block(number) if found == key), None)

    def scan(self, start: bytes = b"", end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with ``start <= key < end`` in key order."""
        for number in range(max(0, bisect.bisect_right(self._first_keys, start) - 1), self.blocks):
            if end is not None and self._first_keys[number] >= end:
                return
            for key, value in self.block(number):
                if end is not None and key >= end:
                    return
                if key >= start:
                    yield key, value

    def block(self, number: int) -> Sequence[tuple[bytes, bytes]]:
        """The rows of one block. A restore that meets CorruptionError may go on with the next."""
        block = self._index.blocks[number]
        data = self._data[block.offset : block.offset + block.length]
        if _digest(data) != block.digest:
            raise self._corrupt("does not match its checksum", number)
        try:
            if zstandard.frame_content_size(data) != block.raw_length:  # asked before anything is allocated
                raise self._corrupt("is not what the index promises", number)
            raw = self._decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise self._corrupt(f"cannot be decompressed: {error}", number) from error
        rows = tuple(_rows(raw))
        if len(rows) != block.rows:
            raise self._corrupt("is not what the index promises", number)
        return rows

    def verify(self) -> None:
        """Check every byte. Raises CorruptionError, naming the block where the damage lies in one."""
        whole = TAIL.unpack_from(self._data, len(self._data) - TAIL.size)[3]
        body = self._data[: -TAIL.size]
        if hashlib.blake2b(body, digest_size=WHOLE_DIGEST_BYTES).digest() != whole:
            for number in range(self.blocks):
                self.block(number)
            raise self._corrupt("does not match its checksum")

    def entry(self, object_key: str) -> SegmentEntry:
        """What a manifest says about this segment."""
        return SegmentEntry(
            object_key=object_key,
            digest=object_digest(self._data),
            size_bytes=len(self._data),
            rows=len(self),
            first_key=self._first_keys[0] if self._first_keys else b"",
            last_key=self._index.last_key,
            meta=self.meta,
        )

    def _read_index(self) -> _Index:
        data = self._data
        if len(data) < len(MAGIC) + TAIL.size or data[: len(MAGIC)] != MAGIC:
            raise self._corrupt("is no segment of this version")
        offset, length, digest, _, magic, reserved = TAIL.unpack_from(data, len(data) - TAIL.size)
        encoded = data[offset : offset + length]
        if magic != END_MAGIC or any(reserved) or offset + length != len(data) - TAIL.size:
            raise self._corrupt("is cut short or has a damaged tail")
        if _digest(encoded) != digest:
            raise self._corrupt("has an index that does not match its checksum")
        try:
            return msgspec.msgpack.decode(encoded, type=_Index)
        except msgspec.DecodeError as error:
            raise self._corrupt(f"has an index that cannot be read: {error}") from error

    def _corrupt(self, what: str, block: int | None = None) -> CorruptionError:
        where = f"segment {self.name}" + (f", block {block}," if block is not None else "")
        return CorruptionError(f"{where} {what}", details={"segment": self.name, "block": block})


def object_digest(data: bytes | memoryview) -> str:
    """The digest by which a manifest knows an object."""
    return hashlib.blake2b(data, digest_size=WHOLE_DIGEST_BYTES).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as an object."""
    body = msgspec.json.encode(manifest)
    return b"%s %s\n%s" % (MANIFEST_MAGIC, object_digest(body).encode(), body)


def decode_manifest(name: str, data: bytes) -> Manifest:
    """The manifest in the object called ``name``. Raises CorruptionError."""
    head, _, body = data.partition(b"\n")
    magic, _, digest = head.partition(b" ")
    details = {"manifest": name}
    if magic != MANIFEST_MAGIC:
        raise CorruptionError(f"manifest {name} is no manifest of this version", details=details)
    if object_digest(body).encode() != digest:
        raise CorruptionError(f"manifest {name} does not match its checksum", details=details)
    try:
        return msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"manifest {name} cannot be read: {error}", details=details) from error


def _rows(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    position, end = 0, len(raw)
    while position < end:
        key_length, value_length = ROW.unpack_from(raw, position)
        position += ROW.size
        middle = position + key_length
        yield raw[position:middle], raw[middle : middle + value_length]
        position = middle + value_length


def _digest(data: bytes | memoryview) -> bytes:
    return xxhash.xxh3_128_digest(data)
