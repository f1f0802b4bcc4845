"""Vector records: upsert, query, fetch, delete, aggregate, export. Called by the API.

A record is a document with a vector, metadata and, when it came as text, its text. A namespace gets its dimension from its
creation or its first vector. In an agent's namespace the same calls see the memories.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from dakera_cluster.cluster import levels
from dakera_cluster.cluster.catalog import NamespaceRecord
from dakera_cluster.index.flat import Metric
from dakera_cluster.memory.core import (
    PAGE,
    Core,
    check_choice,
    check_metadata,
    check_range,
    check_top_k,
    check_vector,
    vector_space,
)
from dakera_cluster.memory.events import DELETED, UPSERTED
from dakera_cluster.memory.requests import (
    DEFAULT_SEARCH_TOP_K,
    ExportQuery,
    MultiVectorQuery,
    VectorItem,
    VectorQuery,
)
from dakera_cluster.memory.services import Hit, Hits
from dakera_cluster.model import filters
from dakera_cluster.model.errors import ConflictError, DimensionMismatchError, InvalidRequestError, VectorNotFoundError
from dakera_cluster.model.ids import agent_of, check_id
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import decode_document
from dakera_cluster.protocols.quorum import ReadLevel
from dakera_cluster.shard import ops
from dakera_cluster.shard.records import record_of, vector_bytes, vector_of

MAX_VECTORS = 10_000
MAX_EXPORT = 10_000
MAX_TTL_S = 100 * 365 * 86_400
MMR_PREFETCH_FACTOR = 4


class Vectors:
    """Records of namespaces; the base of `query.Queries`, which adds the composed queries."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def upsert(self, namespace: str, vectors: list[VectorItem]) -> int:
        """Write whole records. Raises InvalidRequestError, DimensionMismatchError (nothing written)."""
        vector_space(namespace)
        if not 1 <= len(vectors) <= MAX_VECTORS:
            raise InvalidRequestError(f"expected 1 to {MAX_VECTORS} vectors, got {len(vectors)}", field="vectors")
        now_s = self._core.now_s
        documents: dict[str, dict[str, Any]] = {}
        dimension: int | None = None
        for position, item in enumerate(vectors):
            path = f"vectors[{position}]"
            check_id(item.id, f"{path}.id")
            vector = check_vector(item.values, f"{path}.values")
            dimension = dimension or len(vector)
            if len(vector) != dimension:
                raise DimensionMismatchError(f"expected {dimension} numbers, got {len(vector)}", field=f"{path}.values")
            check_metadata(item.metadata, f"{path}.metadata")
            documents[item.id] = {
                Field.VECTOR: vector_bytes(vector),
                Field.METADATA: item.metadata,
                Field.CREATED: now_s,
                **expiry(item.ttl_seconds, now_s, f"{path}.ttl_seconds"),
            }
        assert dimension is not None
        await self.adopt_dimension(namespace, dimension)
        await self._core.put(namespace, list(documents.items()))
        self._core.events.vectors_mutated(namespace, UPSERTED, len(documents))
        return len(documents)

    async def adopt_dimension(self, namespace: str, dimension: int | None) -> NamespaceRecord:
        """The namespace's record, made or completed with ``dimension``. Raises DimensionMismatchError."""
        record = await self._core.catalog.lookup(namespace)
        if agent_of(namespace) is not None:
            record = self._core.catalog.effective(namespace)
            expected = self._core.embedder.dimension if self._core.embedder.available else None
        else:
            expected = record.dimension if record is not None else None
        if dimension is not None and expected is not None and dimension != expected:
            raise DimensionMismatchError(
                f"expected {expected} numbers, the dimension of namespace {namespace!r}, got {dimension}",
                field="vectors",
            )
        if record is None:
            try:
                made = await self._core.catalog.create(NamespaceRecord(name=namespace, dimension=dimension))
            except ConflictError:
                return await self.adopt_dimension(namespace, dimension)
            self._core.events.namespace_created(namespace, dimension)
            return made
        if record.dimension is None and dimension is not None and agent_of(namespace) is None:
            return await self._core.catalog.edit(
                namespace, lambda r: msgspec.structs.replace(r, dimension=r.dimension or dimension)
            )
        return record

    async def check_query(self, namespace: str, vector: Sequence[float], field: str) -> np.ndarray[Any, Any]:
        """A query vector of the namespace's dimension. Raises NamespaceNotFoundError, DimensionMismatchError."""
        query = check_vector(vector, field)
        expected = await self.dimension(namespace)
        if expected is not None and len(query) != expected:
            raise DimensionMismatchError(f"expected {expected} numbers, got {len(query)}", field=field)
        return query

    async def dimension(self, namespace: str) -> int | None:
        """The dimension of an existing namespace, None while nothing has decided it."""
        record = await self._core.catalog.lookup(namespace)
        if record is not None and record.dimension is not None:
            return record.dimension
        await self._core.require(namespace)
        if agent_of(namespace) is not None and self._core.embedder.available:
            return self._core.embedder.dimension
        return next((p.dimension for p in await self._core.router.describe(namespace) if p.dimension), None)

    async def query(self, namespace: str, query: VectorQuery) -> Hits:
        """Nearest neighbours. Raises NamespaceNotFoundError, DimensionMismatchError, InvalidRequestError."""
        vector_space(namespace)
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        take_consistency(query.consistency, query.max_staleness_ms)
        vector = await self.check_query(namespace, query.vector, "vector")
        metric = Metric.of(query.distance_metric, "distance_metric").value if query.distance_metric else None
        found = await self.search(
            namespace, ops.Mode.VECTOR, k, vector=vector, where=where_of(query.filter), metric=metric
        )
        return self.answer(found, values=query.include_values, metadata=query.include_metadata)

    async def search(
        self,
        namespace: str,
        mode: ops.Mode,
        k: int,
        *,
        vector: Any = None,
        text: str | None = None,
        where: ops.Where | None = None,
        metric: str | None = None,
        vector_weight: float = 0.5,
        fusion: ops.Fusion = ops.Fusion.MINMAX,
        exact: bool = False,
        highlights: bool = False,
    ) -> tuple[ops.Hits, float]:
        """Hits of every part, and how long the search took in milliseconds."""
        started = time.perf_counter()
        now_ms = self._core.now_ms()
        encoded = vector_bytes(vector) if vector is not None else None

        def request(shard: int, version: int) -> ops.Request:
            return ops.Search(
                shard, version, namespace, now_ms, mode, k, encoded, text, where, metric, exact, fusion,
                vector_weight, self._core.settings.rrf_k, highlights,
            )  # fmt: skip

        hits = await self._core.router.search(namespace, request, k)
        return hits, (time.perf_counter() - started) * 1000

    def answer(
        self, found: tuple[ops.Hits, float], *, values: bool = False, metadata: bool = True, text: bool = False
    ) -> Hits:
        hits, spent_ms = found
        return Hits(
            [self.hit(h.id, h.score, h.body, values, metadata, text, h) for h in hits.hits], hits.searched, spent_ms
        )

    def hit(
        self,
        row_id: str,
        score: float,
        body: bytes,
        values: bool,
        metadata: bool,
        text: bool,
        found: ops.Hit | None = None,
    ) -> Hit:
        """What a client sees of a document."""
        fields = decode_document(body).fields
        vector = vector_of(fields) if values else None
        shown = Hit(id=row_id, score=score)
        if vector is not None:
            shown.values = vector.tolist()
        if text:
            shown.text = fields.get(Field.TEXT)
        if metadata:
            shown.metadata = _metadata(row_id, fields)
        shown.ttl_seconds = fields.get(Field.TTL)
        if found is not None:
            shown.vector_score, shown.text_score, shown.highlights = (
                found.vector_score,
                found.text_score,
                found.highlights,
            )
        return shown

    async def delete_ids(self, namespace: str, ids: list[str]) -> int:
        """Delete records by id; unknown ids are passed over."""
        vector_space(namespace)
        if len(ids) > MAX_VECTORS:
            raise InvalidRequestError(f"expected at most {MAX_VECTORS} ids, got {len(ids)}", field="ids")
        for position, row_id in enumerate(ids):
            check_id(row_id, f"ids[{position}]")
        await self._core.require(namespace)
        present = list(await self._core.latest(namespace, ids))
        await self._core.delete(namespace, present)
        self._core.events.vectors_mutated(namespace, DELETED, len(present))
        return len(present)

    async def delete_one(self, namespace: str, row_id: str) -> None:
        """Raises VectorNotFoundError."""
        if not await self.delete_ids(namespace, [row_id]):
            raise VectorNotFoundError(f"id: vector {row_id!r} does not exist in namespace {namespace!r}")

    async def delete_where(self, namespace: str, where: dict[str, Any] | None) -> int:
        """Delete what a filter matches; None is everything."""
        vector_space(namespace)
        condition = where_of(where)
        await self._core.require(namespace)
        ids = await self._core.every_id(namespace, condition)
        await self._core.delete(namespace, ids)
        self._core.events.vectors_mutated(namespace, DELETED, len(ids))
        return len(ids)

    async def fetch(self, namespace: str, ids: list[str], include_values: bool, include_metadata: bool) -> list[Hit]:
        """Records by id, in the order asked for; unknown ids are left out."""
        vector_space(namespace)
        if len(ids) > MAX_VECTORS:
            raise InvalidRequestError(f"expected at most {MAX_VECTORS} ids, got {len(ids)}", field="ids")
        for position, row_id in enumerate(ids):
            check_id(row_id, f"ids[{position}]")
        await self._core.require(namespace)
        documents = await self._core.documents(namespace, ids)
        found: list[Hit] = []
        for row_id in dict.fromkeys(ids):
            if row_id in documents:
                fields = documents[row_id].fields
                vector = vector_of(fields) if include_values else None
                found.append(
                    Hit(
                        id=row_id,
                        score=1.0,
                        values=vector.tolist() if vector is not None else [],
                        metadata=_metadata(row_id, fields) if include_metadata else None,
                    )
                )
        return found

    async def update_where(self, namespace: str, where: dict[str, Any], update: dict[str, Any]) -> int:
        """Merge ``update`` into the metadata of what a filter matches; null removes a key."""
        vector_space(namespace)
        condition = where_of(where)
        if condition is None:
            raise InvalidRequestError("expected a filter with at least one condition", field="filter")
        if not update:
            raise InvalidRequestError("expected at least one metadata field", field="update")
        check_metadata(update, "update")
        await self._core.require(namespace)
        ids = await self._core.every_id(namespace, condition)
        for start in range(0, len(ids), PAGE):
            documents = await self._core.latest(namespace, ids[start : start + PAGE])
            changes: list[tuple[str, dict[str, Any]]] = []
            for row_id, document in documents.items():
                merged = {**(document.fields.get(Field.METADATA) or {}), **update}
                kept = {key: value for key, value in merged.items() if value is not None}
                changes.append((row_id, {Field.METADATA: kept or None}))
            await self._core.patch(namespace, changes)
        return len(ids)

    async def count(self, namespace: str, where: dict[str, Any] | None) -> int:
        """How many live records match."""
        vector_space(namespace)
        condition = where_of(where)
        await self._core.require(namespace)
        return (await self._core.select(namespace, condition, limit=0)).matched

    async def export(self, namespace: str, query: ExportQuery) -> tuple[Hits, int]:
        """One page in id order and the number of records that match in all."""
        vector_space(namespace)
        check_range(query.limit, "limit", 1, MAX_EXPORT)
        condition = where_of(query.filter)
        await self._core.require(namespace)
        page = await self._core.select(namespace, condition, limit=query.limit, after=query.cursor)
        hits = [
            self.hit(i, 1.0, body, query.include_vectors, query.include_metadata, True)
            for i, body in zip(page.ids, page.bodies, strict=True)
        ]
        last = page.ids[-1] if len(page.ids) == query.limit and page.matched > query.limit else None
        return Hits(hits, page.total, next_cursor=last), page.matched

    async def multi_vector(self, namespace: str, query: MultiVectorQuery) -> Hits:
        """Neighbours of a weighted sum of positive minus negative vectors, optionally diversified (MMR)."""
        vector_space(namespace)
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        check_range(query.mmr_lambda, "mmr_lambda", 0, 1)
        take_consistency(query.consistency, None)
        target = await self._combined(namespace, query)
        metric = Metric.of(query.distance_metric, "distance_metric").value if query.distance_metric else None
        depth = check_top_k(query.mmr_prefetch_k, MMR_PREFETCH_FACTOR * k, "mmr_prefetch_k") if query.enable_mmr else k
        found, spent_ms = await self.search(
            namespace, ops.Mode.VECTOR, max(depth, k), vector=target, where=where_of(query.filter), metric=metric
        )
        kept = [h for h in found.hits if query.score_threshold is None or h.score >= query.score_threshold]
        answer = self.answer(
            (ops.Hits(kept, found.searched, found.matched), spent_ms),
            values=query.include_vectors,
            metadata=query.include_metadata,
        )
        if query.enable_mmr:
            answer.hits = _diversified(
                answer.hits, [vector_of(decode_document(h.body).fields) for h in kept], k, query.mmr_lambda
            )
        answer.hits = answer.hits[:k]
        answer.computed_query_vector = [float(value) for value in target]
        return answer

    async def _combined(self, namespace: str, query: MultiVectorQuery) -> np.ndarray[Any, Any]:
        if not query.positive:
            raise InvalidRequestError("expected at least one vector", field="positive_vectors")
        total: np.ndarray[Any, Any] | None = None
        for sign, vectors, weights, name in (
            (1.0, query.positive, query.positive_weights, "positive"),
            (-1.0, query.negative or [], query.negative_weights, "negative"),
        ):
            if weights is not None and len(weights) != len(vectors):
                raise InvalidRequestError(
                    f"expected {len(vectors)} weights, got {len(weights)}", field=f"{name}_weights"
                )
            for position, values in enumerate(vectors):
                vector = await self.check_query(namespace, values, f"{name}_vectors[{position}]")
                weight = sign * (weights[position] if weights is not None else 1.0)
                total = weight * vector if total is None else total + weight * vector
        assert total is not None
        if not np.isfinite(total).all():
            raise InvalidRequestError("the weighted sum is not finite", field="positive_weights")
        return total / (sum(abs(w) for w in query.positive_weights or [1.0] * len(query.positive)) or 1.0)


