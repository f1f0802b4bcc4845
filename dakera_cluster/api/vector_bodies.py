"""Bodies of the vector, text and query routes of namespaces, with every spelling the official clients use.

The counterpart of `bodies` for what is stored under a namespace rather than remembered by an agent.
"""

from __future__ import annotations

from typing import Any

from dakera_cluster.api.bodies import Natural, required
from dakera_cluster.memory.requests import (
    AggregateQuery,
    Consistency,
    ExportQuery,
    HybridQuery,
    Int,
    MultiVectorQuery,
    QueryText,
    Request,
    TextDocument,
    UnifiedQuery,
    VectorItem,
    VectorQuery,
)
from dakera_cluster.model.errors import InvalidRequestError

DEFAULT_GROUP_LIMIT = 100
DEFAULT_EXPORT_LIMIT = 1_000
DEFAULT_MMR_LAMBDA = 0.5
DEFAULT_VECTOR_WEIGHT = 0.5


class UpsertBody(Request, kw_only=True, frozen=True):
    vectors: list[VectorItem]


class UpsertColumnsBody(Request, kw_only=True, frozen=True):
    ids: list[str]
    vectors: list[list[float]]
    attributes: dict[str, list[Any]] | None = None
    ttl_seconds: Int | None = None
    dimension: Int | None = None

    def items(self) -> list[VectorItem]:
        """One item a row; InvalidRequestError when the columns differ in length."""
        rows = len(self.ids)
        attributes = self.attributes or {}
        for field, column in {"vectors": self.vectors, **{f"attributes.{n}": c for n, c in attributes.items()}}.items():
            if len(column) != rows:
                raise InvalidRequestError(f"must have {rows} entries like ids, got {len(column)}", field=field)
        if self.dimension is not None:
            for at, vector in enumerate(self.vectors):
                if len(vector) != self.dimension:
                    raise InvalidRequestError(
                        f"must have {self.dimension} values, got {len(vector)}", field=f"vectors[{at}]"
                    )
        return [
            VectorItem(
                id=self.ids[row],
                values=self.vectors[row],
                metadata={name: column[row] for name, column in attributes.items()} or None,
                ttl_seconds=self.ttl_seconds,
            )
            for row in range(rows)
        ]


class StalenessConfig(Request, kw_only=True, frozen=True):
    max_staleness_ms: Natural = 5_000


class VectorQueryBody(Request, kw_only=True, frozen=True):
    vector: list[float]
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_values: bool = False
    include_vectors: bool = False
    include_metadata: bool = True
    distance_metric: str | None = None
    consistency: Consistency | None = None
    staleness_config: StalenessConfig | None = None

    def query(self) -> VectorQuery:
        return VectorQuery(
            vector=self.vector,
            top_k=self.top_k,
            filter=self.filter,
            include_values=self.include_values or self.include_vectors,
            include_metadata=self.include_metadata,
            distance_metric=self.distance_metric,
            consistency=self.consistency,
            max_staleness_ms=self.staleness_config.max_staleness_ms if self.staleness_config else None,
        )


class BatchVectorQuery(VectorQueryBody, kw_only=True, frozen=True):
    id: str | Int | None = None


class BatchQueryBody(Request, kw_only=True, frozen=True):
    queries: list[BatchVectorQuery]


class DeleteVectorsBody(Request, kw_only=True, frozen=True):
    ids: list[str] | None = None
    filter: dict[str, Any] | None = None
    delete_all: bool = False


class FetchBody(Request, kw_only=True, frozen=True):
    ids: list[str]
    include_values: bool = True
    include_metadata: bool = True


class BulkUpdateBody(Request, kw_only=True, frozen=True):
    filter: dict[str, Any]
    update: dict[str, Any]


class BulkDeleteBody(Request, kw_only=True, frozen=True):
    filter: dict[str, Any]


class CountBody(Request, kw_only=True, frozen=True):
    filter: dict[str, Any] | None = None


class IdsBody(Request, kw_only=True, frozen=True):
    ids: list[str]


