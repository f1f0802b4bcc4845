"""The services the API calls: their signatures, and the answers they give.

One protocol a subject. Each method checks ranges itself and raises the errors of `model.errors`; shapes of the wire
(aliases, unions, User-Agent rules) are the API's business alone. Implementations stand beside this file, one a subject.
``Level`` travels with a request: write level `one|quorum|all`, read consistency `eventual|bounded_staleness|strong`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from dakera_cluster.memory.events import Event, Subscription
from dakera_cluster.memory.requests import (
    AggregateQuery,
    BatchFilter,
    ConsolidateQuery,
    ExplainQuery,
    ExportQuery,
    ForgetQuery,
    HybridQuery,
    MemoryChanges,
    MultiVectorQuery,
    NamespaceSpec,
    QueryText,
    RecallQuery,
    StoreItem,
    TextDocument,
    TextQuery,
    UnifiedQuery,
    VectorItem,
    VectorQuery,
)
from dakera_cluster.memory.reranking import RerankReport
from dakera_cluster.model.keys import Access, KeyInfo, KeyUsage, Scope
from dakera_cluster.model.memories import FeedbackEntry, Memory, ScoredMemory, Session
from dakera_cluster.model.shardmap import MemberState


class Stored(msgspec.Struct):
    memories: list[Memory]
    embedding_time_ms: int
    warnings: list[str] = []


class Recalled(msgspec.Struct):
    memories: list[ScoredMemory]
    total_found: int
    associated: list[ScoredMemory] | None = None
    context: list[Memory] | None = None
    query_embedding_time_ms: float = 0.0
    search_time_ms: float = 0.0
    explain: dict[str, Any] | None = None
    rerank_report: RerankReport | None = None


class BatchRecalled(msgspec.Struct):
    memories: list[Memory]
    total: int
    filtered: int


class Importance(msgspec.Struct):
    memory: Memory
    old_importance: float
    signal: str


class FeedbackSummary(msgspec.Struct):
    agent_id: str
    upvotes: int
    downvotes: int
    flags: int
    total_feedback: int
    health_score: float


class AgentHealth(msgspec.Struct):
    agent_id: str
    health_score: float
    memory_count: int
    avg_importance: float


class AgentSummary(msgspec.Struct):
    agent_id: str
    memory_count: int
    session_count: int
    active_sessions: int


class AgentStats(msgspec.Struct):
    agent_id: str
    total_memories: int
    memories_by_type: dict[str, int]
    total_sessions: int
    active_sessions: int
    avg_importance: float | None
    oldest_memory_at: int | None
    newest_memory_at: int | None
    storage_bytes: int
    top_tags: list[str]


class ConsolidationStep(msgspec.Struct):
    step: str
    memories_before: int
    memories_after: int
    duration_ms: float


class Consolidated(msgspec.Struct, kw_only=True):
    """``summary`` is the merged memory when one was made; ``new_memories`` and the sources are ids."""

    consolidated_count: int = 0
    removed_count: int = 0
    new_memories: list[str] = []
    source_memory_ids: list[str] = []
    summary: Memory | None = None
    log: list[ConsolidationStep] = []


class Compressed(msgspec.Struct, kw_only=True):
    """``summary_ids`` are memories made, ``deprecated_ids`` the originals that left."""

    memories_before: int
    memories_after: int
    clusters_found: int = 0
    summary_ids: list[str] = []
    deprecated_ids: list[str] = []
    duration_ms: float = 0.0


class NewKey(msgspec.Struct, frozen=True):
    """A key just made or rotated: the only moment at which its text exists."""

    info: KeyInfo
    key: str


class Activity(msgspec.Struct):
    """Counts behind the KPI route."""

    active_agents: int
    sessions_this_week: int
    cross_agent_nodes: int
    retention_7d_pct: float


class NamespaceInfo(msgspec.Struct, kw_only=True):
    name: str
    vector_count: int
    dimension: int | None
    distance: str
    index_type: str
    created_at: int | None
    updated_at: int | None
    metadata: dict[str, Any] | None
    estimated_storage_bytes: int
    created: bool = False


class NamespaceStats(msgspec.Struct, kw_only=True):
    total_vectors: int
    dimension: int | None
    index_type: str
    memory_usage_bytes: int
    disk_usage_bytes: int
    is_trained: bool
    is_built: bool
    indexed_vectors: int
    build_progress: float
    last_rebuild: int | None


class Hit(msgspec.Struct, kw_only=True):
    """One answer of a vector, text or hybrid query. What was not asked for is None."""

    id: str
    score: float
    values: list[float] | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None
    vector_score: float | None = None
    text_score: float | None = None
    mmr_score: float | None = None
    original_rank: int | None = None
    distance: float | None = None
    highlights: list[str] | None = None
    ttl_seconds: int | None = None


class Hits(msgspec.Struct):
    hits: list[Hit]
    total_searched: int = 0
    search_time_ms: float = 0.0
    embedding_time_ms: float = 0.0
    model: str | None = None
    computed_query_vector: list[float] | None = None
    next_cursor: str | None = None


class TextUpserted(msgspec.Struct):
    upserted_count: int
    tokens_processed: int
    model: str
    embedding_time_ms: int


class TextStats(msgspec.Struct):
    document_count: int
    unique_terms: int
    avg_doc_length: float


class Aggregated(msgspec.Struct):
    """``groups`` holds the group keys and the values of one group flat; ``totals`` is set when nothing is grouped."""

    totals: dict[str, Any] | None
    groups: list[dict[str, Any]] | None


class MemoryService(Protocol):
    async def store(self, agent_id: str, items: list[StoreItem]) -> Stored: ...
    async def get(self, memory_id: str, agent_id: str | None, access: Access) -> Memory: ...
    async def update(self, memory_id: str, agent_id: str | None, changes: MemoryChanges, access: Access) -> Memory: ...
    async def set_importance(self, agent_id: str, memory_ids: list[str], importance: float) -> list[Importance]: ...
    async def forget(self, agent_id: str, query: ForgetQuery) -> int: ...
    async def forget_matching(self, agent_id: str, query: BatchFilter) -> int: ...
    async def recall_matching(self, agent_id: str, query: BatchFilter, limit: int) -> BatchRecalled: ...
    async def list(self, agent_id: str, memory_type: str | None, limit: int, offset: int) -> BatchRecalled: ...
    async def list_all(self, access: Access, limit: int, offset: int) -> BatchRecalled: ...


class RecallService(Protocol):
    async def recall(self, agent_id: str, query: RecallQuery) -> Recalled: ...
    async def search(self, agent_id: str, query: RecallQuery) -> Recalled: ...


class FeedbackService(Protocol):
    async def give(self, memory_id: str, agent_id: str | None, signal: str, access: Access) -> Importance: ...
    async def history(self, memory_id: str, agent_id: str | None, access: Access) -> list[FeedbackEntry]: ...
    async def summary(self, agent_id: str) -> FeedbackSummary: ...
    async def health(self, agent_id: str | None, access: Access) -> AgentHealth: ...


class SessionService(Protocol):
    async def start(self, agent_id: str, metadata: dict[str, Any] | None) -> Session: ...
    async def get(self, session_id: str) -> Session: ...
    async def end(self, session_id: str, summary: str | None) -> Session: ...
    async def list(
        self, agent_id: str | None, active_only: bool, limit: int | None, offset: int
    ) -> tuple[list[Session], int]: ...
    async def memories(self, session_id: str, limit: int, offset: int) -> BatchRecalled: ...


class AgentService(Protocol):
    async def list(self, access: Access) -> list[AgentSummary]: ...
    async def stats(self, agent_id: str) -> AgentStats: ...
    async def wake_up(self, agent_id: str, top_n: int, min_importance: float) -> BatchRecalled: ...


class NamespaceService(Protocol):
    async def list(self, access: Access) -> list[NamespaceInfo]: ...
    async def create(self, spec: NamespaceSpec) -> NamespaceInfo: ...
    async def configure(self, spec: NamespaceSpec) -> NamespaceInfo: ...
    async def get(self, namespace: str) -> NamespaceInfo: ...
    async def delete(self, namespace: str) -> int: ...
    async def stats(self, namespace: str) -> NamespaceStats: ...
    async def compact(self, namespace: str) -> None: ...
    async def flush(self, namespace: str) -> None: ...
    async def warm(self, namespace: str, ids: list[str] | None, limit: int | None) -> tuple[int, int, int]:
        """Load the namespace's views; returns (entries warmed, entries skipped, bytes)."""
        ...


