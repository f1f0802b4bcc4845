"""What clients send, where it is not a request of the services as it stands: bodies and queries of the routes.

Each struct takes every spelling that an official client uses and knows how to become the services' request; nothing else
knows of the spellings. Called by the handlers; the types appear in the route table and in the OpenAPI document.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from dakera_cluster.memory.requests import (
    BatchFilter,
    ConsolidateQuery,
    ForgetQuery,
    Int,
    MemoryChanges,
    NamespaceSpec,
    RecallQuery,
    Request,
    StoreItem,
)
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.ids import AGENT_PREFIX, agent_of

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
DEFAULT_BATCH_LIMIT = 100


def required(value: Any, field: str) -> Any:
    """``value``, or InvalidRequestError when it was not given."""
    if value is None:
        raise InvalidRequestError("is required", field=field)
    return value


class StoreBody(StoreItem, kw_only=True, frozen=True):
    agent_id: str


class NamespaceStoreBody(StoreItem, kw_only=True, frozen=True):
    """The blog's short form: the namespace plays the agent."""

    namespace: str

    @property
    def agent_id(self) -> str:
        return agent_of(self.namespace) or self.namespace


class StoreBatchBody(Request, kw_only=True, frozen=True):
    agent_id: str
    memories: list[StoreItem]
    lang: str | None = None


class RecallBody(RecallQuery, kw_only=True, frozen=True):
    agent_id: str


class UpdateBody(MemoryChanges, kw_only=True, frozen=True):
    agent_id: str | None = None


class BatchRecallBody(BatchFilter, kw_only=True, frozen=True):
    """The filter stands under ``filter`` (which wins) or flat beside ``agent_id``."""

    agent_id: str
    filter: BatchFilter | None = None
    limit: Natural | None = None

    def conditions(self) -> BatchFilter:
        return self.filter if self.filter is not None and given(self.filter) else flat_filter(self)


class BatchForgetBody(BatchFilter, kw_only=True, frozen=True):
    agent_id: str
    filter: BatchFilter | None = None

    def conditions(self) -> BatchFilter:
        """At least one condition, or InvalidRequestError: an empty filter would forget everything."""
        conditions = self.filter if self.filter is not None and given(self.filter) else flat_filter(self)
        if not given(conditions):
            raise InvalidRequestError("must hold at least one condition", field="filter")
        return conditions


def given(conditions: BatchFilter) -> bool:
    """Whether any condition stands in it; an empty array counts as not given."""
    return any(getattr(conditions, name) not in (None, []) for name in BatchFilter.__struct_fields__)


def flat_filter(body: BatchFilter) -> BatchFilter:
    return BatchFilter(**{name: getattr(body, name) for name in BatchFilter.__struct_fields__})


class ForgetBody(ForgetQuery, kw_only=True, frozen=True):
    agent_id: str
    memory_id: str | None = None

    def conditions(self) -> ForgetQuery:
        ids = list(self.memory_ids or ())
        if self.memory_id is not None:
            ids.append(self.memory_id)
        return ForgetQuery(
            memory_ids=ids or None,
            tags=self.tags or None,
            session_id=self.session_id,
            before_timestamp=self.before_timestamp,
        )


class AgentImportanceBody(Request, kw_only=True, frozen=True):
    importance: float
    memory_id: str | None = None
    memory_ids: list[str] | None = None

    def ids(self) -> list[str]:
        ids = list(self.memory_ids or ())
        if self.memory_id is not None:
            ids.append(self.memory_id)
        if not ids:
            raise InvalidRequestError("is required", field="memory_id")
        return ids


class ImportanceBody(AgentImportanceBody, kw_only=True, frozen=True):
    agent_id: str


class ImportancePatch(Request, kw_only=True, frozen=True):
    agent_id: str
    importance: float


class ConsolidateBody(ConsolidateQuery, kw_only=True, frozen=True):
    agent_id: str


class AgentFeedbackBody(Request, kw_only=True, frozen=True):
    memory_id: str
    signal: str | None = None
    feedback: str | None = None
    relevance_score: float | None = None

    def verdict(self) -> str:
        return str(required(self.signal if self.signal is not None else self.feedback, "signal"))