class MultiVectorBody(Request, kw_only=True, frozen=True):
    positive_vectors: list[list[float]] | None = None
    positive: list[list[float]] | None = None
    positive_weights: list[float] | None = None
    negative_vectors: list[list[float]] | None = None
    negative: list[list[float]] | None = None
    negative_weights: list[float] | None = None
    top_k: Int | None = None
    distance_metric: str | None = None
    score_threshold: float | None = None
    enable_mmr: bool | None = None
    mmr_lambda: float | None = None
    mmr_prefetch_k: Int | None = None
    include_metadata: bool = True
    include_vectors: bool = False
    filter: dict[str, Any] | None = None
    consistency: Consistency | None = None

    def query(self) -> MultiVectorQuery:
        """A given ``mmr_lambda`` means MMR unless ``enable_mmr`` says otherwise."""
        positive = self.positive_vectors if self.positive_vectors is not None else self.positive
        return MultiVectorQuery(
            positive=required(positive, "positive_vectors"),
            positive_weights=self.positive_weights,
            negative=self.negative_vectors if self.negative_vectors is not None else self.negative,
            negative_weights=self.negative_weights,
            top_k=self.top_k,
            distance_metric=self.distance_metric,
            score_threshold=self.score_threshold,
            enable_mmr=self.enable_mmr if self.enable_mmr is not None else self.mmr_lambda is not None,
            mmr_lambda=self.mmr_lambda if self.mmr_lambda is not None else DEFAULT_MMR_LAMBDA,
            mmr_prefetch_k=self.mmr_prefetch_k,
            include_metadata=self.include_metadata,
            include_vectors=self.include_vectors,
            filter=self.filter,
            consistency=self.consistency,
        )


class UnifiedBody(Request, kw_only=True, frozen=True):
    """``rank_by``, or the flat form of the older Python client."""

    rank_by: list[Any] | None = None
    vector: list[float] | None = None
    text: str | None = None
    vector_weight: float | None = None
    text_weight: float | None = None
    fusion_method: str | None = None
    rerank: bool = False
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_metadata: bool = True
    include_vectors: bool = False
    distance_metric: str | None = None

    def query(self) -> UnifiedQuery:
        return UnifiedQuery(
            rank_by=self.rank_by if self.rank_by is not None else self._rank_by(),
            fusion=self.fusion_method,
            rerank=self.rerank,
            top_k=self.top_k,
            filter=self.filter,
            include_metadata=self.include_metadata,
            include_vectors=self.include_vectors,
            distance_metric=self.distance_metric,
        )

    def _rank_by(self) -> list[Any]:
        by_vector = ["vector", "ANN", self.vector]
        by_text = ["text", "BM25", self.text]
        if self.vector is None and self.text is None:
            raise InvalidRequestError("is required (or vector, or text)", field="rank_by")
        if self.text is None:
            return by_vector
        if self.vector is None:
            return by_text
        vector_weight, text_weight = self._weights()
        return ["Sum", [["Product", vector_weight, by_vector], ["Product", text_weight, by_text]]]

    def _weights(self) -> tuple[float, float]:
        if self.vector_weight is None and self.text_weight is None:
            return DEFAULT_VECTOR_WEIGHT, 1.0 - DEFAULT_VECTOR_WEIGHT
        if self.vector_weight is None:
            assert self.text_weight is not None
            return 1.0 - self.text_weight, self.text_weight
        return self.vector_weight, self.text_weight if self.text_weight is not None else 1.0 - self.vector_weight


_METRIC_FUNCTIONS = {"count": "Count", "sum": "Sum", "avg": "Avg", "mean": "Avg", "min": "Min", "max": "Max"}


