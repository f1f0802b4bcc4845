"""All replicas of a node: the one door the cluster layer knocks at.

``handle`` takes a request of `shard.ops` and answers it, whether it came from this process or over a peer connection.
An apply is answered when its rows are durable and its views, where loaded, show them: read-your-writes. Reads of rows run
on a reader thread, everything with views in the namespace's lane; the event loop only hands over. Called by
`cluster.router`, `cluster.replicator` and the peer server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dakera_cluster.model.errors import InternalError
from dakera_cluster.model.rows import Row
from dakera_cluster.retrieval.options import Settings as RecallSettings
from dakera_cluster.shard import heap, ops, search
from dakera_cluster.shard.lanes import DEFAULT_LANES, DEFAULT_QUEUED_CALLS, Lanes
from dakera_cluster.shard.recall import recall
from dakera_cluster.shard.replica import Outcome, Replica
from dakera_cluster.shard.view import NamespaceView
from dakera_cluster.shard.views import DEFAULT_VIEW_BYTES, SettingsOf, Views
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import RowStore
from dakera_cluster.storage.snapshots import Staged

log = logging.getLogger(__name__)

T = TypeVar("T")

_FOR_USERS = (ops.Apply, ops.Read, ops.Search, ops.Recall, ops.Select)
HOUSEKEEPING_INTERVAL_S = 0.5
MAINTENANCE_STEPS_PER_ROUND = 64


class HostSettings(msgspec.Struct, frozen=True):
    """Bounds of a host. ``views_directory`` None keeps no snapshots (storage in memory)."""

    views_directory: Path | None = None
    view_bytes: int = DEFAULT_VIEW_BYTES
    lanes: int = DEFAULT_LANES
    queued_calls: int = DEFAULT_QUEUED_CALLS
    recall: RecallSettings = RecallSettings()


class Host:
    """Replicas, views and lanes of one node. ``now_ms`` is the wall clock."""

    def __init__(
        self, store: RowStore, settings_of: SettingsOf, settings: HostSettings, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._recall = settings.recall
        self._replicas: dict[int, Replica] = {}
        self._lanes = Lanes(settings.lanes, queued_calls=settings.queued_calls)
        self.views = Views(settings.views_directory, settings_of, limit_bytes=settings.view_bytes)
        self._loads: dict[tuple[int, str], asyncio.Task[None]] = {}
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._trimmed_at = 0
        self._housekeeper: asyncio.Task[None] | None = None
        self._unfinished: set[asyncio.Task[Any]] = set()
        self.asked = 0
        """Requests served on behalf of users: how busy the node is, to whoever has work that can wait."""

    def start(self) -> None:
        """Begin housekeeping: index maintenance, snapshots, eviction."""
        self._housekeeper = asyncio.create_task(self._housekeep(), name="shard-housekeeping")

    async def close(self) -> None:
        """Snapshot what changed and stop the lanes. The store stays open: it is the caller's."""
        if self._housekeeper is not None:
            self._housekeeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._housekeeper
        if self._unfinished:
            await asyncio.wait(self._unfinished)
        if self._loads:
            await asyncio.wait(self._loads.values())
        self._loader.shutdown()
        for shard, namespace in self.views.changed():
            await self._snapshot(namespace, partial(self.views.snapshot, shard, namespace))
        self._lanes.close()

    def replica(self, shard: int) -> Replica:
        """The replica of ``shard``, opened on first use."""
        replica = self._replicas.get(shard)
        if replica is None:
            replica = self._replicas[shard] = Replica(shard, self._store)
        return replica

    @property
    def queued(self) -> int:
        """Calls that wait for a lane or run in one."""
        return self._lanes.waiting

    async def handle(self, request: ops.Request) -> ops.Answer:
        """Answer one request. Raises the errors of `model.errors`."""
        replica = self.replica(request.shard)
        self.asked += isinstance(request, _FOR_USERS)
        match request:
            case ops.Apply():
                return await self._apply(replica, request)
            case ops.Read():
                read = replica.read
                bodies = await asyncio.to_thread(read, request.namespace, request.kind, request.ids)
                return ops.Bodies(bodies)
            case ops.Search():
                return await self._in_view(replica, request.namespace, lambda v: search.search(v, replica, request))
            case ops.Recall():
                settings = self._recall
                return await self._in_view(replica, request.namespace, lambda v: recall(v, replica, request, settings))
            case ops.Select():
                return await self._in_view(replica, request.namespace, lambda v: search.select(v, replica, request))
            case ops.Aggregate():
                return await self._in_view(replica, request.namespace, lambda v: search.aggregate(v, replica, request))
            case ops.Profile():
                return await self._in_view(replica, request.namespace, lambda v: search.profile(v, request.now_ms))
            case ops.Describe():
                return await self._describe(replica, request)
            case ops.Expired():
                return ops.Places(await asyncio.to_thread(replica.expired, request.now_ms // 1000, request.limit))
            case ops.Inventory():
                found = await asyncio.to_thread(replica.inventory, request.prefix)
                live = [(name, counts) for name, counts in found if counts.documents]
                return ops.Namespaces(
                    [name for name, _ in live], [c.documents for _, c in live], [c.bytes for _, c in live]
                )
        raise InternalError(f"a replica cannot answer {type(request).__name__}")

    async def _in_view(self, replica: Replica, namespace: str, call: Callable[[NamespaceView], T]) -> T:
        def attempt() -> tuple[T] | None:
            view = self.views.at_hand(replica, namespace)
            return (call(view),) if view is not None else None

        answer = await self._lanes.run(namespace, attempt)
        if answer is not None:
            return answer[0]
        await self._load(replica, namespace)
        # By now it is in memory, but for one that was dropped at once or had changed too much to be caught up with.
        return await self._lanes.run(namespace, lambda: call(self.views.get(replica, namespace)))

    async def _load(self, replica: Replica, namespace: str) -> None:
        """Load a large view beside its lane, once for all who wait for it."""
        key = (replica.shard, namespace)
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.create_task(self._load_aside(replica, namespace))
            task.add_done_callback(lambda _: self._loads.pop(key, None))
        await asyncio.shield(task)

    async def _load_aside(self, replica: Replica, namespace: str) -> None:
        loop = asyncio.get_running_loop()
        view = await loop.run_in_executor(self._loader, self.views.prepare, replica, namespace)
        await self._lanes.run(namespace, partial(self.views.install, replica, view), must=True)

    async def merge(self, shard: int, rows: Sequence[Row]) -> Outcome:
        """Merge rows of one shard and show them in its views; durable on return. For rows that come from another replica:
        whether they may be applied is judged by the caller. A caller that is cancelled leaves it running to its end."""
        return await self._whole(self._merge(shard, rows))

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end even when the caller goes away in the middle: a commit whose views never hear of it would
        hide acknowledged rows, and show deleted ones, until the views are loaded anew; no repair would see a difference."""
        task = asyncio.create_task(work)
        self._unfinished.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled():
            task.exception()  # who waited has heard of it; who went away does not want to

    async def _merge(self, shard: int, rows: Sequence[Row]) -> Outcome:
        replica = self.replica(shard)
        outcome = await replica.apply(rows, self._now_ms())
        changes = outcome.changes
        for namespace, group in groupby(sorted(changes, key=lambda c: c.namespace), key=lambda c: c.namespace):
            some = list(group)
            if self.views.loaded(replica.shard, namespace) is None:
                self.views.missed(replica.shard, namespace, len(some))
                if not self._lanes.waiting:
                    continue
            await self._lanes.run(namespace, partial(self.views.apply, replica, namespace, some), must=True)
        return outcome

    async def wipe(self, shard: int) -> None:
        """Delete everything of a shard: rows at once and durably, then its views and their snapshots. A crash between the
        two leaves snapshots behind that can no longer catch up and are never used."""
        await self._whole(self._wipe(shard))

    async def _wipe(self, shard: int) -> None:
        replica = self.replica(shard)
        names = set(await asyncio.to_thread(replica.namespaces))
        await replica.wipe()
        for namespace in names.union(self.views.of_shard(shard)):
            # Behind a load that began before the rows went, because both run in the namespace's lane.
            await self._lanes.run(namespace, partial(self.views.drop, shard, namespace), must=True)
        await asyncio.to_thread(self.views.forget_shard, shard)

    async def collect(self, shard: int, terms: Mapping[bytes, int]) -> int:
        """Drop the tombstones that are unchanged; how many there were (`protocols.tombstones`)."""
        return await self._whole(self.replica(shard).collect(terms, self._now_ms()))

    async def roots(self, shards: Sequence[int]) -> list[int]:
        """Roots of the shards' digests, over rows that are durable when this returns."""
        wanted = [self.replica(shard) for shard in shards]
        roots = await asyncio.to_thread(lambda: [replica.root() for replica in wanted])
        await self.settle()
        return roots

    async def settle(self) -> None:
        """Wait until everything that a reader may have seen so far is durable."""
        await self._store.commit(WriteBatch())

    async def _apply(self, replica: Replica, request: ops.Apply) -> ops.Applied:
        outcome = await self.merge(replica.shard, request.rows)
        return ops.Applied(len(outcome.changes), True, outcome.outrun_by)

    async def _describe(self, replica: Replica, request: ops.Describe) -> ops.Description:
        counts = await asyncio.to_thread(replica.counts, request.namespace)
        if request.compact:
            await self._lanes.run(request.namespace, lambda: self.views.drop(replica.shard, request.namespace))
        view = await self._in_view(replica, request.namespace, lambda v: v)
        text = view.text.stats()
        index = view.vectors.stats() if view.vectors is not None else None
        return ops.Description(
            documents=counts.documents,
            vectors=len(view.vectors) if view.vectors is not None else 0,
            texts=len(view.text),
            unique_terms=text.unique_terms,
            text_tokens=round(text.average_length * text.documents),
            dimension=index.dimension if index is not None else None,
            index_type=index.serving if index is not None else "flat",
            built=index.is_built if index is not None else True,
            memory_bytes=view.memory_bytes,
            disk_bytes=counts.bytes,
            created_ms=counts.created_ms or None,
            updated_ms=counts.updated_ms or None,
            known=counts.created_ms > 0,
        )

    async def _snapshot(self, namespace: str, stage: Callable[[], Staged | None]) -> None:
        staged = await self._lanes.run(namespace, stage, must=True)
        if staged is not None:
            await asyncio.to_thread(self.views.publish, staged)

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            try:
                await self._housekeep_once()
            except Exception:
                # Housekeeping is optional work: a failure is logged and must not end the rounds that follow.
                log.exception("housekeeping round failed")

    async def _housekeep_once(self) -> None:
        for shard, namespace in self.views.over_limit():
            await self._snapshot(namespace, partial(self.views.evict, shard, namespace))
        for shard, namespace in self.views.behind():
            await self._load(self.replica(shard), namespace)
            self.views.forget_missed(shard, namespace)
            await self._snapshot(namespace, partial(self.views.snapshot, shard, namespace))
        for shard, namespace in self.views.due_for_snapshot():
            await self._snapshot(namespace, partial(self.views.snapshot, shard, namespace))
        for shard, namespace in self.views.unsettled():
            for _ in range(MAINTENANCE_STEPS_PER_ROUND):
                if not await self._lanes.run(namespace, partial(self.views.maintain, shard, namespace)):
                    break
        if self.views.stats.bulk != self._trimmed_at:
            self._trimmed_at = self.views.stats.bulk
            await asyncio.to_thread(heap.trim)
