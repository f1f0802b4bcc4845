"""Vectors of a namespace: write, query in every form, delete, export, explain."""

from __future__ import annotations

import asyncio
from typing import Any

from dakera_cluster.api import vector_bodies, vector_shapes
from dakera_cluster.api.route import Call
from dakera_cluster.memory.requests import ExplainQuery
from dakera_cluster.memory.services import Hits
from dakera_cluster.model.errors import InvalidRequestError, VectorNotFoundError

MAX_QUERIES = 1_000
QUERIES_AT_ONCE = 8


async def upsert(call: Call, body: vector_bodies.UpsertBody) -> dict[str, Any]:
    return {"upserted_count": await call.services.vectors.upsert(call.path["ns"], body.vectors)}


async def upsert_columns(call: Call, body: vector_bodies.UpsertColumnsBody) -> dict[str, Any]:
    return {"upserted_count": await call.services.vectors.upsert(call.path["ns"], body.items())}


async def query(call: Call, body: vector_bodies.VectorQueryBody) -> dict[str, Any]:
    return vector_shapes.vector_hits(call.client, await call.services.vectors.query(call.path["ns"], body.query()))


async def batch_query(call: Call, body: vector_bodies.BatchQueryBody) -> dict[str, Any]:
    if not 0 < len(body.queries) <= MAX_QUERIES:
        raise InvalidRequestError(f"must hold 1 to {MAX_QUERIES} queries, got {len(body.queries)}", field="queries")
    runtime = call.runtime
    started = runtime.monotonic()
    turn = asyncio.Semaphore(QUERIES_AT_ONCE)

    async def one(item: vector_bodies.BatchVectorQuery) -> tuple[Any, Hits, float]:
        async with turn:
            begun = runtime.monotonic()
            hits = await call.services.vectors.query(call.path["ns"], item.query())
            return item.id, hits, (runtime.monotonic() - begun) * 1e3

    answers = await asyncio.gather(*(one(item) for item in body.queries))
    return vector_shapes.batch_hits(answers, (runtime.monotonic() - started) * 1e3)


async def delete(call: Call, body: vector_bodies.DeleteVectorsBody) -> dict[str, Any]:
    vectors, name = call.services.vectors, call.path["ns"]
    if body.delete_all:
        count = await vectors.delete_where(name, None)
    elif body.ids:
        count = await vectors.delete_ids(name, body.ids)
    elif body.filter:
        count = await vectors.delete_where(name, body.filter)
    else:
        raise InvalidRequestError("one of ids, filter and delete_all is required", field="ids")
    return {"deleted_count": count}


async def delete_one(call: Call, _: None) -> dict[str, Any]:
    name, vector_id = call.path["ns"], call.path["vector_id"]
    count = await call.services.vectors.delete_ids(name, [vector_id])
    if count == 0:
        raise VectorNotFoundError(f"no vector {vector_id} in namespace {name}")
    return {"deleted_count": count}


async def fetch(call: Call, body: vector_bodies.FetchBody) -> dict[str, Any]:
    return vector_shapes.fetched(
        await call.services.vectors.fetch(call.path["ns"], body.ids, body.include_values, body.include_metadata)
    )


async def bulk_update(call: Call, body: vector_bodies.BulkUpdateBody) -> dict[str, Any]:
    if not body.update:
        raise InvalidRequestError("must name at least one field", field="update")
    count = await call.services.vectors.update_where(call.path["ns"], _where(body.filter), body.update)
    return {"updated": count, "failed": 0, "errors": []}


async def bulk_delete(call: Call, body: vector_bodies.BulkDeleteBody) -> dict[str, Any]:
    count = await call.services.vectors.delete_where(call.path["ns"], _where(body.filter))
    return {"deleted": count, "failed": 0, "errors": []}


def _where(conditions: dict[str, Any]) -> dict[str, Any]:
    """An empty filter would match everything: it must be meant, and `delete_all` is how to mean it."""
    if not conditions:
        raise InvalidRequestError("must hold at least one condition", field="filter")
    return conditions


async def count(call: Call, body: vector_bodies.CountBody) -> dict[str, Any]:
    name = call.path["ns"]
    return {"count": await call.services.vectors.count(name, body.filter or None), "namespace": name}


async def multi_vector(call: Call, body: vector_bodies.MultiVectorBody) -> dict[str, Any]:
    return vector_shapes.multi_vector_hits(await call.services.vectors.multi_vector(call.path["ns"], body.query()))


async def unified(call: Call, body: vector_bodies.UnifiedBody) -> dict[str, Any]:
    return vector_shapes.unified_hits(await call.services.vectors.unified(call.path["ns"], body.query()))


async def aggregate(call: Call, body: vector_bodies.AggregateBody) -> dict[str, Any]:
    return vector_shapes.aggregated(await call.services.vectors.aggregate(call.path["ns"], body.query()))


async def export(call: Call, body: vector_bodies.ExportBody) -> dict[str, Any]:
    hits, total = await call.services.vectors.export(call.path["ns"], body.query())
    return vector_shapes.exported(hits, total)


async def explain(call: Call, body: ExplainQuery) -> dict[str, Any]:
    return await call.services.vectors.explain(call.path["ns"], body)
