"""Composed queries over records: rank expressions, aggregation, and the explanation of a query. Called by the API.

A rank expression is the contract's grammar, parsed once into a small tree::

    ["ANN", v] | ["vector", "ANN", v]      approximate neighbours       [field, "kNN", v] | ["kNN", v]   exact neighbours
    [field, "BM25", text]                  keywords                     [field, "asc" | "desc"]          order by a field
    ["Sum", [e...]]  ["Max", [e...]]  ["Product", weight, e]            composition

Each leaf is searched to a fixed depth; a record that a leaf did not return counts 0 there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dakera_cluster.memory.core import check_choice, check_range, check_top_k, vector_space
from dakera_cluster.memory.plan import Plan
from dakera_cluster.memory.requests import DEFAULT_SEARCH_TOP_K, AggregateQuery, ExplainQuery, UnifiedQuery
from dakera_cluster.memory.services import Aggregated, Hits
from dakera_cluster.memory.vectors import Vectors, where_of
from dakera_cluster.model import filters
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.rows import Kind, decode_document
from dakera_cluster.shard import ops
from dakera_cluster.shard.records import record_of
from dakera_cluster.shard.search import fold

LEAF_DEPTH = 200
LEAF_DEPTH_PER_RESULT = 4
MAX_EXPRESSION_DEPTH = 8
MAX_LEAVES = 16
MAX_ORDERED = 100_000
RRF_K = 60
MAX_GROUPS = 10_000
FUNCTIONS = ("Count", "Sum", "Avg", "Min", "Max")
SCORE_FIELD = "score"

Scores = dict[str, float]


class Queries(Vectors):
    """Implements `services.VectorService`: the records of `Vectors` and the composed queries."""

    async def unified(self, namespace: str, query: UnifiedQuery) -> Hits:
        """Rank by an expression. Raises InvalidRequestError naming the place in ``rank_by``."""
        vector_space(namespace)
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        check_choice(query.fusion, ("linear", "rrf"), "fusion_method")
        where = where_of(query.filter)
        await self._core.require(namespace)
        started = time.perf_counter()
        run = _Run(
            self, namespace, where, max(LEAF_DEPTH, LEAF_DEPTH_PER_RESULT * k), query.distance_metric, query.fusion
        )
        scores = await run.evaluate(query.rank_by, "rank_by", 0)
        ordered = sorted(scores, key=lambda row_id: (-scores[row_id], row_id))[:k]
        bodies = await self._core.router.read(namespace, Kind.DOCUMENT, ordered)
        hits = [
            self.hit(i, scores[i], bodies[i], query.include_vectors, query.include_metadata, False)
            for i in ordered
            if i in bodies
        ]
        for hit in hits:
            hit.distance = run.distance_of(hit.id, hit.score)
        return Hits(hits, run.searched, (time.perf_counter() - started) * 1000)

    async def aggregate(self, namespace: str, query: AggregateQuery) -> Aggregated:
        """Totals, or groups in order of their keys. Raises InvalidRequestError."""
        vector_space(namespace)
        _check_functions(query.aggregate_by)
        check_range(query.limit, "limit", 1, MAX_GROUPS)
        where = where_of(query.filter)
        await self._core.require(namespace)
        fields = sorted({spec[1] for spec in query.aggregate_by.values() if len(spec) > 1})
        keys = query.group_by or []
        if query.vector is not None:
            groups = await self._nearest_groups(namespace, query, where, keys, fields)
        else:
            request = ops.Aggregate(0, 0, namespace, self._core.now_ms(), where, keys, fields, query.limit)
            groups = await self._core.router.aggregate(request)
        rows = [
            {**dict(zip(keys, group.key, strict=True)), **_values(query.aggregate_by, group)}
            for group in groups[: query.limit]
        ]
        if keys:
            return Aggregated(None, rows)
        empty = _values(query.aggregate_by, ops.Group([], 0, {}))
        return Aggregated(rows[0] if rows else empty, None)

    async def _nearest_groups(
        self, namespace: str, query: AggregateQuery, where: ops.Where | None, keys: list[str], fields: list[str]
    ) -> list[ops.Group]:
        vector = await self.check_query(namespace, query.vector or [], "vector")
        k = check_top_k(query.top_k, LEAF_DEPTH)
        found, _ = await self.search(namespace, ops.Mode.VECTOR, k, vector=vector, where=where)
        groups: dict[bytes, ops.Group] = {}
        for hit in found.hits:
            record = {**record_of(namespace, hit.id, decode_document(hit.body).fields), SCORE_FIELD: hit.score}
            values = {f: v for f in fields if isinstance(v := filters.resolve(record, f), int | float)}
            key = [None if (v := filters.resolve(record, name)) is filters.MISSING else v for name in keys]
            fold(groups, key, {f: [1, v, v, v] for f, v in values.items() if not isinstance(v, bool)})
        return list(groups.values())

    async def explain(self, namespace: str, query: ExplainQuery) -> dict[str, Any]:
        """How a query would be answered, from the index as it stands; with ``execute`` also what running it took."""
        vector_space(namespace)
        kinds = ("vector_search", "full_text_search", "hybrid_search", "multi_vector", "batch_query")
        check_choice(query.query_type, kinds, "query_type")
        k = check_top_k(query.top_k, DEFAULT_SEARCH_TOP_K)
        where = where_of(query.filter)
        vector = None if query.vector is None else await self.check_query(namespace, query.vector, "vector")
        await self._core.require(namespace)
        parts = await self._core.router.describe(namespace)
        plan = Plan(namespace, query, k, parts, where)
        matched = None
        if where is not None:
            matched = (await self._core.select(namespace, where, limit=0)).matched
        answer = plan.describe(matched)
        if query.execute:
            if vector is None and not query.text_query:
                raise InvalidRequestError("expected a vector or a text_query to execute", field="vector")
            mode = ops.Mode.VECTOR if query.text_query is None else ops.Mode.TEXT if vector is None else ops.Mode.HYBRID
            found, spent_ms = await self.search(
                namespace, mode, k, vector=vector, text=query.text_query, where=where, metric=query.distance_metric
            )
            answer["actual_stats"] = {
                "execution_time_ms": spent_ms,
                "results_returned": len(found.hits),
                "vectors_scanned": found.searched,
                "vectors_after_filter": found.matched,
                "index_lookups": len(parts),
                "cache_hits": len(parts),
                "cache_misses": 0,
                "memory_used_bytes": sum(p.memory_bytes for p in parts),
            }
        return answer


class _Run:
    """Evaluation of one rank expression."""

    def __init__(
        self,
        vectors: Vectors,
        namespace: str,
        where: ops.Where | None,
        depth: int,
        metric: str | None,
        fusion: str | None,
    ) -> None:
        self._vectors = vectors
        self._namespace = namespace
        self._where = where
        self._depth = depth
        self._metric = metric
        self._fusion = fusion
        self._leaves = 0
        self._distances: Scores = {}
        self.searched = 0

    def distance_of(self, row_id: str, score: float) -> float:
        """The vector distance where a vector leaf found the record, else 1 - score."""
        return self._distances.get(row_id, 1.0 - score)

    async def evaluate(self, expression: Any, path: str, depth: int) -> Scores:
        """id -> score of every record the expression reaches."""
        if not isinstance(expression, list | tuple) or not expression:
            raise InvalidRequestError('expected a rank expression such as ["vector", "ANN", [...]]', field=path)
        if depth > MAX_EXPRESSION_DEPTH:
            raise InvalidRequestError(f"nested deeper than {MAX_EXPRESSION_DEPTH}", field=path)
        head = expression[0]
        if head in ("Sum", "Max"):
            if len(expression) != 2 or not isinstance(expression[1], list | tuple) or not expression[1]:
                raise InvalidRequestError(f'expected ["{head}", [expression, ...]]', field=path)
            parts = [await self.evaluate(e, f"{path}[1][{i}]", depth + 1) for i, e in enumerate(expression[1])]
            return self._summed(parts) if head == "Sum" else _largest(parts)
        if head == "Product":
            if len(expression) != 3 or isinstance(expression[1], bool) or not isinstance(expression[1], int | float):
                raise InvalidRequestError('expected ["Product", weight, expression]', field=path)
            part = await self.evaluate(expression[2], f"{path}[2]", depth + 1)
            return {row_id: expression[1] * score for row_id, score in part.items()}
        self._leaves += 1
        if self._leaves > MAX_LEAVES:
            raise InvalidRequestError(f"more than {MAX_LEAVES} parts", field="rank_by")
        return await self._leaf(list(expression), path)

    def _summed(self, parts: Sequence[Scores]) -> Scores:
        total: Scores = {}
        for part in parts:
            scores = _reciprocal(part) if self._fusion == "rrf" else part
            for row_id, score in scores.items():
                total[row_id] = total.get(row_id, 0.0) + score
        return total

    async def _leaf(self, leaf: list[Any], path: str) -> Scores:
        if len(leaf) == 2 and leaf[0] in ("ANN", "kNN"):
            leaf = ["vector", *leaf]
        if len(leaf) == 2 and isinstance(leaf[0], str) and leaf[1] in ("asc", "desc"):
            return await self._ordered(leaf[0], descending=leaf[1] == "desc")
        if len(leaf) != 3 or not isinstance(leaf[0], str) or leaf[1] not in ("ANN", "kNN", "BM25"):
            raise InvalidRequestError(
                'expected [field, "ANN"|"kNN"|"BM25", value] or [field, "asc"|"desc"]', field=path
            )
        if leaf[1] == "BM25":
            if not isinstance(leaf[2], str) or not leaf[2].strip():
                raise InvalidRequestError("expected a text", field=f"{path}[2]")
            found, _ = await self._vectors.search(
                self._namespace, ops.Mode.TEXT, self._depth, text=leaf[2], where=self._where
            )
            self.searched = max(self.searched, found.searched)
            return {hit.id: hit.score for hit in found.hits}
        return await self._near(leaf, path)

    async def _near(self, leaf: list[Any], path: str) -> Scores:
        if not isinstance(leaf[2], list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in leaf[2]):
            raise InvalidRequestError("expected an array of numbers", field=f"{path}[2]")
        vector = await self._vectors.check_query(self._namespace, leaf[2], f"{path}[2]")
        found, _ = await self._vectors.search(
            self._namespace,
            ops.Mode.VECTOR,
            self._depth,
            vector=vector,
            where=self._where,
            metric=self._metric,
            exact=leaf[1] == "kNN",
        )
        self.searched = max(self.searched, found.searched)
        for hit in found.hits:
            self._distances[hit.id] = min(self._distances.get(hit.id, np.inf), 1.0 - hit.score)
        return {hit.id: hit.score for hit in found.hits}

    async def _ordered(self, field: str, *, descending: bool) -> Scores:
        """Records by the value of a field, first ones highest; records without it are left out."""
        page = await self._vectors._core.select(self._namespace, self._where, limit=MAX_ORDERED)
        self.searched = max(self.searched, page.total)
        values: list[tuple[Any, str]] = []
        for row_id, body in zip(page.ids, page.bodies, strict=True):
            value = filters.resolve(record_of(self._namespace, row_id, decode_document(body).fields), field)
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                values.append((value, row_id))
        numbers = [pair for pair in values if not isinstance(pair[0], str)]
        texts = [pair for pair in values if isinstance(pair[0], str)]
        ordered = sorted(numbers or texts, key=lambda pair: pair[1])
        ordered.sort(key=lambda pair: pair[0], reverse=descending)
        return {row_id: 1.0 - place / (len(ordered) + 1) for place, (_, row_id) in enumerate(ordered)}


def _largest(parts: Sequence[Scores]) -> Scores:
    best: Scores = {}
    for part in parts:
        for row_id, score in part.items():
            best[row_id] = max(best.get(row_id, score), score)
    return best


def _reciprocal(scores: Scores) -> Scores:
    ordered = sorted(scores, key=lambda row_id: (-scores[row_id], row_id))
    return {row_id: 1.0 / (RRF_K + place) for place, row_id in enumerate(ordered, 1)}


def _check_functions(wanted: dict[str, list[str]]) -> None:
    if not wanted:
        raise InvalidRequestError("expected at least one aggregation", field="aggregate_by")
    for name, spec in wanted.items():
        path = f"aggregate_by.{name}"
        if not spec or spec[0] not in FUNCTIONS:
            raise InvalidRequestError(f"expected one of {', '.join(FUNCTIONS)} as function", field=path)
        if len(spec) > 2 or (spec[0] != "Count" and len(spec) != 2):
            raise InvalidRequestError(f'expected ["{spec[0]}", field]', field=path)


def _values(wanted: dict[str, list[str]], group: ops.Group) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, spec in wanted.items():
        count, total, low, high = group.values.get(spec[1], (0, 0, None, None)) if len(spec) > 1 else (0, 0, None, None)
        match spec[0]:
            case "Count":
                values[name] = group.count if len(spec) == 1 else count
            case "Sum":
                values[name] = total
            case "Avg":
                values[name] = total / count if count else None
            case "Min":
                values[name] = low
            case _:
                values[name] = high
    return values
