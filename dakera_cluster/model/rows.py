"""Rows: everything a user stores, and the merge rule of each kind.

A row is ``(namespace, kind, id)`` and a body. Rows are the only thing that is replicated, repaired, moved, backed up and
encrypted, so the merge of two bodies of one key must be commutative, associative and idempotent: whatever order replicas
hear of writes in, they end with byte-identical bodies (bodies are encoded deterministically; tests prove the three laws).

Two merge rules exist (Shapiro et al., "A comprehensive study of CRDTs", 2011):

* **Document** (memories, records, sessions, edges): last writer wins, field by field. ``birth`` is the stamp of the last
  whole *put*, ``deleted`` of the last delete. A document is alive when ``birth > deleted``; a field shows when its stamp is
  not older than ``birth``. A *patch* carries field stamps only, so an importance change never undoes a concurrent edit of
  the content, and never brings a deleted document back: only a put does.
* **Usage** (access counts): per node a grow-only ``(count, stamp)``; larger stamp wins per node; a delete drops entries
  that are not younger than it. A recall adds to it and rewrites nothing.

Equal stamps with different values (two nodes whose tags collide) are settled by the encoded value, so the order is total;
no value at all is the smallest, because a put drops the fields it does not name and a merge must not depend on that.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.hlc import LOGICAL_BITS, NEVER, Stamp


class Kind(enum.IntEnum):
    """What a row is. The numbers are on disk and on the wire: append, never renumber."""

    DOCUMENT = 1
    USAGE = 2
    EDGE = 3


class RowKey(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    namespace: str
    kind: int
    id: str


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row in flight: the body stays encoded until somebody must look inside."""

    namespace: str
    kind: int
    id: str
    body: bytes

    @property
    def key(self) -> RowKey:
        return RowKey(self.namespace, self.kind, self.id)


class Document(msgspec.Struct, array_like=True):
    """Decoded body of a document. ``stamps`` holds only the fields whose stamp differs from ``birth``."""

    birth: Stamp
    deleted: Stamp
    fields: dict[str, Any]
    stamps: dict[str, Stamp]

    @property
    def alive(self) -> bool:
        return self.birth > self.deleted

    @property
    def version(self) -> Stamp:
        """The youngest stamp anywhere in the body."""
        newest = max(self.birth, self.deleted)
        return max(newest, max(self.stamps.values(), default=NEVER))

    def stamp_of(self, field: str) -> Stamp:
        return self.stamps.get(field, self.birth)


class UsageEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    count: int
    stamp: Stamp


class Usage(msgspec.Struct, array_like=True):
    """Decoded body of a usage row: node tag -> how often that node noted an access, and when last."""

    deleted: Stamp
    entries: dict[int, UsageEntry]

    @property
    def count(self) -> int:
        return self.totals()[0]

    @property
    def last_access_ms(self) -> int:
        """Milliseconds since the epoch of the youngest access, 0 when there was none."""
        return self.totals()[1]

    def totals(self) -> tuple[int, int]:
        """``(count, last_access_ms)``."""
        count = youngest = 0
        for entry in self.entries.values():
            count += entry.count
            if entry.stamp.time > youngest:
                youngest = entry.stamp.time
        return count, youngest >> LOGICAL_BITS

    @property
    def version(self) -> Stamp:
        youngest = self.deleted
        for entry in self.entries.values():
            if entry.stamp > youngest:
                youngest = entry.stamp
        return youngest


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_PLAIN = msgspec.msgpack.Encoder()
_DOCUMENT = msgspec.msgpack.Decoder(Document)
_USAGE = msgspec.msgpack.Decoder(Usage)
_NO_ENTRIES = _PLAIN.encode({})
"""How the body of a usage row without entries ends."""


def encode_value(value: Any) -> bytes:
    """Canonical msgpack: equal values have equal bytes."""
    return _ENCODER.encode(value)


def decode_document(body: bytes) -> Document:
    """Raises CorruptionError when the bytes are no document."""
    try:
        return _DOCUMENT.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"row body cannot be decoded as a document: {error}") from error


def decode_usage(body: bytes) -> Usage:
    """Raises CorruptionError when the bytes are no usage body."""
    try:
        return _USAGE.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptionError(f"row body cannot be decoded as usage: {error}") from error


def _encode_usage(usage: Usage) -> bytes:
    # The deterministic encoder takes string keys only, so the integer keys are put in order here.
    if len(usage.entries) > 1:
        usage = Usage(usage.deleted, dict(sorted(usage.entries.items())))
    return _PLAIN.encode(usage)


def put_document(stamp: Stamp, fields: dict[str, Any]) -> bytes:
    """Body of a whole write: replaces every older field."""
    return _ENCODER.encode(Document(stamp, NEVER, {k: v for k, v in fields.items() if v is not None}, {}))


