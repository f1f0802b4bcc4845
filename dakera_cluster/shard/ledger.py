"""What a shard keeps in step with its rows: counts, digests, terms, expiries and graves, for one batch.

A ledger is opened over what was written before the batch, told of every row that the batch changes, and puts what follows
from it into the same batch, so that after any crash rows and books agree. Called by `shard.replica` on the disk thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

import msgspec

from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, decode_document, is_tombstone, version_of
from dakera_cluster.protocols import digest
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch

_MASK = (1 << 64) - 1


class Getter(Protocol):
    """Reads one key of the store, or many in one call: each lets the other threads go first."""

    def get(self, family: str, key: bytes) -> bytes | None: ...

    def multi_get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]: ...


class NamespaceCounts(msgspec.Struct, array_like=True):
    """Live documents of a namespace on a shard, bytes of all its rows, and the stamps of its first and last change."""

    documents: int = 0
    bytes: int = 0
    created_ms: int = 0
    updated_ms: int = 0


class _Life(msgspec.Struct, frozen=True, gc=False):
    """What the books say of one body. ``expires_s`` and ``buried_ms`` are 0 when the row does not expire or is not dead."""

    alive: bool = False
    expires_s: int = 0
    buried_ms: int = 0


_NOTHING = _Life()
_COUNTS_ENCODER = msgspec.msgpack.Encoder()
_COUNTS_DECODER = msgspec.msgpack.Decoder(NamespaceCounts)


def decode_counts(data: bytes) -> NamespaceCounts:
    return _COUNTS_DECODER.decode(data)


def read_counts(store: Getter, shard: int, namespace: str, now_ms: int) -> NamespaceCounts:
    """Counts of a namespace, or new ones created ``now_ms``."""
    data = store.get(keys.META, keys.counts_key(shard, namespace))
    return decode_counts(data) if data is not None else NamespaceCounts(created_ms=now_ms)


def read_root(store: Getter, shard: int) -> int:
    """The root of the shard's digests, 0 when it was never written."""
    return _digest(store.get(keys.META, keys.root_key(shard)))


def _digest(data: bytes | None) -> int:
    return int.from_bytes(data, "big") if data is not None else 0


class Ledger:
    """The books of one shard during one batch."""

    def __init__(self, shard: int, view: Getter, now_ms: int) -> None:
        self._shard = shard
        self._view = view
        self._now_ms = now_ms
        self._counts: dict[str, NamespaceCounts] = {}
        self._bucket_changes: defaultdict[int, int] = defaultdict(int)

    def note(
        self, batch: WriteBatch, namespace: str, kind: int, local: bytes, before: bytes | None, after: bytes | None
    ) -> None:
        """A row's body changes from ``before`` to ``after``; None means that the row is not there."""
        self._note_counts(batch, namespace, kind, local, before, after)
        key_hash = digest.hash_of(local)
        bucket = key_hash % digest.BUCKETS
        key = keys.term_key(self._shard, bucket, local)
        change = -digest.term_of(key_hash, before) if before is not None else 0
        if after is not None:
            term = digest.term_of(key_hash, after)
            batch.put(keys.META, key, term.to_bytes(8, "big"))
            change += term
        else:
            batch.delete(keys.META, key)
        self._bucket_changes[bucket] += change

    def close(self, batch: WriteBatch) -> None:
        """Put the sums into the batch."""
        for namespace, counts in self._counts.items():
            key = keys.counts_key(self._shard, namespace)
            if counts.bytes or counts.documents:
                batch.put(keys.META, key, _COUNTS_ENCODER.encode(counts))
            else:
                batch.delete(keys.META, key)
        changes = self._bucket_changes
        if changes:
            sums = {keys.digest_key(self._shard, bucket): change for bucket, change in changes.items()}
            sums[keys.root_key(self._shard)] = sum(changes.values())
            for (key, change), data in zip(sums.items(), self._view.multi_get(keys.META, list(sums)), strict=True):
                batch.put(keys.META, key, ((_digest(data) + change) & _MASK).to_bytes(8, "big"))

    def _note_counts(
        self, batch: WriteBatch, namespace: str, kind: int, local: bytes, before: bytes | None, after: bytes | None
    ) -> None:
        counts = self._counts.get(namespace)
        if counts is None:
            counts = self._counts[namespace] = read_counts(self._view, self._shard, namespace, self._now_ms)
        counts.bytes += (len(after) if after is not None else 0) - (len(before) if before is not None else 0)
        counts.updated_ms = self._now_ms
        was, now = _life(kind, before), _life(kind, after)
        if was is now:
            return  # neither lives as a document nor lies in a grave: a count of accesses, nearly always
        counts.documents += now.alive - was.alive
        for old, new, key in (
            (was.expires_s, now.expires_s, keys.expiry_key),
            (was.buried_ms, now.buried_ms, keys.grave_key),
        ):
            if old != new:
                if old:
                    batch.delete(keys.META, key(self._shard, old, local))
                if new:
                    batch.put(keys.META, key(self._shard, new, local), b"")


def _life(kind: int, body: bytes | None) -> _Life:
    if body is None:
        return _NOTHING
    if kind == Kind.DOCUMENT:
        document = decode_document(body)
        if document.alive:
            return _Life(True, int(document.fields.get(Field.EXPIRES) or 0))
    return _Life(buried_ms=version_of(kind, body).wall_ms) if is_tombstone(kind, body) else _NOTHING
