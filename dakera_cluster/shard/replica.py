"""The rows of one replica of one shard: merged, logged, counted and digested in one atomic batch.

``apply`` is a read-merge-write on the store's disk thread, so concurrent writes of one key are serialised without a lock,
and everything that must agree with the rows (change log, namespace counts, digests) is in the same batch: a crash leaves
all of it or none. It returns what changed; the caller brings the views up to date before it answers. Rows whose merge
brought nothing new are not written and not logged, so repeating an apply is free. Called by `shard.host`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.rows import Kind, Row, merge, outrun_by
from dakera_cluster.protocols import digest
from dakera_cluster.shard import keys
from dakera_cluster.shard.ledger import Ledger, NamespaceCounts, decode_counts, read_counts, read_root
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import ReadView, RowStore

CHANGES_KEPT = 200_000
"""Entries of the change log kept for views and the bucket to catch up from; older readers start from the rows."""
TRIM_EVERY = 20_000
NO_ROW = keys.local_key("", 0, "")
"""Stands in the change log for a wipe; it names no row."""


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


class Replica:
    """One shard's rows on this node."""

    def __init__(self, shard: int, store: RowStore) -> None:
        self.shard = shard
        self._store = store
        newest = store.scan(
            keys.CHANGES, start=keys.shard_prefix(shard), end=keys.shard_end(shard), reverse=True, limit=1
        )
        last = next(newest, None)
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
        ledger = Ledger(self.shard, view, now_ms)
        locals_ = [keys.local_key(row.namespace, row.kind, row.id) for row in rows]
        row_keys = [keys.row_key(self.shard, local) for local in locals_]
        # As stored, and then as this batch leaves them: a row may come more than once.
        bodies = dict(zip(row_keys, view.multi_get(keys.ROWS, row_keys), strict=True))
        for row, local, key in zip(rows, locals_, row_keys, strict=True):
            before = bodies[key]
            after = merge(row.kind, before, row.body)
            rival = outrun_by(row.kind, before, row.body)
            if rival is not None and (outrun is None or rival > outrun):
                outrun = rival
            if after == before:
                continue
            bodies[key] = after
            self._sequence += 1
            batch.put(keys.ROWS, key, after)
            batch.put(keys.CHANGES, keys.change_key(self.shard, self._sequence), local)
            changes.append(Change(self._sequence, row.namespace, row.kind, row.id, after))
            ledger.note(batch, row.namespace, row.kind, local, before, after)
        ledger.close(batch)
        self._trim(batch)
        return batch, Outcome(changes, outrun)

    def _trim(self, batch: WriteBatch) -> None:
        if self._sequence - self._trimmed_at < TRIM_EVERY or self._sequence <= CHANGES_KEPT:
            return
        end = keys.change_key(self.shard, self._sequence - CHANGES_KEPT)
        batch.delete_range(keys.CHANGES, keys.change_key(self.shard, 0), end)
        self._trimmed_at = self._sequence

    async def wipe(self) -> None:
        """Delete everything of the shard, durably and at once: rows, log, books and collection rounds."""

        def prepare(view: ReadView) -> tuple[WriteBatch, int]:
            batch = WriteBatch()
            for family, start, end in keys.shard_ranges(self.shard):
                batch.delete_range(family, start, end)
            if self._sequence:
                # The log goes on behind a gap: a view's snapshot of the rows that were cannot catch up over it.
                self._sequence += 2
                batch.put(keys.CHANGES, keys.change_key(self.shard, self._sequence), NO_ROW)
            return batch, self._sequence

        self._visible = max(self._visible, await self._store.commit(prepare))

    async def collect(self, terms: Mapping[bytes, int], now_ms: int) -> int:
        """Drop the rows (local key -> `digest.term`) that still have these bytes; how many there were. Durable on return.

        Not in the change log: tombstones are in no view, and the bucket may keep its own."""

        def prepare(view: ReadView) -> tuple[WriteBatch, int]:
            batch, dropped = WriteBatch(), 0
            ledger = Ledger(self.shard, view, now_ms)
            for local, term in terms.items():
                key = keys.row_key(self.shard, local)
                body = view.get(keys.ROWS, key)
                if body is None or digest.term(local, body) != term:
                    continue
                namespace, kind, _ = keys.split_local(local)
                batch.delete(keys.ROWS, key)
                ledger.note(batch, namespace, kind, local, body, None)
                dropped += 1
            ledger.close(batch)
            return batch, dropped

        return await self._store.commit(prepare)

    def read(self, namespace: str, kind: int, ids: Sequence[str]) -> list[bytes | None]:
        """Encoded bodies in the order of ``ids``; tombstones are returned as they are stored."""
        wanted = [keys.row_key(self.shard, keys.local_key(namespace, kind, row_id)) for row_id in ids]
        return self._store.multi_get(keys.ROWS, wanted)

    def read_with_usage(self, namespace: str, ids: Sequence[str]) -> tuple[list[bytes | None], list[bytes | None]]:
        """Bodies and usages of documents in the order of ``ids``, in one read: each lets the other threads go first."""
        document, usage = (keys.kind_prefix(self.shard, namespace, kind) for kind in (Kind.DOCUMENT, Kind.USAGE))
        names = [row_id.encode() for row_id in ids]
        found = self._store.multi_get(
            keys.ROWS, [*(document + name for name in names), *(usage + name for name in names)]
        )
        return found[: len(names)], found[len(names) :]

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
        return [(key[len(head) :].decode(), decode_counts(data)) for key, data in found]

    def counts(self, namespace: str) -> NamespaceCounts:
        return read_counts(self._store, self.shard, namespace, 0)

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

    def root(self) -> int:
        """The sum of all bucket digests: equal exactly when two replicas hold the same rows."""
        return read_root(self._store, self.shard)

    def terms(self, bucket: int, *, after: bytes = b"", limit: int | None = None) -> dict[bytes, int]:
        """Local key -> `digest.term` of the rows in a bucket, in key order, from behind ``after``."""
        prefix = keys.term_prefix(self.shard, bucket)
        start = prefix + after + b"\x00" if after else prefix
        found = self._store.scan(keys.META, start=start, end=keys.term_end(self.shard, bucket), limit=limit)
        return {keys.local_of_term_key(key): int.from_bytes(data, "big") for key, data in found}

    def page(self, after: bytes, *, most_rows: int, most_bytes: int) -> list[tuple[bytes, bytes]]:
        """(local key, body) of the rows after ``after`` in key order, at least one unless there are none. Empty: the end."""
        start = keys.row_key(self.shard, after) + b"\x00" if after else keys.shard_prefix(self.shard)
        out: list[tuple[bytes, bytes]] = []
        size = 0
        for key, body in self._store.scan(keys.ROWS, start=start, end=keys.shard_end(self.shard), limit=most_rows):
            out.append((key[len(keys.shard_prefix(self.shard)) :], body))
            size += len(key) + len(body)
            if size >= most_bytes:
                break
        return out

    def bodies(self, locals_: Sequence[bytes]) -> list[bytes | None]:
        """Bodies of rows by local key, in their order."""
        return self._store.multi_get(keys.ROWS, [keys.row_key(self.shard, local) for local in locals_])

    def buried(self, before_ms: int, limit: int) -> dict[bytes, int]:
        """Local key -> `digest.term` of tombstones of ``before_ms`` or earlier, the oldest first."""
        start, end = keys.grave_key(self.shard, 0, b""), keys.grave_key(self.shard, before_ms + 1, b"")
        found = self._store.scan(keys.META, start=start, end=end, limit=limit)
        locals_ = [keys.local_of_grave_key(key) for key, _ in found]
        bodies = self.bodies(locals_)
        return {
            local: digest.term(local, body) for local, body in zip(locals_, bodies, strict=True) if body is not None
        }

    def namespaces(self) -> list[str]:
        """Every namespace that has rows on the shard."""
        head = keys.counts_prefix(self.shard)
        return [key[len(head) :].decode() for key, _ in self._store.scan(keys.META, prefix=head)]