def patch_document(stamp: Stamp, fields: dict[str, Any]) -> bytes:
    """Body of a partial write: only the named fields, None clears one."""
    return _ENCODER.encode(Document(NEVER, NEVER, dict(fields), dict.fromkeys(fields, stamp)))


def delete_document(stamp: Stamp) -> bytes:
    """Body of a delete: a tombstone for every older put."""
    return _ENCODER.encode(Document(NEVER, stamp, {}, {}))


def note_usage(node: int, count: int, stamp: Stamp) -> bytes:
    """Body that raises a node's own count to ``count`` as of ``stamp``."""
    return _encode_usage(Usage(NEVER, {node: UsageEntry(count, stamp)}))


def delete_usage(stamp: Stamp) -> bytes:
    return _encode_usage(Usage(stamp, {}))


def _merge_documents(left: Document, right: Document) -> Document:
    birth = max(left.birth, right.birth)
    deleted = max(left.deleted, right.deleted)
    fields: dict[str, Any] = {}
    stamps: dict[str, Stamp] = {}
    for name in {**left.fields, **right.fields}:
        winner, stamp = _newest_field(left, right, name)
        if stamp < birth or stamp <= deleted:
            continue
        value = winner.fields[name]
        if stamp != birth:
            stamps[name] = stamp
        elif value is None:
            continue
        fields[name] = value
    return Document(birth, deleted, fields, stamps)


def _newest_field(left: Document, right: Document, name: str) -> tuple[Document, Stamp]:
    if name not in right.fields:
        return left, left.stamp_of(name)
    if name not in left.fields:
        return right, right.stamp_of(name)
    left_stamp, right_stamp = left.stamp_of(name), right.stamp_of(name)
    if left_stamp != right_stamp:
        return (left, left_stamp) if left_stamp > right_stamp else (right, right_stamp)
    return (left, left_stamp) if _rank(left.fields[name]) >= _rank(right.fields[name]) else (right, right_stamp)


def _rank(value: Any) -> tuple[bool, bytes]:
    # Encoded, because 1, 1.0 and True are equal to Python and are not the same bytes.
    return value is not None, _ENCODER.encode(value)


def _merge_usages(left: Usage, right: Usage) -> Usage:
    deleted = max(left.deleted, right.deleted)
    best = dict(left.entries)
    for node, entry in right.entries.items():
        known = best.get(node)
        if known is None or (entry.stamp, entry.count) > (known.stamp, known.count):
            best[node] = entry
    return Usage(deleted, {node: entry for node, entry in best.items() if entry.stamp > deleted})


def merge(kind: int, stored: bytes | None, incoming: bytes) -> bytes:
    """The merged body. Equal to ``stored`` (same bytes) exactly when the incoming one brought nothing new."""
    if kind == Kind.USAGE:
        usage = decode_usage(incoming)
        older = decode_usage(stored) if stored is not None else Usage(NEVER, {})
        return _encode_usage(_merge_usages(older, usage))
    document = decode_document(incoming)
    before = decode_document(stored) if stored is not None else Document(NEVER, NEVER, {}, {})
    return _ENCODER.encode(_merge_documents(before, document))


def outrun_by(kind: int, stored: bytes | None, incoming: bytes) -> Stamp | None:
    """The stamp that makes ``incoming`` lose (part of) its effect to what is already stored, None when it loses nothing.

    Coordinators' clocks differ, so a write can be stamped older than one that was acknowledged before it began. A replica
    that notices says so, the coordinator observes the stamp and stamps the write anew; without that the later write would
    be acknowledged and lost. Usage counts cannot lose: they are per node.
    """
    if stored is None or kind == Kind.USAGE:
        return None
    old, new = decode_document(stored), decode_document(incoming)
    rivals = [NEVER]
    if new.birth > NEVER and old.version > new.birth:
        rivals.append(old.version)
    if new.deleted > NEVER and old.birth > new.deleted:
        rivals.append(old.birth)
    if old.alive:
        for name, stamp in new.stamps.items():
            rival = old.stamp_of(name) if name in old.fields else old.birth
            if rival > stamp:
                rivals.append(rival)
    worst = max(rivals)
    return worst if worst > NEVER else None


def version_of(kind: int, body: bytes) -> Stamp:
    """The youngest stamp in a body: what digests compare and clocks observe."""
    return decode_usage(body).version if kind == Kind.USAGE else decode_document(body).version


def is_tombstone(kind: int, body: bytes) -> bool:
    """True when nothing but the memory of a delete is left."""
    if kind == Kind.USAGE:
        if not body.endswith(_NO_ENTRIES):
            return False  # nearly every body: it need not be read
        usage = decode_usage(body)
        return not usage.entries and usage.deleted > NEVER
    document = decode_document(body)
    return not document.alive and document.deleted > NEVER
