"""The rows of one replica of one shard: merged, logged, counted and digested in one atomic batch.

``apply`` is a read-merge-write on the store's disk thread, so concurrent writes of one key are serialised without a lock,
and everything that must agree with the rows (change log, namespace counts, digests) is in the same batch: a crash leaves
all of it or none. It returns what changed; the caller brings the views up to date before it answers. Rows whose merge
brought nothing new are not written and not logged, so repeating an apply is free. Called by `shard.host`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, decode_document, merge, outrun_by
from dakera_cluster.protocols import digest
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import ReadView, RowStore

CHANGES_KEPT = 200_000
"""Entries of the change log kept for views and the bucket to catch up from; older readers start from the rows."""
TRIM_EVERY = 20_000


class NamespaceCounts(msgspec.Struct, array_like=True):
    """Live documents of a namespace on a shard, bytes of all its rows, and the stamps of its first and last change."""

    documents: int = 0
    bytes: int = 0
    created_ms: int = 0
    updated_ms: int = 0


class Change(msgspec.Struct, frozen=True, gc=False):
    """A row that an apply changed: ``body`` is the merged body, ``sequence`` its place in the shard's change log."""

    sequence: int
    namespace: str
    kind: int
    id: str
    body: bytes


class Outcome(msgspec.Struct, frozen=True):
    """What an apply did. ``outrun_by``: the youngest stored stamp that took (part of) a row's effect, if any."""

    changes: list[Change]
    outrun_by: Stamp | None


_COUNTS_ENCODER = msgspec.msgpack.Encoder()
_COUNTS_DECODER = msgspec.msgpack.Decoder(NamespaceCounts)


