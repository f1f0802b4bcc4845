"""Types of the answers, for the OpenAPI document: what `shapes` sends, field by field. Nothing is made from these at run
time; the tests hold every live answer against them."""

from __future__ import annotations

from typing import Any

import msgspec

from dakera_cluster.memory.reranking import RerankReport
from dakera_cluster.memory.services import ConsolidationStep
from dakera_cluster.model.memories import FeedbackEntry, Memory, Session


class Answer(msgspec.Struct, kw_only=True):
    """Base: keyword-only."""


class ErrorBody(Answer, kw_only=True):
    """Every 4xx and 5xx."""

    error: str
    code: str
    status: int
    details: Any = None
    ambiguous: bool = False


class Done(Answer, kw_only=True):
    success: bool
    status: str
    message: str


class Health(Answer, kw_only=True):
    service: str
    status: str
    healthy: bool
    version: str
    uptime_seconds: int
    uptime: float


class Live(Answer, kw_only=True):
    status: str
    alive: bool
    version: str


class Check(Answer, kw_only=True):
    status: str
    message: str | None


class Ready(Answer, kw_only=True):
    ready: bool
    version: str
    checks: dict[str, Check]
    components: dict[str, bool]


class OpsStats(Answer, kw_only=True):
    version: str
    total_vectors: int
    namespace_count: int
    uptime_seconds: int
    timestamp: int
    state: str


class Component(Answer, kw_only=True):
    healthy: bool
    message: str
    last_check: int


class SystemInfo(Answer, kw_only=True):
    version: str
    rust_version: str
    python_version: str
    uptime_seconds: int
    pid: int


class Resources(Answer, kw_only=True):
    memory_bytes: int
    thread_count: int
    open_fds: int
    cpu_percent: float


class Diagnostics(Answer, kw_only=True):
    system: SystemInfo
    resources: Resources
    components: dict[str, Component]
    active_jobs: int


class JobStarted(Answer, kw_only=True):
    job_id: str
    message: str


class Kpis(Answer, kw_only=True):
    recall_latency_p50_ms: float
    recall_latency_p99_ms: float
    store_latency_p50_ms: float
    api_error_rate_5xx_pct: float
    active_agents_count: int
    session_count_week: int
    cross_agent_network_node_count: int
    memory_retention_7d_pct: float


class RecalledMemory(Memory, kw_only=True):
    """A memory, flat, and once more under ``memory``."""

    memory: Memory
    score: float
    weighted_score: float | None = None
    smart_score: float | None = None
    vector_score: float | None = None
    text_score: float | None = None
    depth: int | None = None
    explain: dict[str, Any] | None = None


class OneMemory(Memory, kw_only=True):
    memory: Memory
    memory_id: str
    score: float = 1.0


class StoredMemory(OneMemory, kw_only=True):
    ok: bool
    embedding_time_ms: int | None = None
    warnings: list[str] | None = None


class BatchStoredMemory(Answer, kw_only=True):
    id: str
    content: str
    agent_id: str
    tags: list[str]
    importance: float
    created_at: int
    session_id: str | None
    memory_type: str


class StoredBatch(Answer, kw_only=True):
    stored: list[BatchStoredMemory]
    stored_count: int
    total_embedding_time_ms: int
    warnings: list[str] | None = None


class Recall(Answer, kw_only=True):
    memories: list[RecalledMemory]
    total_found: int
    associated_memories: list[RecalledMemory] | None = None
    query_embedding_time_ms: float
    search_time_ms: float
    explain: dict[str, Any] | None = None
    rerank_report: RerankReport | None = None


class MemoryPage(Answer, kw_only=True):
    memories: list[RecalledMemory]
    total_found: int
    total: int


class Matching(Answer, kw_only=True):
    memories: list[Memory]
    total: int
    filtered: int


class Forgotten(Answer, kw_only=True):
    deleted_count: int
    status: str


class ImportanceSet(Answer, kw_only=True):
    status: str
    updated: int
    importance: float
    memory_id: str | None = None
    memory: Memory | None = None


class ImportancePatched(OneMemory, kw_only=True):
    new_importance: float
    signal: str
    status: str


class Feedback(Answer, kw_only=True):
    status: str
    memory_id: str
    signal: str
    new_importance: float
    updated_importance: float


class FeedbackHistory(Answer, kw_only=True):
    memory_id: str
    entries: list[FeedbackEntry]


class Consolidation(Answer, kw_only=True):
    consolidated_count: int
    removed_count: int
    memories_removed: int
    new_memories: list[str]
    source_memory_ids: list[str]
    consolidated_memory: Memory | None
    log: list[ConsolidationStep]


class Compression(Answer, kw_only=True):
    agent_id: str
    memories_before: int
    memories_after: int
    removed_count: int | None = None
    duration_ms: float
    memories_scanned: int
    clusters_found: int
    summaries_created: int
    originals_deprecated: int
    summary_ids: list[str]
    deprecated_ids: list[str]


class SessionStarted(Answer, kw_only=True):
    session: Session
    id: str
    session_id: str


class SessionEnded(SessionStarted, kw_only=True):
    memory_count: int


class Sessions(Answer, kw_only=True):
    sessions: list[Session]
    total: int


class AgentStats(Answer, kw_only=True):
    agent_id: str
    total_memories: int
    memory_count: int
    memories_by_type: dict[str, int]
    total_sessions: int
    session_count: int
    active_sessions: int
    avg_importance: float | None
    oldest_memory_at: str | None
    newest_memory_at: str | None
    storage_bytes: int
    top_tags: list[str]


class WakeUp(Answer, kw_only=True):
    agent_id: str
    memories: list[Memory]
    total_available: int


class Key(Answer, kw_only=True):
    key_id: str
    id: str
    name: str
    scope: str
    permissions: list[str]
    namespaces: list[str] | None
    created_at: int
    expires_at: int | None
    active: bool
    last_used: int | None


class Keys(Answer, kw_only=True):
    keys: list[Key]
    total: int


class NewKey(Key, kw_only=True):
    key: str
    warning: str


class RotatedKey(NewKey, kw_only=True):
    new_key: str


class DeactivatedKey(Key, kw_only=True):
    success: bool
    status: str
    message: str


class NamespaceKey(Key, kw_only=True):
    namespace: str


class NamespaceNewKey(NewKey, kw_only=True):
    namespace: str


class NamespaceKeys(Answer, kw_only=True):
    namespace: str
    keys: list[NamespaceKey]
    total: int


class EndpointUsage(Answer, kw_only=True):
    endpoint: str
    requests: int
    avg_latency_ms: float


class NamespaceUsage(Answer, kw_only=True):
    namespace: str
    requests: int
    vectors_accessed: int


class KeyUsage(Answer, kw_only=True):
    key_id: str
    total_requests: int
    successful_requests: int
    failed_requests: int
    rate_limited_requests: int
    bytes_transferred: int
    avg_latency_ms: float
    last_used: int | None
    by_endpoint: list[EndpointUsage]
    requests_by_endpoint: dict[str, int]
    by_namespace: list[NamespaceUsage]


class NamespaceKeyUsage(KeyUsage, kw_only=True):
    namespace: str
