"""The gate of a node's replicas: no request reaches a shard under a map the node has left behind, or rows it has not got.

Every request carries the shard version its sender acts under. Older than ours: refused with our map's order, so that the
sender fetches it. Newer than ours: we fetch first, then look again. A replica that is still fetching its rows applies writes
(they must not be missed) but its ack is no vote, and it answers no reads. Stamps from far in the future are refused: one
broken clock must not decide every conflict to come. Called by the peer server and, for this node itself, by the transport.
"""

from __future__ import annotations

from collections.abc import Callable

from dakera_cluster.cluster.holdings import Holdings
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.model.errors import InvalidRequestError, ServiceUnavailableError
from dakera_cluster.model.hlc import NEVER, FarFutureError, HybridClock
from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.rows import version_of
from dakera_cluster.model.shardmap import Admission, admit
from dakera_cluster.protocols.tombstones import TombstoneConfig, stamp_is_fresh
from dakera_cluster.protocols.transfer import Stage
from dakera_cluster.shard import ops
from dakera_cluster.shard.host import Host


class OutdatedMapError(ServiceUnavailableError):
    """The sender's map is older than the replica's: nothing was done."""


class NotAReplicaError(ServiceUnavailableError):
    """This node does not hold the shard, or has not got its rows yet: nothing was done."""


class Gate:
    """Admission in front of a host."""

    def __init__(
        self,
        node: NodeId,
        host: Host,
        maps: Maps,
        holdings: Holdings,
        clock: HybridClock,
        now_ms: Callable[[], int],
        tombstones: TombstoneConfig | None = None,
    ) -> None:
        self._node = node
        self._host = host
        self._maps = maps
        self._holdings = holdings
        self._clock = clock
        self._now_ms = now_ms
        self._tombstones = tombstones or TombstoneConfig()

    async def handle(self, request: ops.Request) -> ops.Answer:
        """Judge, then answer. Raises OutdatedMapError, NotAReplicaError and what the host raises."""
        shard = ShardId(request.shard)
        verdict = admit(self._maps.state(shard), self._node, request.map_version)
        if verdict is Admission.BEHIND:
            await self._maps.catch_up(self._maps.order)
            verdict = admit(self._maps.state(shard), self._node, request.map_version)
        if verdict is Admission.OUTDATED:
            raise OutdatedMapError("the shard map has moved on", details={"order": list(self._maps.order)})
        if verdict is not Admission.SERVE:
            raise NotAReplicaError(f"node {self._node} does not hold shard {shard}")
        if isinstance(request, ops.Apply):
            return await self._apply(shard, request)
        if not self._holdings.serves(shard, self._maps.state(shard)):
            raise NotAReplicaError(f"node {self._node} is still fetching shard {shard}")
        return await self._host.handle(request)

    async def _apply(self, shard: ShardId, request: ops.Apply) -> ops.Answer:
        holding = self._holdings.get(shard)
        if holding is None or holding.stage is Stage.WIPING:
            raise NotAReplicaError(f"node {self._node} is not ready to take writes of shard {shard}")
        now_ms = self._now_ms()
        versions = [version_of(row.kind, row.body) for row in request.rows]
        if versions and not stamp_is_fresh(min(versions), now_ms, self._tombstones):
            raise InvalidRequestError(
                "a write that waited this long may speak of what was deleted meanwhile", field="stamp"
            )
        try:
            self._clock.observe(max(versions, default=NEVER).time, now_ms)
        except FarFutureError as error:
            raise InvalidRequestError(f"the coordinator's clock is wrong: {error}", field="stamp") from None
        answer = await self._host.handle(request)
        assert isinstance(answer, ops.Applied)
        # Durable here, but a vote only under the version the request was made for.
        state = self._maps.state(shard)
        voted = state.version == request.map_version and self._holdings.votes(shard, state)
        return ops.Applied(answer.changed, voted, answer.outrun_by)
