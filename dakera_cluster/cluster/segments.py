"""The bucket tier: every shard's changed rows as immutable segments in the bucket, so that a cluster that lost every disk
comes back from the bucket alone, up to the last segment.

The first live replica of a shard is its uploader. It keeps, in the shard's manifest, how far in *its own* change log it has
come; the next uploader cannot continue another replica's log, so it writes a new base (all rows) and goes on from there,
which also compacts. A base replaces the deltas when these outgrow it, in bytes or in number. Segments are written before the
manifest that names them, and deleted after the one that no longer does; the manifest is written by compare-and-swap, so of
two replicas that both believe to be first one loses and looks again. With the bucket gone nothing waits: the lag grows, and
is a metric. Called by the composition root; restore is called by the mover's rescue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.model.errors import CorruptionError, DakeraError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Row
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host
from dakera_cluster.shard.replica import Replica
from dakera_cluster.storage.objects import ABSENT, ObjectStore, PreconditionFailedError
from dakera_cluster.storage.segments import Manifest, Segment, SegmentEntry, decode_manifest, encode, encode_manifest

log = logging.getLogger(__name__)

PREFIX = "segments/"
RESTORE_ROWS = 256


class SegmentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``interval_s``: between two looks at all shards; ``segment_rows``: rows of one segment at most; ``min_deltas``: of a
    shard before a new base is considered; ``max_deltas``: after which it is written in any case, because every upload writes
    a manifest that names them all, and a restore reads them one by one."""

    interval_s: float = 10.0
    segment_rows: int = 20_000
    min_deltas: int = 24
    max_deltas: int = 1_000


class SegmentStats(msgspec.Struct):
    """Counters since the start, and the present lag: seconds since the oldest change that no segment holds."""

    uploaded_segments: int = 0
    uploaded_bytes: int = 0
    uploaded_rows: int = 0
    failures: int = 0
    lag_s: float = 0.0
    restored_rows: int = 0


class Progress(msgspec.Struct, frozen=True):
    """In the manifest's meta: whose change log ``sequence`` counts, and how many leading segments are the base."""

    node: str
    disk: int
    sequence: int
    base: int


