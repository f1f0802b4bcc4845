"""Namespaces: list, create, configure, describe, delete, warm."""

from __future__ import annotations

from typing import Any

from dakera_cluster.api import bodies, shapes, vector_shapes
from dakera_cluster.api.auth import require_namespace
from dakera_cluster.api.route import Call
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.ids import check_namespace

PRIORITIES = ("critical", "high", "normal", "low", "background")
TIERS = ("l1", "l2", "both")
PATTERNS = ("random", "sequential", "temporal", "spatial")


async def list_namespaces(call: Call, _: None) -> dict[str, Any]:
    return vector_shapes.namespaces(call.client, await call.services.namespaces.list(call.access))


async def create(call: Call, body: bodies.NamespaceBody) -> dict[str, Any]:
    spec = body.spec(call.path.get("ns"))
    check_namespace(spec.name, "name")
    require_namespace(call.identity, spec.name)
    return vector_shapes.namespace(call.client, await call.services.namespaces.create(spec))


async def configure(call: Call, body: bodies.NamespaceBody) -> dict[str, Any]:
    return vector_shapes.configured(call.client, await call.services.namespaces.configure(body.spec(call.path["ns"])))


async def get(call: Call, _: None) -> dict[str, Any]:
    return vector_shapes.namespace(call.client, await call.services.namespaces.get(call.path["ns"]))


async def delete(call: Call, _: None) -> dict[str, Any]:
    name = call.path["ns"]
    count = await call.services.namespaces.delete(name)
    return shapes.done(f"namespace {name} deleted", namespace=name, vectors_deleted=count)


async def stats(call: Call, _: None) -> dict[str, Any]:
    return vector_shapes.namespace_stats(await call.services.namespaces.stats(call.path["ns"]))


async def compact(call: Call, _: None) -> dict[str, Any]:
    await call.services.namespaces.compact(call.path["ns"])
    return shapes.done("compacted")


async def flush(call: Call, _: None) -> dict[str, Any]:
    await call.services.namespaces.flush(call.path["ns"])
    return shapes.done("flushed")


def _one_of(value: str, allowed: tuple[str, ...], field: str) -> None:
    if value not in allowed:
        raise InvalidRequestError(f"must be one of {', '.join(allowed)}, got {value[:64]!r}", field=field)


async def warm(call: Call, body: bodies.WarmBody) -> dict[str, Any]:
    _one_of(body.priority, PRIORITIES, "priority")
    _one_of(body.target_tier, TIERS, "target_tier")
    _one_of(body.access_pattern, PATTERNS, "access_pattern")
    counts = await call.services.namespaces.warm(call.path["ns"], body.vector_ids or None, body.max_vectors)
    return vector_shapes.warmed(counts, target_tier=body.target_tier, priority=body.priority)