class AggregateBody(Request, kw_only=True, frozen=True):
    """``aggregate_by``, or the older Python client's ``metrics`` (``count``, ``avg_price``, ...)."""

    aggregate_by: dict[str, list[str]] | None = None
    group_by: list[str] | str | None = None
    filter: dict[str, Any] | None = None
    limit: Natural | None = None
    vector: list[float] | None = None
    metrics: list[str] | None = None
    top_k: Int | None = None
    top_groups: Natural | None = None

    def query(self) -> AggregateQuery:
        limit = self.limit if self.limit is not None else self.top_groups
        return AggregateQuery(
            aggregate_by=self.aggregate_by if self.aggregate_by is not None else self._metrics(),
            vector=self.vector,
            top_k=self.top_k,
            group_by=[self.group_by] if isinstance(self.group_by, str) else self.group_by or None,
            filter=self.filter,
            limit=limit if limit is not None else DEFAULT_GROUP_LIMIT,
        )

    def _metrics(self) -> dict[str, list[str]]:
        functions: dict[str, list[str]] = {}
        for at, metric in enumerate(self.metrics or ["count"]):
            name, _, field = metric.partition("_")
            function = _METRIC_FUNCTIONS.get(name.lower())
            if function is None or (function != "Count" and not field):
                raise InvalidRequestError(
                    f"must be count, or sum_, avg_, min_ or max_ and a field, got {metric!r}", field=f"metrics[{at}]"
                )
            functions[metric] = [function, field] if field else [function]
        return functions


class ExportBody(Request, kw_only=True, frozen=True):
    cursor: str | None = None
    limit: Int | None = None
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_vectors: bool = True
    include_metadata: bool = True

    def query(self) -> ExportQuery:
        limit = self.limit if self.limit is not None else self.top_k
        return ExportQuery(
            cursor=self.cursor,
            limit=limit if limit is not None else DEFAULT_EXPORT_LIMIT,
            filter=self.filter,
            include_vectors=self.include_vectors,
            include_metadata=self.include_metadata,
        )


class IndexDocument(Request, kw_only=True, frozen=True):
    """``content`` (Python, JS) or ``text`` (Rust, MCP)."""

    id: str
    content: str | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None
    ttl_seconds: Int | None = None


class IndexBody(Request, kw_only=True, frozen=True):
    documents: list[IndexDocument]

    def items(self) -> list[TextDocument]:
        return [
            TextDocument(
                id=document.id,
                text=required(
                    document.text if document.text is not None else document.content, f"documents[{at}].content"
                ),
                metadata=document.metadata,
                ttl_seconds=document.ttl_seconds,
            )
            for at, document in enumerate(self.documents)
        ]


class UpsertTextBody(Request, kw_only=True, frozen=True):
    documents: list[TextDocument]
    model: str | None = None


class QueryTextBody(Request, kw_only=True, frozen=True):
    text: str
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_text: bool = True
    include_vectors: bool = False
    model: str | None = None

    def query(self) -> QueryText:
        return QueryText(
            texts=[self.text],
            top_k=self.top_k,
            filter=self.filter,
            include_text=self.include_text,
            include_vectors=self.include_vectors,
            model=self.model,
        )


class BatchQueryTextBody(Request, kw_only=True, frozen=True):
    queries: list[str]
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_text: bool = True
    include_vectors: bool = False
    model: str | None = None

    def query(self) -> QueryText:
        return QueryText(
            texts=self.queries,
            top_k=self.top_k,
            filter=self.filter,
            include_text=self.include_text,
            include_vectors=self.include_vectors,
            model=self.model,
        )


class HybridBody(Request, kw_only=True, frozen=True):
    """``vector_weight`` (1 = all vector) wins over ``alpha`` (1 = all text)."""

    text: str | None = None
    query: str | None = None
    vector: list[float] | None = None
    top_k: Int | None = None
    alpha: float | None = None
    vector_weight: float | None = None
    filter: dict[str, Any] | None = None
    include_metadata: bool = True
    include_vectors: bool = False

    def hybrid(self) -> HybridQuery:
        return HybridQuery(
            text=required(self.text if self.text is not None else self.query, "query"),
            vector=self.vector,
            top_k=self.top_k,
            vector_weight=self._vector_weight(),
            filter=self.filter,
            include_metadata=self.include_metadata,
            include_vectors=self.include_vectors,
        )

    def _vector_weight(self) -> float:
        if self.vector_weight is not None:
            return _fraction(self.vector_weight, "vector_weight")
        return DEFAULT_VECTOR_WEIGHT if self.alpha is None else 1.0 - _fraction(self.alpha, "alpha")


class AgentHybridBody(HybridBody, kw_only=True, frozen=True):
    agent_id: str


def _fraction(value: float, field: str) -> float:
    if not 0.0 <= value <= 1.0:
        raise InvalidRequestError(f"must be between 0 and 1, got {value:g}", field=field)
    return value
