"""The cluster as this node sees it: status, nodes, replication, shards, planned moves, maintenance.

Truthful from any node: what is told is what this node believes, with the age of the belief. Facts about other nodes are
asked of them and kept for a few seconds; a node that does not answer is shown with what was last heard. Called by the admin
routes; answers are the wire contract's objects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from dakera_cluster import __version__
from dakera_cluster.cluster.leader import Leadership
from dakera_cluster.cluster.maps import Maps
from dakera_cluster.cluster.vitals import Vitals, VitalSigns
from dakera_cluster.model.errors import ConflictError, DakeraError, InvalidRequestError
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.shardmap import MemberState, ShardState

VITALS_METHOD = "node.vitals"
COMMAND_METHOD = "leader.command"
MAINTENANCE_METHOD = "node.maintenance"
VITALS_TIMEOUT_MS = 1_000.0
VITALS_MAX_AGE_S = 1.0
MAX_SHARD_ROWS = 70_000
MOVE_ESTIMATE_S = 5


class MemberFacts(msgspec.Struct, frozen=True):
    """What membership believes of one node."""

    node: NodeId
    state: str
    api_url: str
    zone: str
    state_age_ms: float
    heard_age_ms: float | None


class Caller(Protocol):
    """Calls a method of another node."""

    async def call(self, node: NodeId, method: str, payload: bytes, timeout_ms: float) -> bytes: ...


class Command(msgspec.Struct, frozen=True, array_like=True):
    """An operator's wish that only the leader can carry out. ``action``: a MemberState's name, ``pause`` or ``resume``."""

    action: str
    node: str = ""


class Maintenance(msgspec.Struct):
    """Maintenance of this node, kept in memory: a restart ends it."""

    enabled: bool = False
    reason: str | None = None
    enabled_at: int | None = None
    scheduled_end: int | None = None
    nodes_in_maintenance: list[str] = []
    rejecting_requests: bool = False


class Portrait:
    """Answers of the cluster routes. Without membership and leadership (a node alone) it shows that one node."""

    def __init__(
        self,
        node: NodeId,
        maps: Maps,
        signs: VitalSigns,
        now_ms: Callable[[], int],
        members: Callable[[], list[MemberFacts]],
        leadership: Leadership | None = None,
        caller: Caller | None = None,
        progress: Callable[[], Mapping[int, str]] | None = None,
        redis_healthy: Callable[[], bool | None] | None = None,
    ) -> None:
        self._node = node
        self._maps = maps
        self._signs = signs
        self._now_ms = now_ms
        self._members = members
        self._leadership = leadership
        self._caller = caller
        self._progress = progress or (dict)
        self._redis_healthy = redis_healthy or (lambda: None)
        self._vitals: dict[NodeId, tuple[Vitals, float]] = {}
        self.maintenance = Maintenance()

    async def status(self) -> dict[str, Any]:
        vitals = await self._gather()
        members = self._members()
        alive = [member for member in members if member.state == "alive"]
        leader = self._leader()
        unready = self._under_replicated(alive)
        healthy = len(alive) == len(members) and unready == 0 and (leader is not None or self._leadership is None)
        state = "healthy" if healthy else "degraded"
        documents, namespaces = self._totals(vitals)
        current = self._maps.current
        answer = {
            "cluster_id": current.cluster_id if current is not None else "unborn",
            "state": state,
            "status": state,
            "healthy": healthy,
            "node_count": len(members),
            "nodes": len(members),
            "alive_nodes": len(alive),
            "total_vectors": documents,
            "namespace_count": namespaces,
            "version": __version__,
            "timestamp": self._now_ms() // 1000,
            "redis_healthy": self._redis_healthy(),
            "leader": leader,
            "answered_by": self._node,
            "map": {"epoch": self._maps.order[0], "version": self._maps.order[1]},
            "moving_shards": len(current.joint_shards()) if current is not None else 0,
            "under_replicated_shards": unready,
        }
        if self._leadership is not None:
            view = self._leadership.view()
            answer["leadership"] = msgspec.to_builtins(view)
        return answer

    async def nodes(self) -> list[dict[str, Any]]:
        vitals = await self._gather()
        leader = self._leader()
        rows: list[dict[str, Any]] = []
        for member in sorted(self._members(), key=lambda m: m.node):
            own = vitals.get(member.node)
            age_ms = member.heard_age_ms if member.heard_age_ms is not None else member.state_age_ms
            rows.append(
                {
                    "node_id": member.node,
                    "id": member.node,
                    "address": member.api_url,
                    "role": "leader" if member.node == leader else "follower",
                    "status": "active" if member.state == "alive" else member.state,
                    "version": own.version if own is not None else "unknown",
                    "uptime_seconds": int(own.uptime_s) if own is not None else 0,
                    "vector_count": own.documents if own is not None else 0,
                    "memory_bytes": own.memory_bytes if own is not None else 0,
                    "cpu_percent": round(own.cpu_percent, 1) if own is not None else 0.0,
                    "memory_percent": round(own.memory_percent, 1) if own is not None else 0.0,
                    "last_heartbeat": int((self._now_ms() - age_ms) // 1000),
                    "belief_age_ms": int(member.state_age_ms),
                    "zone": member.zone,
                    "shards": len(own.shards) if own is not None else 0,
                    "map_version": own.map_version if own is not None else None,
                }
            )
        return rows

    async def replication(self) -> dict[str, Any]:
        vitals = await self._gather()
        members = self._members()
        lag = []
        for member in sorted(members, key=lambda m: m.node):
            own = vitals.get(member.node)
            incomplete = sum(not shard.complete for shard in own.shards) if own is not None else 0
            status = "dead" if member.state != "alive" else "syncing" if incomplete else "in_sync"
            age = member.heard_age_ms or 0.0
            lag.append({"node_id": member.node, "lag_ms": int(age), "status": status, "incomplete_shards": incomplete})
        current = self._maps.current
        return {
            "replication_factor": current.replication_factor if current is not None else 0,
            "healthy_replicas": sum(row["status"] == "in_sync" for row in lag),
            "total_nodes": len(members),
            "replication_lag": lag,
        }

    async def shards(self) -> dict[str, Any]:
        vitals = await self._gather()
        current = self._maps.current
        sizes: dict[int, tuple[int, int]] = {}
        for own in vitals.values():
            for shard in own.shards:
                sizes[shard.shard] = max(sizes.get(shard.shard, (0, 0)), (shard.documents, shard.bytes))
        progress = self._progress()
        rows = []
        for number, state in enumerate(current.shards[:MAX_SHARD_ROWS] if current is not None else ()):
            documents, size = sizes.get(number, (0, 0))
            rows.append(
                {
                    "shard_id": str(number),
                    "namespace": "*",
                    "primary_node": state.replicas[0] if state.replicas else "",
                    "replica_nodes": list(state.replicas[1:]),
                    "joining_nodes": list(state.joining),
                    "leaving_nodes": list(state.leaving),
                    "state": _state_word(state, progress.get(number)),
                    "version": state.version,
                    "vector_count": documents,
                    "size_bytes": size,
                }
            )
        return {"shards": rows, "total": len(rows)}

    async def digests(self) -> dict[str, Any]:
        """This node's own copies: shard -> root digest, live documents, and whether it has all rows. Replicas agree when
        their roots are equal."""
        own = self._signs.measure(self._now_ms())
        roots = await asyncio.to_thread(self._signs.roots)
        return {
            "node_id": self._node,
            "shards": {
                str(shard.shard): {
                    "root": f"{roots[shard.shard]:016x}",
                    "documents": shard.documents,
                    "complete": shard.complete,
                }
                for shard in own.shards
            },
        }

    async def rebalance(self, shard_ids: list[str], dry_run: bool) -> dict[str, Any]:
        """What a rebalancing would begin; without ``dry_run`` the leader is told to look now."""
        wanted: set[int] | None = None
        if shard_ids:
            try:
                wanted = {int(shard) for shard in shard_ids}
            except ValueError:
                raise InvalidRequestError("expected shard numbers", field="shard_ids") from None
        moves = self._planned(wanted)
        if not dry_run and self._leadership is not None:
            await self._command(Command("resume"))
        return {
            "initiated": not dry_run and bool(moves),
            "operation_id": f"rebalance-{self._maps.order[0]}-{self._maps.order[1]}",
            "shards_affected": len({move["shard_id"] for move in moves}),
            "estimated_seconds": MOVE_ESTIMATE_S * len(moves) if moves else 0,
            "planned_moves": moves,
        }

    def _planned(self, wanted: set[int] | None) -> list[dict[str, Any]]:
        current = self._maps.current
        if self._leadership is None or current is None:
            return []
        made = self._leadership.dry_run()
        moves: list[dict[str, Any]] = []
        after = made.next_map.shards if made.next_map is not None else current.shards
        begun = [(number, state.joining, state.leaving) for number, state in enumerate(after) if state.is_joint]
        for number, joining, leaving in [*begun, *((m.shard, m.joining, m.leaving) for m in made.pending)]:
            if wanted is not None and number not in wanted:
                continue
            givers = list(leaving) or [current.shards[number].replicas[0]]
            for place, node in enumerate(joining):
                giver = givers[place % len(givers)]
                moves.append({"shard_id": str(number), "from_node": giver, "to_node": node})
        return moves

    async def set_member(self, node: str, state: MemberState) -> None:
        """Drain, remove or reinstate a node, by way of the leader."""
        await self._command(Command(state.name.lower(), node))

    def maintenance_status(self) -> dict[str, Any]:
        """Maintenance as this node holds it; one past its end is over."""
        held = self.maintenance
        if held.enabled and held.scheduled_end is not None and self._now_ms() // 1000 >= held.scheduled_end:
            self.maintenance = held = Maintenance()
        answer: dict[str, Any] = msgspec.to_builtins(held)
        return answer

    async def maintenance_enable(
        self, reason: str, node_ids: list[str], reject_requests: bool, scheduled_end: int | None
    ) -> dict[str, Any]:
        """Begin maintenance: the leader starts no moves, and the named nodes (all, when none is named) refuse requests
        where that was asked for."""
        known = {member.node for member in self._members()}
        strangers = [node for node in node_ids if node not in known]
        if strangers:
            raise InvalidRequestError(f"{strangers[0]!r} is no member of the cluster", field="node_ids")
        wanted = Maintenance(
            True, reason, self._now_ms() // 1000, scheduled_end, node_ids or sorted(known), reject_requests
        )
        await self._spread(wanted)
        if self._leadership is not None:
            await self._command(Command("pause"))
        return self.maintenance_status()

    async def maintenance_disable(self) -> dict[str, Any]:
        await self._spread(Maintenance())
        if self._leadership is not None:
            await self._command(Command("resume"))
        return self.maintenance_status()

    def keep_maintenance(self, payload: bytes) -> bytes:
        """Maintenance as a peer announces it."""
        self.maintenance = msgspec.msgpack.decode(payload, type=Maintenance)
        return b""

    @property
    def rejects_requests(self) -> bool:
        """Whether this node refuses requests because of maintenance."""
        held = self.maintenance_status()
        return bool(held["rejecting_requests"]) and self._node in held["nodes_in_maintenance"]

    async def _spread(self, wanted: Maintenance) -> None:
        self.maintenance = wanted
        payload = msgspec.msgpack.encode(wanted)
        others = [m.node for m in self._members() if m.node != self._node and m.state != "dead"]
        if self._caller is not None and others:
            calls = (self._caller.call(node, MAINTENANCE_METHOD, payload, VITALS_TIMEOUT_MS) for node in others)
            await asyncio.gather(*calls, return_exceptions=True)

    async def command(self, payload: bytes) -> bytes:
        """Carry out a command here; this node must lead."""
        command = msgspec.msgpack.decode(payload, type=Command)
        if self._leadership is None:
            raise ConflictError("a node alone has nothing to move")
        if command.action in ("pause", "resume"):
            self._leadership.paused = command.action == "pause"
            self._leadership.members_changed()
        else:
            await self._leadership.set_member(NodeId(command.node), MemberState[command.action.upper()])
        return b""

    async def _command(self, command: Command) -> None:
        if self._leadership is None:
            raise ConflictError("a node alone has nothing to move")
        leader = self._leader()
        payload = msgspec.msgpack.encode(command)
        if self._leadership.is_leader or leader is None or self._caller is None:
            await self.command(payload)
        else:
            await self._caller.call(NodeId(leader), COMMAND_METHOD, payload, VITALS_TIMEOUT_MS * 5)

    def vitals(self) -> bytes:
        """This node's vitals, for a peer."""
        return msgspec.msgpack.encode(self._signs.measure(self._now_ms()))

    def _leader(self) -> str | None:
        if self._leadership is None:
            return self._node
        return self._leadership.view().leader

    def _under_replicated(self, alive: list[MemberFacts]) -> int:
        current = self._maps.current
        if current is None:
            return 0
        present = {member.node for member in alive}
        wanted = min(current.replication_factor, len(current.members))
        return sum(sum(node in present for node in state.replicas) < wanted for state in current.shards)

    def _totals(self, vitals: Mapping[NodeId, Vitals]) -> tuple[int, int]:
        """Documents over all shards, each counted once, and the most namespaces any node knows."""
        sizes: dict[int, int] = {}
        for own in vitals.values():
            for shard in own.shards:
                sizes[shard.shard] = max(sizes.get(shard.shard, 0), shard.documents)
        return sum(sizes.values()), max((own.namespaces for own in vitals.values()), default=0)

    async def _gather(self) -> dict[NodeId, Vitals]:
        """Vitals of every member that lives, asked at most once a second; of others what was last heard."""
        now = time.monotonic()
        self._vitals[self._node] = (self._signs.measure(self._now_ms()), now)
        stale = [
            member.node
            for member in self._members()
            if member.node != self._node
            and member.state != "dead"
            and now - self._vitals.get(member.node, (None, float("-inf")))[1] > VITALS_MAX_AGE_S
        ]
        if self._caller is not None and stale:
            await asyncio.gather(*(self._ask(node) for node in stale))
        return {node: own for node, (own, _) in self._vitals.items()}

    async def _ask(self, node: NodeId) -> None:
        assert self._caller is not None
        try:
            answer = await self._caller.call(node, VITALS_METHOD, b"", VITALS_TIMEOUT_MS)
        except DakeraError:
            return
        self._vitals[node] = (msgspec.msgpack.decode(answer, type=Vitals), time.monotonic())


def _state_word(state: ShardState, stage: str | None) -> str:
    if stage is not None:
        return stage
    return "moving" if state.is_joint else "active"
