"""The cluster as this node sees it, and what an operator may ask of it."""

from __future__ import annotations

import time
from typing import Any

from dakera_cluster.api import bodies
from dakera_cluster.api.route import Call
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.shardmap import MemberState

MAX_MAINTENANCE_MINUTES = 7 * 24 * 60


async def status(call: Call, _: None) -> dict[str, Any]:
    return await call.services.cluster.status()


async def nodes(call: Call, _: None) -> Any:
    rows = await call.services.cluster.nodes()
    if call.client.bare_nodes:
        return rows
    return {"nodes": rows, "total": len(rows)}


async def replication(call: Call, _: None) -> dict[str, Any]:
    return await call.services.cluster.replication()


async def shards(call: Call, _: None) -> dict[str, Any]:
    return await call.services.cluster.shards()


async def digests(call: Call, _: None) -> dict[str, Any]:
    return await call.services.cluster.digests()


async def rebalance(call: Call, body: bodies.RebalanceBody) -> dict[str, Any]:
    return await call.services.cluster.rebalance(body.shard_ids or [], body.dry_run)


async def member(call: Call, body: bodies.MemberBody) -> dict[str, Any]:
    """Drain a node, take it out for good, or take it back."""
    states = {"drain": MemberState.DRAINING, "remove": MemberState.REMOVED, "activate": MemberState.ACTIVE}
    if body.action not in states:
        raise InvalidRequestError(f"expected one of {', '.join(states)}, got {body.action!r}", field="action")
    await call.services.cluster.set_member(call.path["node_id"], states[body.action])
    return {"success": True, "message": f"{call.path['node_id']} is {states[body.action].name.lower()}"}


async def maintenance(call: Call, _: None) -> dict[str, Any]:
    return call.services.cluster.maintenance_status()


async def maintenance_enable(call: Call, body: bodies.MaintenanceBody) -> dict[str, Any]:
    end: int | None = None
    if body.duration_minutes is not None:
        if not 1 <= body.duration_minutes <= MAX_MAINTENANCE_MINUTES:
            raise InvalidRequestError(
                f"expected 1 to {MAX_MAINTENANCE_MINUTES} minutes, got {body.duration_minutes}",
                field="duration_minutes",
            )
        end = int(time.time()) + 60 * body.duration_minutes
    if not body.reason.strip():
        raise InvalidRequestError("must not be empty", field="reason")
    return await call.services.cluster.maintenance_enable(body.reason, body.node_ids or [], body.reject_requests, end)


async def maintenance_disable(call: Call, _: None) -> dict[str, Any]:
    return await call.services.cluster.maintenance_disable()
