"""What can be asked of the memory services, as typed requests.

The API decodes bodies straight into these structs (unknown fields are ignored, ``null`` means absent), so a field's name,
type and default stand here once. Ranges are checked by the services, which raise InvalidRequestError naming the field.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

DEFAULT_RECALL_TOP_K = 5
DEFAULT_SEARCH_TOP_K = 10
MAX_TOP_K = 10_000
MAX_BATCH = 1_000

Int = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""An integer every JSON client can carry exactly."""
Consistency = Literal["strong", "eventual", "bounded_staleness"]


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """Base of all requests: keyword-only, immutable."""


class StoreItem(Request, frozen=True):
    content: str
    memory_type: str | None = None
    importance: float | None = None
    tags: list[str] | None = None
    session_id: str | None = None
    metadata: dict[str, Any] | None = None
    ttl_seconds: Int | None = None
    expires_at: Int | None = None
    embedding: list[float] | None = None
    id: str | None = None
    lang: str | None = None
    event_time: float | str | None = None


class MemoryChanges(Request, frozen=True):
    content: str | None = None
    importance: float | None = None
    tags: list[str] | None = None
    metadata: dict[str, Any] | None = None
    memory_type: str | None = None


class RecallQuery(Request, frozen=True):
    """Recall and search. ``top_k`` None means the route's default."""

    query: str
    top_k: Int | None = None
    memory_type: str | None = None
    min_importance: float | None = None
    session_id: str | None = None
    tags: list[str] | None = None
    include_associated: bool | None = None
    associated_memories_cap: Int | None = None
    associated_memories_depth: Int | None = None
    associated_memories_min_weight: float | None = None
    since: str | None = None
    until: str | None = None
    routing: str | None = None
    rerank: bool | str | None = None
    fusion: str | None = None
    vector_weight: float | None = None
    iterations: Int | None = None
    neighborhood: bool | None = None
    filter: dict[str, Any] | None = None
    explain: bool | None = None
    consistency: Consistency | None = None
    staleness_config: dict[str, Any] | None = None


class BatchFilter(Request, frozen=True):
    """`BatchMemoryFilter` of the contract: conditions are joined by AND, bounds are inclusive."""

    tags: list[str] | None = None
    min_importance: float | None = None
    max_importance: float | None = None
    created_after: Int | None = None
    created_before: Int | None = None
    memory_type: str | None = None
    session_id: str | None = None


class ForgetQuery(Request, frozen=True):
    """At least one condition must be given; an empty array counts as not given."""

    memory_ids: list[str] | None = None
    tags: list[str] | None = None
    session_id: str | None = None
    before_timestamp: Int | None = None


class ConsolidateConfig(Request, frozen=True):
    algorithm: str | None = None
    min_samples: Int | None = None
    eps: float | None = None


class ConsolidateQuery(Request, frozen=True):
    """With ``memory_ids`` (at least two) these are merged into one and kept; without, clusters are found by
    ``threshold`` and their sources removed. ``dry_run`` changes nothing."""

    memory_ids: list[str] | None = None
    memory_type: str | None = None
    threshold: float | None = None
    dry_run: bool = False
    config: ConsolidateConfig | None = None


class VectorItem(Request, frozen=True):
    id: str
    values: list[float]
    metadata: dict[str, Any] | None = None
    ttl_seconds: Int | None = None


class VectorQuery(Request, frozen=True):
    vector: list[float]
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_values: bool = False
    include_metadata: bool = True
    distance_metric: str | None = None
    consistency: Consistency | None = None
    max_staleness_ms: Int | None = None


class MultiVectorQuery(Request, frozen=True):
    positive: list[list[float]]
    positive_weights: list[float] | None = None
    negative: list[list[float]] | None = None
    negative_weights: list[float] | None = None
    top_k: Int | None = None
    distance_metric: str | None = None
    score_threshold: float | None = None
    enable_mmr: bool = False
    mmr_lambda: float = 0.5
    mmr_prefetch_k: Int | None = None
    include_metadata: bool = True
    include_vectors: bool = False
    filter: dict[str, Any] | None = None
    consistency: Consistency | None = None


class UnifiedQuery(Request, frozen=True):
    """``rank_by`` is the expression grammar of the contract; the flat form is translated to it by the API.

    ``fusion`` says how a Sum joins its parts: ``linear`` (weighted scores, default) or ``rrf`` (reciprocal ranks)."""

    rank_by: list[Any]
    fusion: str | None = None
    rerank: bool = False
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_metadata: bool = True
    include_vectors: bool = False
    distance_metric: str | None = None


class AggregateQuery(Request, frozen=True):
    """``aggregate_by``: name -> [fn] or [fn, field]; fn one of Count, Sum, Avg, Min, Max.

    With ``vector`` only its ``top_k`` nearest are aggregated, and the pseudo field ``score`` is their similarity."""

    aggregate_by: dict[str, list[str]]
    vector: list[float] | None = None
    top_k: Int | None = None
    group_by: list[str] | None = None
    filter: dict[str, Any] | None = None
    limit: Int = 100


class ExportQuery(Request, frozen=True):
    cursor: str | None = None
    limit: Int = 1000
    filter: dict[str, Any] | None = None
    include_vectors: bool = True
    include_metadata: bool = True


class ExplainQuery(Request, frozen=True):
    query_type: str = "vector_search"
    vector: list[float] | None = None
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    text_query: str | None = None
    distance_metric: str | None = None
    execute: bool = False
    verbose: bool = False


class TextDocument(Request, frozen=True):
    id: str
    text: str
    metadata: dict[str, Any] | None = None
    ttl_seconds: Int | None = None


class TextQuery(Request, frozen=True):
    """Full-text search (BM25 with the query language: quotes, +/-, prefix*)."""

    query: str
    top_k: Int | None = None
    filter: dict[str, Any] | None = None


class QueryText(Request, frozen=True):
    """Text in, nearest vectors out; the node embeds the text."""

    texts: list[str]
    top_k: Int | None = None
    filter: dict[str, Any] | None = None
    include_text: bool = True
    include_vectors: bool = False
    model: str | None = None


class HybridQuery(Request, frozen=True):
    """``vector`` None means BM25 only. ``vector_weight`` 1 is all vector, 0 all text."""

    text: str
    vector: list[float] | None = None
    top_k: Int | None = None
    vector_weight: float = 0.5
    filter: dict[str, Any] | None = None
    include_metadata: bool = True
    include_vectors: bool = False


class NamespaceSpec(Request, frozen=True):
    name: str
    dimension: Int | None = None
    index_type: str | None = None
    distance: str | None = None
    metadata: dict[str, Any] | None = None
    embedding_model: str | None = None