class VectorService(Protocol):
    async def upsert(self, namespace: str, vectors: list[VectorItem]) -> int: ...
    async def query(self, namespace: str, query: VectorQuery) -> Hits: ...
    async def delete_ids(self, namespace: str, ids: list[str]) -> int: ...
    async def delete_where(self, namespace: str, where: dict[str, Any] | None) -> int: ...
    async def fetch(
        self, namespace: str, ids: list[str], include_values: bool, include_metadata: bool
    ) -> list[Hit]: ...
    async def update_where(self, namespace: str, where: dict[str, Any], update: dict[str, Any]) -> int: ...
    async def count(self, namespace: str, where: dict[str, Any] | None) -> int: ...
    async def multi_vector(self, namespace: str, query: MultiVectorQuery) -> Hits: ...
    async def unified(self, namespace: str, query: UnifiedQuery) -> Hits: ...
    async def aggregate(self, namespace: str, query: AggregateQuery) -> Aggregated: ...
    async def export(self, namespace: str, query: ExportQuery) -> tuple[Hits, int]:
        """One page in id order and the number of vectors that match in all."""
        ...

    async def explain(self, namespace: str, query: ExplainQuery) -> dict[str, Any]: ...


class TextService(Protocol):
    async def index(self, namespace: str, documents: list[TextDocument]) -> int: ...
    async def search(self, namespace: str, query: TextQuery) -> Hits: ...
    async def delete(self, namespace: str, ids: list[str]) -> int: ...
    async def stats(self, namespace: str) -> TextStats: ...
    async def upsert_text(self, namespace: str, documents: list[TextDocument], model: str | None) -> TextUpserted: ...
    async def query_text(self, namespace: str, query: QueryText) -> list[Hits]: ...
    async def hybrid(self, namespace: str, query: HybridQuery) -> Hits: ...