class Segments:
    """Uploader of the shards this node is first for, and reader of them all."""

    def __init__(
        self,
        objects: ObjectStore,
        host: Host,
        maps: Maps,
        holdings: Holdings,
        node: NodeId,
        disk: int,
        is_alive: Callable[[NodeId], bool],
        settings: SegmentSettings,
    ) -> None:
        self._objects = objects
        self._host = host
        self._maps = maps
        self._holdings = holdings
        self._node = node
        self._disk = disk
        self._is_alive = is_alive
        self._settings = settings
        self._manifests: dict[ShardId, tuple[Manifest, str]] = {}
        self._behind_since: dict[ShardId, float] = {}
        self._task: asyncio.Task[None] | None = None
        self.stats = SegmentStats()

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_uploading(), name="segments")

    async def close(self) -> None:
        """Upload once more, as far as the bucket takes it, and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(DakeraError, TimeoutError):
            async with asyncio.timeout(self._settings.interval_s):
                await self.upload_all()

    async def _keep_uploading(self) -> None:
        while True:
            await asyncio.sleep(self._settings.interval_s)
            try:
                await self.upload_all()
            except DakeraError as error:
                self.stats.failures += 1
                log.warning("segments wait for the bucket: %s", error.message)

    async def upload_all(self) -> None:
        """Upload what changed in every shard this node is first for."""
        for shard in self._mine():
            replica = self._host.replica(shard)
            manifest, _ = self._manifests.get(shard, (None, None))
            progress = _progress(manifest) if manifest is not None else None
            if progress is None and replica.sequence == 0:
                continue
            if progress is not None and self._is_ours(progress) and progress.sequence >= replica.sequence:
                self._behind_since.pop(shard, None)
                continue
            self._behind_since.setdefault(shard, time.monotonic())
            self._note_lag()
            await self._upload(shard, replica)
            self._behind_since.pop(shard, None)
        self._note_lag()

    def _mine(self) -> list[ShardId]:
        """Shards whose first live, whole replica is this node."""
        current = self._maps.current
        mine: list[ShardId] = []
        alive: dict[NodeId, bool] = {self._node: True}
        for shard in current.holds(self._node) if current is not None else ():
            state = self._maps.state(shard)
            for node in state.replicas:
                if node not in alive:
                    alive[node] = self._is_alive(node)
            first = next((node for node in state.replicas if alive[node]), None)
            if first == self._node and self._holdings.serves(shard, state):
                mine.append(shard)
        return mine

    def _is_ours(self, progress: Progress) -> bool:
        return (progress.node, progress.disk) == (self._node, self._disk)

    def _note_lag(self) -> None:
        oldest = min(self._behind_since.values(), default=None)
        self.stats.lag_s = time.monotonic() - oldest if oldest is not None else 0.0

    async def _upload(self, shard: ShardId, replica: Replica) -> None:
        manifest, etag = await self._read_manifest(shard)
        progress = _progress(manifest) if manifest is not None else None
        upto = replica.sequence
        changes = None
        if manifest is not None and progress is not None and self._is_ours(progress) and not self._outgrown(manifest):
            changes = await asyncio.to_thread(_changed_keys, replica, progress.sequence)
        entries: list[SegmentEntry] = []
        if changes is not None and manifest is not None and progress is not None:
            if changes:
                entries = await self._write(shard, replica, sorted(changes))
            kept, base = list(manifest.segments), progress.base
        else:
            entries = await self._write(shard, replica, None)
            kept, base = [], len(entries)
        made = Manifest(
            name=_manifest_key(shard),
            sequence=(manifest.sequence if manifest is not None else 0) + 1,
            segments=(*kept, *entries),
            meta=msgspec.to_builtins(Progress(self._node, self._disk, upto, base)),
        )
        try:
            written = await self._objects.put_if(
                _manifest_key(shard), encode_manifest(made), etag=ABSENT if etag is None else etag
            )
        except PreconditionFailedError:
            self._manifests.pop(shard, None)
            return
        self._manifests[shard] = (made, written)
        for entry in manifest.segments if manifest is not None and not kept else ():
            await self._objects.delete(entry.object_key)

    def _outgrown(self, manifest: Manifest) -> bool:
        """Whether the deltas are many *and* weigh as much as the base: then writing it anew costs no more than they did. Or they
        are too many, whatever they weigh."""
        base = _progress(manifest).base
        deltas = manifest.segments[base:]
        weight = sum(entry.size_bytes for entry in manifest.segments[:base])
        if len(deltas) >= self._settings.max_deltas:
            return True
        return len(deltas) >= self._settings.min_deltas and sum(entry.size_bytes for entry in deltas) >= weight

    async def _write(self, shard: ShardId, replica: Replica, changed: list[bytes] | None) -> list[SegmentEntry]:
        """Segments of the changed rows, or of all rows."""
        entries: list[SegmentEntry] = []
        after = b""
        while True:
            if changed is None:
                page = await asyncio.to_thread(
                    replica.page, after, most_rows=self._settings.segment_rows, most_bytes=64 << 20
                )
            else:
                wanted = [key for key in changed if key > after][: self._settings.segment_rows]
                bodies = await asyncio.to_thread(replica.bodies, wanted)
                page = [(key, body) for key, body in zip(wanted, bodies, strict=True) if body is not None]
            if not page:
                return entries
            after = page[-1][0]
            entries.append(await self._put_segment(shard, page))

    async def _put_segment(self, shard: ShardId, page: list[tuple[bytes, bytes]]) -> SegmentEntry:
        data = await asyncio.to_thread(encode, page, meta={"shard": shard, "node": self._node})
        key = f"{PREFIX}{shard:05d}/{self._node}-{secrets.token_hex(8)}.seg"
        await self._objects.put(key, data)
        self.stats.uploaded_segments += 1
        self.stats.uploaded_bytes += len(data)
        self.stats.uploaded_rows += len(page)
        return await asyncio.to_thread(lambda: Segment(key, data).entry(key))

    async def _read_manifest(self, shard: ShardId) -> tuple[Manifest | None, str | None]:
        cached = self._manifests.get(shard)
        if cached is not None:
            return cached
        found = await self._objects.get(_manifest_key(shard))
        if found is None:
            return None, None
        try:
            self._manifests[shard] = (decode_manifest(_manifest_key(shard), found.data), found.etag)
        except CorruptionError as error:
            # A damaged manifest names nothing that could be trusted: the rows are here, so a new base replaces it.
            log.error("manifest of shard %d is damaged and will be replaced: %s", shard, error)
            return None, found.etag
        return self._manifests[shard]

    async def restore(self, shard: ShardId) -> int:
        """Merge every row the bucket holds of a shard into this node's copy; returns how many there were.

        Raises BucketUnavailableError, or CorruptionError naming the segment: what was read before it stays merged.
        """
        found = await self._objects.get(_manifest_key(shard))
        if found is None:
            return 0
        manifest = decode_manifest(_manifest_key(shard), found.data)
        restored = 0
        for entry in manifest.segments:
            data = await self._objects.get(entry.object_key)
            if data is None:
                raise CorruptionError(f"segment {entry.object_key} is in the manifest and not in the bucket")
            rows = await asyncio.to_thread(_rows, entry.object_key, data.data)
            for start in range(0, len(rows), RESTORE_ROWS):
                some = [Row(*keys.split_local(key), body) for key, body in rows[start : start + RESTORE_ROWS]]
                await self._host.merge(shard, some)
                restored += len(some)
        self.stats.restored_rows += restored
        return restored


def _changed_keys(replica: Replica, sequence: int) -> set[bytes] | None:
    changes = replica.changes_since(sequence)
    if changes is None:
        return None
    return {keys.local_key(namespace, kind, row_id) for _, namespace, kind, row_id in changes}


def _rows(name: str, data: bytes) -> list[tuple[bytes, bytes]]:
    return list(Segment(name, data).scan())


def _progress(manifest: Manifest) -> Progress:
    return msgspec.convert(manifest.meta, Progress)


def _manifest_key(shard: ShardId) -> str:
    return f"{PREFIX}{shard:05d}/manifest"
