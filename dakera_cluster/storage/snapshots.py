"""Snapshot files: named sections of bytes, written atomically, checked when read.

A view (vectors, postings) writes itself here so that a restart need not rebuild it from rows. A snapshot is a cache of the
rows and never the truth: whatever is wrong with one is a CorruptionError, and the caller rebuilds.

Layout, all integers little-endian::

    magic 8 | index length 4 | index digest 16 | index (msgpack) | padding | section | padding | section | ...

The index holds the caller's ``meta`` and, for each section, name, offset, length and digest (xxh3-128). Sections begin at
multiples of 64 bytes, so that a numpy array of any type can be laid over the mapped file. ``read`` checks the index at
once and each section when it is first asked for: a section that is not needed costs nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import xxhash

from dakera_cluster.model.errors import CorruptionError, StorageError
from dakera_cluster.storage.durable import make_directories, sync_directory

MAGIC = b"DKSNAP01"
HEAD = struct.Struct("<8sI16s")
ALIGNMENT = 64
TEMPORARY_SUFFIX = ".writing"

Buffer = bytes | bytearray | memoryview
Parts = Buffer | Sequence[Buffer]
"""A section, whole or in parts that are written one after the other."""


class _Section(msgspec.Struct, frozen=True, array_like=True):
    offset: int
    length: int
    digest: bytes


class _Index(msgspec.Struct, frozen=True, array_like=True):
    meta: dict[str, Any]
    sections: dict[str, _Section]
    size_bytes: int


class Sections(Mapping[str, memoryview]):
    """The sections of a snapshot: name -> read-only bytes, mapped from the file and checked at the first access.

    The views stay valid as long as they are referenced, also after the file has been replaced. ``close`` lets go of the
    mapping early where no view is in use.
    """

    def __init__(self, path: Path, view: memoryview, mapped: mmap.mmap | None, index: _Index) -> None:
        self._path = path
        self._view = view
        self._mapped = mapped
        self._index = index
        self._checked: set[str] = set()

    def __getitem__(self, name: str) -> memoryview:
        section = self._index.sections[name]
        data = self._view[section.offset : section.offset + section.length]
        if name not in self._checked:
            if xxhash.xxh3_128_digest(data) != section.digest:
                raise CorruptionError(f"snapshot {self._path}: section {name!r} does not match its checksum")
            self._checked.add(name)
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.sections)

    def __len__(self) -> int:
        return len(self._index.sections)

    def close(self) -> None:
        """Unmap the file unless a view of it is in use; idempotent."""
        with contextlib.suppress(BufferError):
            self._view.release()
            if self._mapped is not None:
                self._mapped.close()


class Staged:
    """A snapshot that is written beside its place and not there yet: ``publish`` it, or ``discard`` it."""

    def __init__(self, path: Path, temporary: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._path = path
        self._temporary = temporary

    def publish(self) -> None:
        """Make it durable and put it in place of what was there. Raises StorageError when the disk refuses. Blocking: an
        fsync of the whole file."""
        try:
            with self._temporary.open("rb+") as file:
                os.fsync(file.fileno())
            self._temporary.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            raise StorageError(f"snapshot {self._path}: {error}") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was staged; nothing when it has been published."""
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def stage(path: Path | str, sections: Mapping[str, Parts], meta: dict[str, Any]) -> Staged:
    """Write a snapshot's bytes, to be published at ``path``: when this returns, what ``sections`` refer to may change.

    ``meta`` is any msgpack-able dict. Raises StorageError when the disk refuses. Does not wait for the disk itself.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        make_directories(path.parent)
        with temporary.open("xb") as file:
            return Staged(path, temporary, _write_file(file, sections, meta))
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(f"snapshot {path}: {error}") from error


def write(path: Path | str, sections: Mapping[str, Parts], meta: dict[str, Any]) -> int:
    """Write a snapshot so that ``path`` holds either this one or what it held before; returns its size in bytes.

    Raises StorageError when the disk refuses. Blocking: call it in a worker thread.
    """
    staged = stage(path, sections, meta)
    staged.publish()
    return staged.size_bytes


def read(path: Path | str) -> tuple[dict[str, Any], Sections]:
    """The meta and the sections of a snapshot. FileNotFoundError when there is none, CorruptionError when it is damaged."""
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < HEAD.size:
            raise CorruptionError(f"snapshot {path}: {size} bytes are no snapshot")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(mapped)
    try:
        index = _read_index(path, view, size)
    except CorruptionError:
        view.release()
        mapped.close()
        raise
    return index.meta, Sections(path, view, mapped, index)


def sweep(directory: Path | str) -> None:
    """Remove what a crashed writer left in ``directory``. Call it when no writer is running: at start."""
    with contextlib.suppress(FileNotFoundError):
        for path in Path(directory).iterdir():
            if path.name.endswith(TEMPORARY_SUFFIX):
                path.unlink(missing_ok=True)


def _write_file(file: BinaryIO, sections: Mapping[str, Parts], meta: dict[str, Any]) -> int:
    flat = {name: _flat(data) for name, data in sections.items()}
    lengths = {name: sum(part.nbytes for part in parts) for name, parts in flat.items()}
    digests = {name: _digest(parts) for name, parts in flat.items()}

    def index_at(start: int) -> tuple[bytes, _Index]:
        offset, entries = start, {}
        for name, length in lengths.items():
            entries[name] = _Section(offset, length, digests[name])
            offset = _aligned(offset + length)
        last = max((entry.offset + entry.length for entry in entries.values()), default=start)
        index = _Index(meta, entries, last)
        return msgspec.msgpack.encode(index), index

    # Offsets are in the index and its length moves them: lay out with room for integers of full width.
    room = _aligned(HEAD.size + len(index_at(0)[0]) + 16 * (len(flat) + 1))
    encoded, index = index_at(room)
    file.write(HEAD.pack(MAGIC, len(encoded), _index_digest(encoded)))
    file.write(encoded)
    position = HEAD.size + len(encoded)
    for name, parts in flat.items():
        offset = index.sections[name].offset
        file.write(bytes(offset - position))
        for part in parts:
            file.write(part)
        position = offset + lengths[name]
    file.write(bytes(index.size_bytes - position))
    return index.size_bytes


def _flat(data: Parts) -> list[memoryview]:
    parts = [data] if isinstance(data, Buffer) else data
    return [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]


def _digest(parts: list[memoryview]) -> bytes:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.digest()


def _read_index(path: Path, view: memoryview, size: int) -> _Index:
    magic, length, digest = HEAD.unpack_from(view)
    if magic != MAGIC:
        raise CorruptionError(f"snapshot {path}: not a snapshot of this version")
    encoded = bytes(view[HEAD.size : HEAD.size + length])
    if len(encoded) != length or _index_digest(encoded) != digest:
        raise CorruptionError(f"snapshot {path}: its index does not match its checksum")
    try:
        index = msgspec.msgpack.decode(encoded, type=_Index)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"snapshot {path}: its index cannot be read: {error}") from error
    if index.size_bytes != size:
        raise CorruptionError(f"snapshot {path}: {size} bytes instead of {index.size_bytes}")
    return index


def _index_digest(encoded: bytes) -> bytes:
    return xxhash.xxh3_128_digest(MAGIC + encoded)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