class ConsolidationService(Protocol):
    async def consolidate(self, agent_id: str, query: ConsolidateQuery) -> Consolidated: ...
    async def compress(self, agent_id: str) -> Compressed: ...


class KeyService(Protocol):
    """API keys, kept in the catalog; `authenticate` answers from memory and never waits for the bucket when it knows
    the key."""

    @property
    def any_keys(self) -> bool: ...
    async def authenticate(self, text: str) -> KeyInfo:
        """Raise InvalidApiKeyError or ApiKeyExpiredError unless ``text`` is a live key."""
        ...

    async def create(self, name: str, scope: Scope, namespaces: list[str] | None, expires_at: int | None) -> NewKey: ...
    async def list(self) -> list[KeyInfo]: ...
    async def get(self, key_id: str) -> KeyInfo: ...
    async def delete(self, key_id: str) -> None: ...
    async def deactivate(self, key_id: str) -> KeyInfo: ...
    async def rotate(self, key_id: str) -> NewKey: ...
    async def usage(self, key_id: str) -> KeyUsage: ...
    def note(
        self, key_id: str, *, route: str, namespace: str | None, status: int, sent_bytes: int, latency_ms: float
    ) -> None:
        """Count one request; never waits."""
        ...


class StatusService(Protocol):
    """What this node knows of itself; never waits for the network."""

    def ready(self) -> dict[str, tuple[bool, str | None]]:
        """check name -> (ok, reason when not)."""
        ...

    def totals(self) -> tuple[int, int]:
        """(vectors, namespaces) on this node."""
        ...

    @property
    def uptime_s(self) -> float: ...

    async def activity(self) -> Activity: ...


class ClusterService(Protocol):
    """The cluster as this node sees it; shapes are the wire contract's."""

    async def status(self) -> dict[str, Any]: ...
    async def nodes(self) -> list[dict[str, Any]]: ...
    async def replication(self) -> dict[str, Any]: ...
    async def shards(self) -> dict[str, Any]: ...
    async def digests(self) -> dict[str, Any]: ...
    async def rebalance(self, shard_ids: list[str], dry_run: bool) -> dict[str, Any]: ...
    async def set_member(self, node: str, state: MemberState) -> None: ...
    def maintenance_status(self) -> dict[str, Any]: ...
    async def maintenance_enable(
        self, reason: str, node_ids: list[str], reject_requests: bool, scheduled_end: int | None
    ) -> dict[str, Any]: ...
    async def maintenance_disable(self) -> dict[str, Any]: ...


class EventService(Protocol):
    """What happens on all nodes, for those who listen now; see `events`."""

    def subscribe(self, wanted: Callable[[Event], bool]) -> Subscription: ...
    async def ready(self) -> None:
        """Return when listeners here hear the other nodes, or when that cannot be waited for."""
        ...

    def connected(self) -> bytes:
        """The first event of every stream."""
        ...

    def system(self, kind: str, namespace: str, **fields: Any) -> None:
        """Tell of something about the node or a namespace; never waits."""
        ...

    def close(self) -> None:
        """End every stream."""
        ...


class Services(msgspec.Struct, frozen=True):
    """Everything the API needs, made by the composition root."""

    memories: MemoryService
    recall: RecallService
    feedback: FeedbackService
    sessions: SessionService
    agents: AgentService
    namespaces: NamespaceService
    vectors: VectorService
    texts: TextService
    consolidation: ConsolidationService
    keys: KeyService
    status: StatusService
    cluster: ClusterService
    events: EventService
