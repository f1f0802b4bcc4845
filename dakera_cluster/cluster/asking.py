"""Asking replicas: one of them, hedged and with fail-over, or a majority.

The transport carries one request to one node: inside the process to the host, otherwise over a peer connection. Every request
is stamped with the shard's version; when a replica knows a newer map, that is fetched and the question asked anew. Called by
`cluster.router` and `cluster.strong`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from dakera_cluster.cluster.gate import OutdatedMapError
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.model.errors import (
    DakeraError,
    InternalError,
    QueryTimeoutError,
    QuorumUnavailableError,
    ServiceUnavailableError,
    StorageError,
)
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.shard import ops

A = TypeVar("A")

MAP_ROUNDS = 4
"""How often a read starts over because the map changed under it."""
QUORUM_TIMEOUT_S = 5.0
_ANOTHER_MAY_DO_BETTER = (ServiceUnavailableError, StorageError, QueryTimeoutError)


class Hedge:
    """When a read has taken so long that a second replica is asked as well: the 95th percentile of recent reads, within
    bounds (Dean and Barroso, "The tail at scale", 2013)."""

    LEAST_S = 0.02
    MOST_S = 0.5
    SAMPLES = 256

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=self.SAMPLES)
        self._since = 0
        self.delay_s = self.MOST_S
        self.hedged = 0

    def note(self, spent_s: float) -> None:
        """A read that took so long."""
        self._recent.append(spent_s)
        self._since += 1
        if self._since >= self.SAMPLES // 8:
            self._since = 0
            ordered = sorted(self._recent)
            self.delay_s = min(self.MOST_S, max(self.LEAST_S, 2 * ordered[int(0.95 * (len(ordered) - 1))]))


class Transport(Protocol):
    """Carries one request to one node."""

    def call(self, node: NodeId, request: ops.Request) -> Coroutine[Any, Any, ops.Answer]:
        """The node's answer. Raises the errors of `model.errors`, ServiceUnavailableError when it cannot be reached."""
        ...


class Asker:
    """Questions to the replicas of a shard."""

    def __init__(self, maps: Maps, transport: Transport) -> None:
        self._maps = maps
        self._transport = transport
        self.hedge = Hedge()

    async def one(self, shard: ShardId, request: ops.Request, kind: type[A]) -> A:
        """The answer of one replica: the best first, hedged when it is slower than usual, the next when it fails."""
        for _ in range(MAP_ROUNDS):
            order = self._maps.order
            version = self._maps.version(shard)
            if request.map_version != version:
                request = msgspec.structs.replace(request, map_version=version)
            try:
                started = time.perf_counter()
                answer = await self.first(self._maps.readers(shard), request)
                self.hedge.note(time.perf_counter() - started)
            except OutdatedMapError:
                await self._maps.catch_up(order)
                continue
            if not isinstance(answer, kind):
                raise InternalError(f"{type(request).__name__} was answered with {type(answer).__name__}")
            return answer
        raise ServiceUnavailableError(f"shard {shard} is moving: its map kept changing")

    def first(self, nodes: Sequence[NodeId], request: ops.Request) -> Coroutine[Any, Any, ops.Answer]:
        """The first good answer, asking one node after the other. Raises the best node's error when none gives one."""
        return self._transport.call(nodes[0], request) if len(nodes) == 1 else self._hedged(nodes, request)

    async def _hedged(self, nodes: Sequence[NodeId], request: ops.Request) -> ops.Answer:
        waiting: dict[asyncio.Task[ops.Answer], NodeId] = {}
        errors: list[DakeraError] = []
        try:
            for position, node in enumerate(nodes):
                waiting[asyncio.create_task(self._transport.call(node, request))] = node
                last = position == len(nodes) - 1
                while waiting:
                    done, _ = await asyncio.wait(
                        waiting, timeout=None if last else self.hedge.delay_s, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        self.hedge.hedged += 1
                        break
                    answer = self._harvest(done, waiting, errors)
                    if answer is not None:
                        return answer
                    if not last:
                        break
        finally:
            for task in waiting:
                task.cancel()
        raise errors[0]

    def _harvest(
        self,
        done: set[asyncio.Task[ops.Answer]],
        waiting: dict[asyncio.Task[ops.Answer], NodeId],
        errors: list[DakeraError],
    ) -> ops.Answer | None:
        for task in done:
            waiting.pop(task)
            error = task.exception()
            if error is None:
                return task.result()
            # Only what another replica may do better is worth asking it: a bad request is bad everywhere.
            if not isinstance(error, ServiceUnavailableError | StorageError | QueryTimeoutError) or isinstance(
                error, OutdatedMapError
            ):
                raise error
            errors.append(error)
        return None

    async def quorum(self, shard: ShardId, request: ops.Request, kind: type[A]) -> tuple[ShardState, dict[NodeId, A]]:
        """The answers of a quorum of the shard's replicas, and the state they were given under.

        Raises QuorumUnavailableError when too few can answer; then nothing is known for sure.
        """
        for _ in range(MAP_ROUNDS):
            order, state = self._maps.order, self._maps.state(shard)
            stamped = msgspec.structs.replace(request, map_version=state.version)
            try:
                return state, await self._quorum_once(state, stamped, kind)
            except OutdatedMapError:
                await self._maps.catch_up(order)
        raise ServiceUnavailableError(f"shard {shard} is moving: its map kept changing")

    async def _quorum_once(self, state: ShardState, request: ops.Request, kind: type[A]) -> dict[NodeId, A]:
        waiting = {asyncio.create_task(self._transport.call(node, request)): node for node in state.write_set}
        answers: dict[NodeId, A] = {}
        try:
            async with asyncio.timeout(QUORUM_TIMEOUT_S):
                while waiting and not state.has_quorum(answers):
                    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        node, error = waiting.pop(task), task.exception()
                        if error is None:
                            answer = task.result()
                            assert isinstance(answer, kind)
                            answers[node] = answer
                        elif isinstance(error, OutdatedMapError) or not isinstance(error, DakeraError):
                            raise error
        except TimeoutError:
            pass
        finally:
            for task in waiting:
                task.cancel()
        if not state.has_quorum(answers):
            have, want = len(answers), len(state.write_set)
            raise QuorumUnavailableError(f"{have} of {want} replicas answered a strong read", ambiguous=False)
        return answers