def _diversified(hits: list[Hit], vectors: list[Any], k: int, trade_off: float) -> list[Hit]:
    """Maximal marginal relevance (Carbonell, Goldstein 1998): trade_off x relevance - (1 - trade_off) x redundancy."""
    rows = [v / (np.linalg.norm(v) or 1.0) if v is not None else None for v in vectors]
    chosen: list[int] = []
    rest = list(range(len(hits)))
    while rest and len(chosen) < k:
        scored: list[tuple[float, int]] = []
        for i in rest:
            near = max(
                (float(rows[i] @ rows[j]) for j in chosen if rows[i] is not None and rows[j] is not None), default=0.0
            )
            scored.append((trade_off * hits[i].score - (1 - trade_off) * near, i))
        score, best = max(scored, key=lambda pair: (pair[0], -pair[1]))
        hits[best].mmr_score, hits[best].original_rank = score, best
        chosen.append(best)
        rest.remove(best)
    return [hits[i] for i in chosen]


def where_of(expression: dict[str, Any] | None) -> ops.Where | None:
    """The shard's condition of a filter expression, checked. Raises InvalidRequestError naming the field."""
    if not expression:
        return None
    filters.parse(expression)
    return ops.Where(filter=expression)


def take_consistency(consistency: str | None, max_staleness_ms: int | None) -> None:
    """Note the consistency a query asks for; it wins over a header's. Raises InvalidRequestError."""
    check_choice(consistency, tuple(ReadLevel), "consistency")
    if consistency is not None:
        levels.read_level.set(ReadLevel(consistency))
    if max_staleness_ms is not None:
        check_range(max_staleness_ms, "staleness_config.max_staleness_ms", 1, 86_400_000)
        levels.max_staleness_ms.set(max_staleness_ms)


def expiry(ttl_seconds: int | None, now_s: int, field: str) -> dict[str, Any]:
    """Fields of a time to live. Raises InvalidRequestError."""
    if ttl_seconds is None:
        return {}
    if not 1 <= ttl_seconds <= MAX_TTL_S:
        raise InvalidRequestError(f"expected 1 to {MAX_TTL_S} seconds", field=field)
    return {Field.TTL: ttl_seconds, Field.EXPIRES: now_s + ttl_seconds}


def _metadata(row_id: str, fields: dict[str, Any]) -> dict[str, Any] | None:
    if Field.TYPE not in fields:
        metadata: dict[str, Any] | None = fields.get(Field.METADATA)
        return metadata
    record = record_of("", row_id, fields)
    return {key: value for key, value in record.items() if key not in ("metadata", "id") and value is not None}
