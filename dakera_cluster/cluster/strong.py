"""Strong reads: a majority answers, versions are merged, and what lags is repaired before the answer.

Rows are read by `protocols.quorum.ReadOperation`. A search is asked of a majority as well; the union of their hits is then
read strongly, so a memory that one replica has not heard the delete of is not returned, and one that a replica has not heard
of yet is. The order is that of the best score any replica gave. Called by `cluster.router`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from dakera_cluster.cluster.asking import Asker, Transport
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.model.errors import DakeraError, QuorumUnavailableError
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import Kind, Row, decode_document
from dakera_cluster.model.shardmap import ShardState
from dakera_cluster.protocols.quorum import ReadDecision, ReadLevel, ReadOperation
from dakera_cluster.shard import ops


class Strong:
    """Strong reads of one coordinator."""

    def __init__(self, maps: Maps, transport: Transport, asker: Asker) -> None:
        self._maps = maps
        self._transport = transport
        self._asker = asker

    async def read(self, shard: ShardId, namespace: str, kind: Kind, ids: Sequence[str]) -> dict[str, bytes]:
        """id -> body as of every write acknowledged before the read began. Raises QuorumUnavailableError."""
        wanted = list(ids)
        request = ops.Read(shard, 0, namespace, kind, wanted)
        state, answers = await self._asker.quorum(shard, request, ops.Bodies)
        reads = {row_id: ReadOperation(state, kind, ReadLevel.STRONG) for row_id in wanted}
        for node, answer in answers.items():
            for row_id, body in zip(wanted, answer.bodies, strict=True):
                reads[row_id].answer(node, body)
        await self._write_back(shard, state, namespace, kind, reads)
        rest = [node for node in state.write_set if node not in answers]
        if rest and (unsure := _unsure(reads)):
            # One that answers but cannot store (its disk is full) must not stand in the way of a majority that agrees.
            more = msgspec.structs.replace(request, map_version=state.version, ids=unsure)
            await self._ask(rest, more, reads)
            await self._write_back(shard, state, namespace, kind, reads)
        if _unsure(reads):
            raise QuorumUnavailableError("too few replicas hold what was read", ambiguous=False)
        return {row_id: read.merged for row_id, read in reads.items() if read.merged is not None}

    async def _ask(self, nodes: Sequence[NodeId], request: ops.Read, reads: dict[str, ReadOperation]) -> None:
        async def one(node: NodeId) -> None:
            try:
                answer = await self._transport.call(node, request)
            except DakeraError:
                for row_id in request.ids:
                    reads[row_id].failed(node)
                return
            assert isinstance(answer, ops.Bodies)
            for row_id, body in zip(request.ids, answer.bodies, strict=True):
                reads[row_id].answer(node, body)

        await asyncio.gather(*(one(node) for node in nodes))

    async def _write_back(
        self, shard: ShardId, state: ShardState, namespace: str, kind: Kind, reads: dict[str, ReadOperation]
    ) -> None:
        rows: dict[NodeId, list[Row]] = {}
        for row_id, read in reads.items():
            if read.decision is ReadDecision.WRITE_BACK and read.merged is not None:
                for node in read.lagging():
                    rows.setdefault(node, []).append(Row(namespace, kind, row_id, read.merged))

        async def repair(node: NodeId, some: list[Row]) -> None:
            try:
                await self._transport.call(node, ops.Apply(shard, state.version, some))
            except DakeraError:
                for row in some:
                    reads[row.id].repair_failed(node)
            else:
                for row in some:
                    reads[row.id].repaired(node, row.body)

        await asyncio.gather(*(repair(node, some) for node, some in rows.items()))

    async def search(self, shard: ShardId, namespace: str, request: ops.Request, k: int) -> ops.Hits:
        """The best ``k`` of a majority's hits, as they are now."""
        _, answers = await self._asker.quorum(shard, request, ops.Hits)
        best: dict[str, ops.Hit] = {}
        for answer in answers.values():
            for hit in answer.hits:
                if hit.id not in best or hit.score > best[hit.id].score:
                    best[hit.id] = hit
        bodies = await self.read(shard, namespace, Kind.DOCUMENT, list(best)) if best else {}
        hits = [
            msgspec.structs.replace(hit, body=bodies[row_id])
            for row_id, hit in best.items()
            if row_id in bodies and decode_document(bodies[row_id]).alive
        ]
        hits.sort(key=lambda hit: (-hit.score, hit.id))
        first = next(iter(answers.values()))
        return msgspec.structs.replace(first, hits=hits[:k])


def _unsure(reads: dict[str, ReadOperation]) -> list[str]:
    return [row_id for row_id, read in reads.items() if read.decision is not ReadDecision.SUCCESS]