class Replica:
    """One shard's rows on this node."""

    def __init__(self, shard: int, store: RowStore) -> None:
        self.shard = shard
        self._store = store
        last = next(store.scan(keys.CHANGES, prefix=keys.shard_prefix(shard), reverse=True, limit=1), None)
        self._sequence = keys.change_sequence(last[0]) if last is not None else 0
        self._visible = self._sequence
        self._trimmed_at = self._sequence

    @property
    def sequence(self) -> int:
        """Place of the youngest change that is written: a scan that starts now sees all of it."""
        return self._visible

    async def apply(self, rows: Sequence[Row], now_ms: int) -> Outcome:
        """Merge ``rows``; durable on return. Raises OverloadedError, StorageError or CorruptionError (nothing written)."""
        size = sum(len(row.body) + len(row.id) for row in rows)
        outcome = await self._store.commit(lambda view: self._merge(view, rows, now_ms), size_bytes=size)
        if outcome.changes:
            self._visible = max(self._visible, outcome.changes[-1].sequence)
        return outcome

    def _merge(self, view: ReadView, rows: Sequence[Row], now_ms: int) -> tuple[WriteBatch, Outcome]:
        batch = WriteBatch()
        changes: list[Change] = []
        outrun: Stamp | None = None
        counts: dict[str, NamespaceCounts] = {}
        digests: dict[int, int] = {}
        written: dict[bytes, bytes] = {}
        for row in rows:
            local = keys.local_key(row.namespace, row.kind, row.id)
            key = keys.row_key(self.shard, local)
            before = written.get(key) or view.get(keys.ROWS, key)
            after = merge(row.kind, before, row.body)
            rival = outrun_by(row.kind, before, row.body)
            if rival is not None and (outrun is None or rival > outrun):
                outrun = rival
            if after == before:
                continue
            written[key] = after
            self._sequence += 1
            batch.put(keys.ROWS, key, after)
            batch.put(keys.CHANGES, keys.change_key(self.shard, self._sequence), local)
            changes.append(Change(self._sequence, row.namespace, row.kind, row.id, after))
            if row.namespace not in counts:
                counts[row.namespace] = self._counts(view, row.namespace, now_ms)
            _count(counts[row.namespace], before, after, now_ms)
            if row.kind == Kind.DOCUMENT:
                self._track_life(batch, counts[row.namespace], local, before, after)
            bucket = digest.bucket_of(local)
            if bucket not in digests:
                digests[bucket] = self._digest(view, bucket)
            digests[bucket] = digest.update(digests[bucket], local, before, after)
        for namespace, count in counts.items():
            batch.put(keys.META, keys.counts_key(self.shard, namespace), _COUNTS_ENCODER.encode(count))
        for bucket, value in digests.items():
            batch.put(keys.META, keys.digest_key(self.shard, bucket), value.to_bytes(8, "big"))
        self._trim(batch)
        return batch, Outcome(changes, outrun)

    def _track_life(
        self, batch: WriteBatch, counts: NamespaceCounts, local: bytes, before: bytes | None, after: bytes
    ) -> None:
        was_alive, was_expiring = _life(before)
        is_alive, expires = _life(after)
        counts.documents += is_alive - was_alive
        if expires != was_expiring:
            if was_expiring:
                batch.delete(keys.META, keys.expiry_key(self.shard, was_expiring, local))
            if expires:
                batch.put(keys.META, keys.expiry_key(self.shard, expires, local), b"")

    def _counts(self, view: ReadView | RowStore, namespace: str, now_ms: int) -> NamespaceCounts:
        data = view.get(keys.META, keys.counts_key(self.shard, namespace))
        return _COUNTS_DECODER.decode(data) if data is not None else NamespaceCounts(created_ms=now_ms)

    def _digest(self, view: ReadView, bucket: int) -> int:
        data = view.get(keys.META, keys.digest_key(self.shard, bucket))
        return int.from_bytes(data, "big") if data is not None else 0

    def _trim(self, batch: WriteBatch) -> None:
        if self._sequence - self._trimmed_at < TRIM_EVERY or self._sequence <= CHANGES_KEPT:
            return
        end = keys.change_key(self.shard, self._sequence - CHANGES_KEPT)
        batch.delete_range(keys.CHANGES, keys.change_key(self.shard, 0), end)
        self._trimmed_at = self._sequence

    def read(self, namespace: str, kind: int, ids: Sequence[str]) -> list[bytes | None]:
        """Encoded bodies in the order of ``ids``; tombstones are returned as they are stored."""
        wanted = [keys.row_key(self.shard, keys.local_key(namespace, kind, row_id)) for row_id in ids]
        return self._store.multi_get(keys.ROWS, wanted)

    def rows(self, namespace: str, kind: int) -> Iterator[tuple[str, bytes]]:
        """(id, body) of every row of a kind, tombstones included, in id order. For worker threads."""
        prefix = keys.kind_prefix(self.shard, namespace, kind)
        for key, body in self._store.scan(keys.ROWS, prefix=prefix):
            yield key[len(prefix) :].decode(), body

    def changes_since(self, sequence: int) -> Iterator[tuple[int, str, int, str]] | None:
        """(sequence, namespace, kind, id) of every change after ``sequence``; None when the log starts later."""
        first = next(self._store.scan(keys.CHANGES, prefix=keys.shard_prefix(self.shard), limit=1), None)
        if first is not None and keys.change_sequence(first[0]) > sequence + 1:
            return None
        return self._scan_changes(sequence)

    def _scan_changes(self, sequence: int) -> Iterator[tuple[int, str, int, str]]:
        start = keys.change_key(self.shard, sequence + 1)
        end = keys.change_key(self.shard, (1 << 64) - 1)
        for key, local in self._store.scan(keys.CHANGES, start=start, end=end):
            yield (keys.change_sequence(key), *keys.split_local(local))

    def inventory(self, prefix: str) -> list[tuple[str, NamespaceCounts]]:
        """Counts of every namespace whose name starts with ``prefix``, in name order."""
        head = keys.counts_prefix(self.shard)
        found = self._store.scan(keys.META, prefix=head + prefix.encode())
        return [(key[len(head) :].decode(), _COUNTS_DECODER.decode(data)) for key, data in found]

    def counts(self, namespace: str) -> NamespaceCounts:
        return self._counts(self._store, namespace, 0)

    def expired(self, now_s: int, limit: int) -> list[tuple[str, str]]:
        """(namespace, id) of documents whose time is up, oldest first."""
        start, end = keys.expiry_key(self.shard, 0, b""), keys.expiry_key(self.shard, now_s + 1, b"")
        found = self._store.scan(keys.META, start=start, end=end, limit=limit)
        places = [keys.split_local(keys.local_of_expiry_key(key)) for key, _ in found]
        return [(namespace, row_id) for namespace, _, row_id in places]

    def digests(self) -> dict[int, int]:
        """bucket -> digest of every bucket that was ever written."""
        found = self._store.scan(keys.META, prefix=keys.digest_prefix(self.shard))
        return {keys.bucket_of_digest_key(key): int.from_bytes(data, "big") for key, data in found}


def _count(counts: NamespaceCounts, before: bytes | None, after: bytes, now_ms: int) -> None:
    counts.bytes += len(after) - (len(before) if before is not None else 0)
    counts.updated_ms = now_ms


def _life(body: bytes | None) -> tuple[bool, int]:
    """(is alive, when it expires in Unix seconds or 0) of a document's body."""
    if body is None:
        return False, 0
    document = decode_document(body)
    return document.alive, int(document.fields.get(Field.EXPIRES) or 0) if document.alive else 0
