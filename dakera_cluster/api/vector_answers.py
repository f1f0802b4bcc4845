"""Types of the answers about namespaces, vectors and texts: the counterpart of `answers`."""

from __future__ import annotations

from typing import Any

import msgspec

from dakera_cluster.api.answers import Answer, Done


class Namespace(Answer, kw_only=True):
    """``name`` and ``dimensions`` repeat ``namespace`` and ``dimension``, except to the Rust client."""

    namespace: str
    name: str = ""
    dimension: int | None
    dimensions: int | None = None
    vector_count: int
    distance: str
    index_type: str
    created_at: int | None
    updated_at: int | None
    metadata: dict[str, Any] | None
    estimated_storage_bytes: int


class ConfiguredNamespace(Namespace, kw_only=True):
    created: bool


class Namespaces(Answer, kw_only=True):
    """Objects to the Python clients, names to all others."""

    namespaces: list[Namespace | str]


class DeletedNamespace(Done, kw_only=True):
    namespace: str
    vectors_deleted: int


class NamespaceStats(Answer, kw_only=True):
    total_vectors: int
    dimensions: int
    index_type: str
    memory_usage_bytes: int
    disk_usage_bytes: int
    build_progress: float
    is_trained: bool
    is_built: bool
    size_bytes: int
    indexed_vectors: int
    last_rebuild: int | None


class Warmed(Answer, kw_only=True):
    success: bool
    entries_warmed: int
    entries_skipped: int
    bytes_warmed: int
    message: str
    target_tier: str
    priority: str


class Upserted(Answer, kw_only=True):
    upserted_count: int


class Deleted(Answer, kw_only=True):
    deleted_count: int


class Indexed(Answer, kw_only=True):
    indexed_count: int


class BulkUpdated(Answer, kw_only=True):
    updated: int
    failed: int
    errors: list[str]


class BulkDeleted(Answer, kw_only=True):
    deleted: int
    failed: int
    errors: list[str]


class Counted(Answer, kw_only=True):
    count: int
    namespace: str


class VectorHit(Answer, kw_only=True):
    id: str
    score: float
    values: list[float] | None = None
    vector: list[float] | None = None
    metadata: dict[str, Any] | None = None


class Timed(Answer, kw_only=True):
    total_searched: int
    search_time_ms: float


class VectorHits(Timed, kw_only=True):
    """``results`` is called ``matches`` to Rust clients up to 0.11.54."""

    results: list[VectorHit] = msgspec.field(default_factory=list)
    matches: list[VectorHit] = msgspec.field(default_factory=list)
    next_cursor: str | None = None
    has_more: bool = False


class OneBatchHits(Timed, kw_only=True):
    id: str | None = None
    results: list[VectorHit]
    latency_ms: float


class BatchHits(Answer, kw_only=True):
    results: list[OneBatchHits]
    total_latency_ms: float
    query_count: int


class FetchedVector(Answer, kw_only=True):
    id: str
    values: list[float]
    metadata: dict[str, Any] | None


class Fetched(Answer, kw_only=True):
    vectors: list[FetchedVector]


class MultiVectorHit(VectorHit, kw_only=True):
    mmr_score: float | None = None
    original_rank: int | None = None


class MultiVectorHits(Timed, kw_only=True):
    results: list[MultiVectorHit]
    computed_query_vector: list[float] | None


class UnifiedHit(VectorHit, kw_only=True):
    dist: float = msgspec.field(name="$dist")


class UnifiedHits(Timed, kw_only=True):
    results: list[UnifiedHit]
    next_cursor: str | None


class Aggregation(Answer, kw_only=True):
    aggregations: dict[str, Any] | None = None
    aggregation_groups: list[dict[str, Any]] | None = None
    groups: list[dict[str, Any]] | None = None


class ExportedVector(Answer, kw_only=True):
    id: str
    values: list[float] | None = None
    metadata: dict[str, Any] | None = None
    ttl_seconds: int | None = None


class Exported(Answer, kw_only=True):
    vectors: list[ExportedVector]
    next_cursor: str | None
    total_count: int
    returned_count: int


class Explained(Answer, kw_only=True):
    query_type: str
    namespace: str
    index_selection: dict[str, Any]
    stages: list[dict[str, Any]]
    cost_estimate: dict[str, Any]
    actual_stats: dict[str, Any] | None = None
    recommendations: list[dict[str, Any]]
    summary: str
    query_params: dict[str, Any]


class TextHit(Answer, kw_only=True):
    id: str
    score: float
    content: str | None
    text: str | None
    highlights: list[str] | None
    metadata: dict[str, Any] | None


class TextHits(Timed, kw_only=True):
    """``results`` is called ``matches`` to Rust clients up to 0.11.54."""

    results: list[TextHit] = msgspec.field(default_factory=list)
    matches: list[TextHit] = msgspec.field(default_factory=list)


class TextStats(Answer, kw_only=True):
    namespace: str
    document_count: int
    unique_terms: int
    term_count: int
    avg_doc_length: float


class TextQueryHit(Answer, kw_only=True):
    id: str
    score: float
    text: str | None = None
    metadata: dict[str, Any] | None = None
    vector: list[float] | None = None


class TextQueryHits(Answer, kw_only=True):
    results: list[TextQueryHit]
    model: str
    embedding_time_ms: int
    search_time_ms: int


class BatchTextQueryHits(Answer, kw_only=True):
    results: list[list[TextQueryHit]]
    model: str
    embedding_time_ms: int
    search_time_ms: int


class HybridHit(VectorHit, kw_only=True):
    vector_score: float
    text_score: float
    content: str | None = None
    text: str | None = None


class HybridHits(Timed, kw_only=True):
    """``results`` is called ``matches`` to Rust clients up to 0.11.54."""

    results: list[HybridHit] = msgspec.field(default_factory=list)
    matches: list[HybridHit] = msgspec.field(default_factory=list)
