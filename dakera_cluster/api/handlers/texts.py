"""Full text, text inference and hybrid queries of a namespace."""

from __future__ import annotations

from typing import Any

from dakera_cluster.api import vector_bodies, vector_shapes
from dakera_cluster.api.route import Call
from dakera_cluster.memory.requests import TextQuery
from dakera_cluster.model.errors import InvalidRequestError

MAX_QUERIES = 1_000


async def index(call: Call, body: vector_bodies.IndexBody) -> dict[str, Any]:
    return {"indexed_count": await call.services.texts.index(call.path["ns"], body.items())}


async def search(call: Call, body: TextQuery) -> dict[str, Any]:
    return vector_shapes.text_hits(call.client, await call.services.texts.search(call.path["ns"], body))


async def delete(call: Call, body: vector_bodies.IdsBody) -> dict[str, Any]:
    return {"deleted_count": await call.services.texts.delete(call.path["ns"], body.ids)}


async def stats(call: Call, _: None) -> dict[str, Any]:
    name = call.path["ns"]
    return vector_shapes.text_stats(name, await call.services.texts.stats(name))


async def upsert_text(call: Call, body: vector_bodies.UpsertTextBody) -> Any:
    return await call.services.texts.upsert_text(call.path["ns"], body.documents, body.model)


async def query_text(call: Call, body: vector_bodies.QueryTextBody) -> dict[str, Any]:
    (hits,) = await call.services.texts.query_text(call.path["ns"], body.query())
    return vector_shapes.text_query(hits)


async def batch_query_text(call: Call, body: vector_bodies.BatchQueryTextBody) -> dict[str, Any]:
    if not 0 < len(body.queries) <= MAX_QUERIES:
        raise InvalidRequestError(f"must hold 1 to {MAX_QUERIES} queries, got {len(body.queries)}", field="queries")
    return vector_shapes.text_queries(await call.services.texts.query_text(call.path["ns"], body.query()))


async def hybrid(call: Call, body: vector_bodies.HybridBody) -> dict[str, Any]:
    return vector_shapes.hybrid_hits(call.client, await call.services.texts.hybrid(call.path["ns"], body.hybrid()))