class FeedbackBody(AgentFeedbackBody, kw_only=True, frozen=True):
    agent_id: str


class MemoryFeedbackBody(Request, kw_only=True, frozen=True):
    signal: str
    agent_id: str | None = None


class SessionStartBody(Request, kw_only=True, frozen=True):
    agent_id: str
    metadata: dict[str, Any] | None = None


class SessionEndBody(Request, kw_only=True, frozen=True):
    summary: str | None = None


class NamespaceBody(Request, kw_only=True, frozen=True):
    """Create or configure; the name may come from the path."""

    name: str | None = None
    namespace: str | None = None
    dimension: Int | None = None
    dimensions: Int | None = None
    index_type: str | None = None
    distance: str | None = None
    metadata: dict[str, Any] | None = None
    embedding_model: str | None = None

    def spec(self, name: str | None = None) -> NamespaceSpec:
        return NamespaceSpec(
            name=name or required(self.name or self.namespace, "name"),
            dimension=self.dimension if self.dimension is not None else self.dimensions,
            index_type=self.index_type,
            distance=self.distance,
            metadata=self.metadata,
            embedding_model=self.embedding_model,
        )


class WarmBody(Request, kw_only=True, frozen=True):
    namespace: str | None = None
    vector_ids: list[str] | None = None
    priority: str = "normal"
    target_tier: str = "l2"
    background: bool = False
    ttl_hint_seconds: Int | None = None
    access_pattern: str = "random"
    max_vectors: Natural | None = None


class CompactBody(Request, kw_only=True, frozen=True):
    namespace: str | None = None
    force: bool = False


class RebalanceBody(Request, kw_only=True, frozen=True):
    shard_ids: list[str] | None = None
    dry_run: bool = False


class MemberBody(Request, kw_only=True, frozen=True):
    action: str


class MaintenanceBody(Request, kw_only=True, frozen=True):
    reason: str
    node_ids: list[str] | None = None
    reject_requests: bool = False
    duration_minutes: int | None = None


class AgentQuery(Request, kw_only=True, frozen=True):
    agent_id: str | None = None


class RequiredAgentQuery(Request, kw_only=True, frozen=True):
    agent_id: str


class MemorySearchQuery(Request, kw_only=True, frozen=True):
    """GET search of the docs: ``query`` or ``q``, ``agent_id`` or ``namespace``, ``limit`` or ``top_k``."""

    query: str | None = None
    q: str | None = None
    agent_id: str | None = None
    namespace: str | None = None
    limit: Natural | None = None
    top_k: Natural | None = None

    def agent(self) -> str:
        namespace = self.namespace.removeprefix(AGENT_PREFIX) if self.namespace else None
        return str(required(self.agent_id or namespace, "agent_id"))

    def search(self) -> RecallQuery:
        return RecallQuery(
            query=required(self.query if self.query is not None else self.q, "query"),
            top_k=self.top_k if self.top_k is not None else self.limit,
        )


class PageQuery(Request, kw_only=True, frozen=True):
    limit: Natural | None = None
    offset: Natural = 0


class AgentPageQuery(PageQuery, kw_only=True, frozen=True):
    agent_id: str | None = None


class AgentMemoriesQuery(PageQuery, kw_only=True, frozen=True):
    memory_type: str | None = None


class AgentSessionsQuery(PageQuery, kw_only=True, frozen=True):
    active_only: bool = False


class SessionsQuery(AgentSessionsQuery, kw_only=True, frozen=True):
    agent_id: str | None = None


class WakeUpQuery(Request, kw_only=True, frozen=True):
    top_n: Natural = 20
    min_importance: float = 0.0


class KeyBody(Request, kw_only=True, frozen=True):
    """``POST /admin/keys``: scope and days; ``POST /v1/keys``: permissions and an ISO-8601 time."""

    name: str
    scope: str | None = None
    permissions: list[str] | None = None
    namespaces: list[str] | None = None
    expires_in_days: Int | None = None
    expires_at: str | Int | None = None


class NamespaceKeyBody(Request, kw_only=True, frozen=True):
    name: str
    scope: str | None = None
    extra_namespaces: list[str] | None = None
    expires_in_days: Int | None = None
