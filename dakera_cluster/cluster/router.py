"""Who holds a row, and how answers of several shards become one.

Rows of a namespace live on one shard a partition; agents have one partition, so their reads touch one replica set whatever
the cluster's size. A read of a partitioned namespace is scattered and merged here. Which replica is asked, and how many, is
`cluster.asking`'s and `cluster.strong`'s business. Called by the memory services.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from dakera_cluster.cluster import levels
from dakera_cluster.cluster.asking import Asker, Transport
from dakera_cluster.cluster.catalog import Catalog
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.strong import Strong
from dakera_cluster.model.errors import QueryTimeoutError, ServiceUnavailableError
from dakera_cluster.model.ids import ShardId, partition_of, shard_of
from dakera_cluster.model.rows import Kind, encode_value
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard import ops
from dakera_cluster.shard.search import fold

A = TypeVar("A")


class Router:
    """Reads, wherever the rows are."""

    def __init__(
        self,
        maps: Maps,
        transport: Transport,
        catalog: Catalog,
        level: ReadLevel = ReadLevel.EVENTUAL,
        max_staleness_ms: int = 5_000,
    ) -> None:
        self._maps = maps
        self._asker = Asker(maps, transport)
        self._strong = Strong(maps, transport, self._asker)
        self._catalog = catalog
        self._level = level
        self._max_staleness_ms = max_staleness_ms
        self.staleness_ms: Callable[[ShardId], float] | None = None
        """For how long this node's copy of a shard may have missed writes; None where it is the only one."""

    def _asks_majority(self, shard: ShardId, asked: ReadLevel | None = None) -> bool:
        """Whether this read must ask a majority: a strong one, and a bounded one where this node's own copy may have missed
        writes for longer than the bound."""
        level = asked or levels.read_level.get() or self._level
        if level is ReadLevel.BOUNDED_STALENESS:
            bound_ms = levels.max_staleness_ms.get() or self._max_staleness_ms
            return self.staleness_ms is not None and self.staleness_ms(shard) > bound_ms
        return level is ReadLevel.STRONG

    def shard_for(self, namespace: str, row_id: str) -> ShardId:
        """The shard of a row."""
        partition = partition_of(row_id, self._catalog.partitions(namespace))
        return shard_of(namespace, partition, self._maps.shards)

    def home_of(self, namespace: str) -> ShardId | None:
        """The shard of all rows of a namespace with one partition, None for one with more."""
        return shard_of(namespace, 0, self._maps.shards) if self._catalog.partitions(namespace) == 1 else None

    def shards_of(self, namespace: str) -> list[ShardId]:
        """Every shard that may hold rows of the namespace."""
        partitions = self._catalog.partitions(namespace)
        if partitions == 1:
            return [shard_of(namespace, 0, self._maps.shards)]
        return sorted({shard_of(namespace, part, self._maps.shards) for part in range(partitions)})

    def every_shard(self) -> list[ShardId]:
        return [ShardId(number) for number in range(self._maps.shards)]

    async def read(
        self, namespace: str, kind: Kind, ids: Sequence[str], level: ReadLevel | None = None
    ) -> dict[str, bytes]:
        """id -> encoded body of the rows that exist, tombstones included. ``level``: this read's own, over the request's."""
        by_shard: dict[ShardId, list[str]] = {}
        home = self.home_of(namespace)
        for row_id in dict.fromkeys(ids):
            by_shard.setdefault(self.shard_for(namespace, row_id) if home is None else home, []).append(row_id)
        found: dict[str, bytes] = {}

        async def one(shard: ShardId, some: list[str]) -> None:
            if self._asks_majority(shard, level):
                found.update(await self._strong.read(shard, namespace, kind, some))
                return
            answer = await self._asker.one(shard, ops.Read(shard, 0, namespace, kind, some), ops.Bodies)
            found.update((i, body) for i, body in zip(some, answer.bodies, strict=True) if body is not None)
            # A replica that lags must not turn a fresh write into a 404: what it lacks is asked of the others.
            missing = [row_id for row_id in some if row_id not in found]
            if missing and kind is Kind.DOCUMENT and len(self._maps.readers(shard)) > 1:
                found.update(await self._elsewhere(shard, namespace, kind, missing))

        await _gather(one(shard, some) for shard, some in by_shard.items())
        return found

    async def _elsewhere(self, shard: ShardId, namespace: str, kind: Kind, ids: list[str]) -> dict[str, bytes]:
        def has_some(answer: ops.Bodies) -> bool:
            return any(body is not None for body in answer.bodies)

        answer = await self._others(shard, ops.Read(shard, 0, namespace, kind, ids), ops.Bodies, has_some)
        return {i: body for i, body in zip(ids, answer.bodies, strict=True) if body is not None} if answer else {}

    async def _others(
        self, shard: ShardId, request: ops.Request, kind: type[A], has_some: Callable[[A], bool]
    ) -> A | None:
        """What another replica than the preferred one has, the first that has anything; None when none has or can say."""
        stamped = msgspec.structs.replace(request, map_version=self._maps.version(shard))
        for node in self._maps.readers(shard)[1:]:
            with contextlib.suppress(ServiceUnavailableError, QueryTimeoutError):
                answer = await self._asker.first([node], stamped)
                assert isinstance(answer, kind)
                if has_some(answer):
                    return answer
        return None

    async def _parts(
        self,
        shards: Sequence[ShardId],
        request: Callable[[ShardId], ops.Request],
        kind: type[A],
        has_some: Callable[[A], bool],
    ) -> list[A]:
        """One replica's answer of each part of a namespace. When none has heard of anything in it the others are asked: a
        replica that lags must not make a namespace unknown whose first write was acknowledged."""
        parts = await _gather(self._asker.one(shard, request(shard), kind) for shard in shards)
        if any(map(has_some, parts)):
            return parts

        async def elsewhere(shard: ShardId, part: A) -> A:
            other = await self._others(shard, request(shard), kind, has_some)
            return part if other is None else other

        return await _gather(elsewhere(shard, part) for shard, part in zip(shards, parts, strict=True))

    async def search(self, namespace: str, request: Callable[[ShardId, int], ops.Request], k: int) -> ops.Hits:
        """The best ``k`` hits over all parts, by score, ties by id."""
        shards = self.shards_of(namespace)
        if any(map(self._asks_majority, shards)):
            parts = await _gather(
                self._strong.search(s, namespace, request(s, 0), k)
                if self._asks_majority(s)
                else self._asker.one(s, request(s, self._maps.version(s)), ops.Hits)
                for s in shards
            )
        else:
            parts = await self._parts(
                shards, lambda s: request(s, self._maps.version(s)), ops.Hits, lambda hits: hits.searched > 0
            )
        if len(parts) == 1:
            return parts[0]
        best = heapq.nsmallest(k, (hit for part in parts for hit in part.hits), key=lambda hit: (-hit.score, hit.id))
        timings: dict[str, int] = {}
        for part in parts:
            for step, spent in part.timings_us.items():
                timings[step] = max(timings.get(step, 0), spent)
        extra = [hit for part in parts for hit in part.extra]
        searched, matched = sum(part.searched for part in parts), sum(part.matched for part in parts)
        question = next((part.question for part in parts if part.question is not None), None)
        reranked = any(part.reranked for part in parts)
        return ops.Hits(best, searched, matched, timings, extra, question, reranked)

    async def select(self, request: ops.Select, *, namespace: str | None = None) -> ops.Selected:
        """A page over all parts, in the request's order; ``shard`` and ``map_version`` of the request are filled in."""
        shards = self.shards_of(namespace or request.namespace)
        window = request.offset + request.limit
        whole = request if len(shards) == 1 else msgspec.structs.replace(request, offset=0, limit=window)
        parts = await self._parts(
            shards,
            lambda shard: msgspec.structs.replace(whole, shard=shard, map_version=0),
            ops.Selected,
            lambda page: page.total > 0,
        )
        if len(parts) == 1:
            return parts[0]
        total, matched = sum(p.total for p in parts), sum(p.matched for p in parts)
        places = [(part, i) for part in parts for i in range(len(part.ids))]
        places.sort(key=lambda place: (-place[0].sort_keys[place[1]], place[0].ids[place[1]]))
        page = places[request.offset : window]
        return ops.Selected(
            [p.ids[i] for p, i in page],
            [p.sort_keys[i] for p, i in page],
            [p.bodies[i] for p, i in page] if request.bodies else [],
            [p.usages[i] for p, i in page] if request.usage else [],
            total,
            matched,
        )

    async def aggregate(self, request: ops.Aggregate) -> list[ops.Group]:
        """Groups over all parts, in order of their keys' encoding."""
        parts = await _gather(
            self._asker.one(s, msgspec.structs.replace(request, shard=s, map_version=0), ops.Groups)
            for s in self.shards_of(request.namespace)
        )
        merged: dict[bytes, ops.Group] = {}
        for part in parts:
            for group in part.groups:
                fold(merged, group.key, group.values, group.count)
        return sorted(merged.values(), key=lambda group: encode_value(group.key))[: request.limit]

    async def describe(self, namespace: str, *, compact: bool = False) -> list[ops.Description]:
        """Sizes of each part."""
        return await self._parts(
            self.shards_of(namespace),
            lambda shard: ops.Describe(shard, 0, namespace, compact),
            ops.Description,
            lambda part: part.known,
        )

    async def profile(self, namespace: str, now_ms: int) -> ops.Profiled:
        """Counts over the live memories of a namespace."""
        parts = await self._parts(
            self.shards_of(namespace),
            lambda shard: ops.Profile(shard, 0, namespace, now_ms),
            ops.Profiled,
            lambda part: part.count > 0,
        )
        return parts[0] if len(parts) == 1 else _joined(parts)

    async def inventory(self, prefix: str) -> dict[str, tuple[int, int]]:
        """namespace -> (documents, bytes) of every namespace with documents whose name starts with ``prefix``."""
        parts = await _gather(
            self._asker.one(s, ops.Inventory(s, 0, prefix), ops.Namespaces) for s in self.every_shard()
        )
        found: dict[str, tuple[int, int]] = {}
        for part in parts:
            for name, documents, size in zip(part.names, part.documents, part.bytes, strict=True):
                before = found.get(name, (0, 0))
                found[name] = (before[0] + documents, before[1] + size)
        return dict(sorted(found.items()))

    async def expired(self, now_ms: int, limit: int) -> dict[str, list[str]]:
        """namespace -> ids of documents whose time is up, at most ``limit`` a shard."""
        found: dict[str, list[str]] = {}
        for shard in self.every_shard():
            answer = await self._asker.one(shard, ops.Expired(shard, 0, now_ms, limit), ops.Places)
            for namespace, row_id in answer.places:
                found.setdefault(namespace, []).append(row_id)
        return found


def _joined(parts: Sequence[ops.Profiled]) -> ops.Profiled:
    counts: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
    for part in parts:
        for total, some in zip(counts, (part.by_type, part.by_session, part.by_tag), strict=True):
            total.update(some)
    return ops.Profiled(
        sum(p.count for p in parts),
        sum(p.importance_sum for p in parts),
        min((p.oldest for p in parts if p.count), default=0),
        max(p.newest for p in parts),
        *(dict(total) for total in counts),
    )


async def _gather(calls: Iterable[Coroutine[Any, Any, A]]) -> list[A]:
    waiting = list(calls)
    # Most reads touch one shard: no task is made for it.
    return [await waiting[0]] if len(waiting) == 1 else await asyncio.gather(*waiting)
