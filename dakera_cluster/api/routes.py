"""The route table: every path of the HTTP surface, declared once.

From these rows come the aiohttp routes, the 404 and 405 answers, the scopes that are enforced, the OpenAPI document and
the tables of the tests. A row that an older client calls under another path carries that path as an alias, so that one
handler serves all of them. Admin rows answer under ``/admin`` and ``/v1/admin``.
"""

from __future__ import annotations

from typing import Any

from dakera_cluster.api import answers, bodies, vector_answers, vector_bodies
from dakera_cluster.api.handlers import cluster, events, keys, memory, ops, sessions
from dakera_cluster.api.jobs import Job
from dakera_cluster.api.route import Route, rows
from dakera_cluster.api.streams import CONTENT_TYPE
from dakera_cluster.api.vector_routes import NAMESPACES, TEXTS, VECTORS
from dakera_cluster.memory.requests import (
    ConsolidateQuery,
    MemoryChanges,
    RecallQuery,
    StoreItem,
)
from dakera_cluster.memory.services import AgentHealth, AgentSummary, FeedbackSummary
from dakera_cluster.model.keys import Scope
from dakera_cluster.model.memories import Session

_AGENT = "/v1/agents/{agent_id}"
_NS = "/v1/namespaces/{ns}"
_TEXT = "text/plain"


HEALTH = rows(
    "Health",
    ("GET", "/health", Scope.NONE, ops.health, "Is the process up", {"answer": answers.Health, "exempt": True}),
    ("GET", "/health/live", Scope.NONE, ops.live, "Is the event loop alive", {"answer": answers.Live, "exempt": True}),
    (
        "GET", "/health/ready", Scope.NONE, ops.ready, "Should it get traffic; 503 with the reasons when not",
        {"answer": answers.Ready, "exempt": True},
    ),
    (
        "GET", "/metrics", Scope.NONE, ops.prometheus, "Prometheus metrics",
        {"answer": str, "answer_type": _TEXT, "exempt": True},
    ),
)  # fmt: skip

OPS = rows(
    "Operations",
    ("GET", "/v1/ops/stats", Scope.READ, ops.stats, "Totals and state of the node", {"answer": answers.OpsStats}),
    (
        "GET", "/v1/ops/metrics", Scope.ADMIN, ops.prometheus, "Prometheus metrics, with a key",
        {"answer": str, "answer_type": _TEXT, "node_wide": True},
    ),
    (
        "GET", "/ops/diagnostics", Scope.ADMIN, ops.diagnostics, "System, resources and components",
        {"answer": answers.Diagnostics, "node_wide": True},
    ),
    ("GET", "/ops/jobs", Scope.ADMIN, ops.list_jobs, "Background jobs", {"answer": list[Job], "node_wide": True}),
    ("GET", "/ops/jobs/{job_id}", Scope.ADMIN, ops.get_job, "One background job", {"answer": Job, "node_wide": True}),
    (
        "POST", "/ops/compact", Scope.ADMIN, ops.compact, "Compact a namespace, or all",
        {"body": bodies.CompactBody, "answer": answers.JobStarted, "node_wide": True},
    ),
    (
        "POST", "/ops/shutdown", Scope.SUPER_ADMIN, ops.shutdown, "Drain and stop this node",
        {"answer": answers.Done, "node_wide": True},
    ),
    (
        "GET", "/v1/kpis", Scope.ADMIN, ops.kpis, "Key figures",
        {"answer": answers.Kpis, "aliases": ("/kpis",), "node_wide": True},
    ),
)  # fmt: skip

_BY_BODY: dict[str, Any] = {"namespace_from": "body.agent_id"}
_BY_AGENT: dict[str, Any] = {"namespace_from": "path.agent_id"}
_BY_QUERY: dict[str, Any] = {"namespace_from": "query.agent_id"}
_STORE: dict[str, Any] = {"answer": answers.StoredMemory, "operation": "store"}
_RECALL: dict[str, Any] = {"answer": answers.Recall, "operation": "recall"}

MEMORY = rows(
    "Memory",
    (
        "POST", "/v1/memory/store", Scope.WRITE, memory.store, "Store a memory",
        {"body": bodies.StoreBody, "aliases": ("/v1/memories",), **_STORE, **_BY_BODY},
    ),
    (
        "POST", f"{_AGENT}/memories", Scope.WRITE, memory.store, "Store a memory of the agent",
        {"body": StoreItem, "legacy": True, **_STORE, **_BY_AGENT},
    ),
    (
        "POST", "/v1/memory", Scope.WRITE, memory.store, "Store a memory; the namespace plays the agent",
        {"body": bodies.NamespaceStoreBody, **_STORE, **_BY_BODY},
    ),
    (
        "POST", "/v1/memories/store/batch", Scope.WRITE, memory.store_batch, "Store up to 1000 memories",
        {"body": bodies.StoreBatchBody, "answer": answers.StoredBatch, **_BY_BODY},
    ),
    (
        "POST", "/v1/memory/recall", Scope.READ, memory.recall, "Recall what fits a query",
        {"body": bodies.RecallBody, "aliases": ("/v1/memories/recall",), **_RECALL, **_BY_BODY},
    ),
    (
        "POST", f"{_AGENT}/memories/recall", Scope.READ, memory.recall, "Recall what fits a query",
        {"body": RecallQuery, "legacy": True, **_RECALL, **_BY_AGENT},
    ),
    (
        "POST", "/v1/memory/search", Scope.READ, memory.search, "Search memories, without reranking by default",
        {"body": bodies.RecallBody, **_RECALL, **_BY_BODY},
    ),
    (
        "POST", f"{_AGENT}/memories/search", Scope.READ, memory.search, "Search memories of the agent",
        {"body": RecallQuery, "legacy": True, **_RECALL, **_BY_AGENT},
    ),
    (
        "GET", "/v1/memory/search", Scope.READ, memory.search_get, "Search by query string",
        {"query": bodies.MemorySearchQuery, "aliases": ("/v1/memories/search",), **_RECALL},
    ),
    (
        "GET", "/v1/memories", Scope.READ, memory.list_memories, "List memories",
        {"query": bodies.AgentPageQuery, "answer": answers.MemoryPage, **_BY_QUERY},
    ),
    (
        "POST", "/v1/memories/recall/batch", Scope.READ, memory.recall_batch, "Memories that match a filter",
        {"body": bodies.BatchRecallBody, "answer": answers.Matching, **_BY_BODY},
    ),
    (
        "DELETE", "/v1/memories/forget/batch", Scope.ADMIN, memory.forget_batch, "Forget what matches a filter",
        {"body": bodies.BatchForgetBody, "answer": answers.Forgotten, **_BY_BODY},
    ),
    (
        "POST", "/v1/memory/forget", Scope.WRITE, memory.forget, "Forget by id, tag, session or age",
        {"body": bodies.ForgetBody, "answer": answers.Forgotten, **_BY_BODY},
    ),
    (
        "DELETE", f"{_AGENT}/memories/{{memory_id}}", Scope.WRITE, memory.forget_one, "Forget one memory",
        {"answer": answers.Forgotten, "legacy": True, **_BY_AGENT},
    ),
    (
        "GET", "/v1/memory/get/{memory_id}", Scope.READ, memory.get, "One memory",
        {"query": bodies.AgentQuery, "answer": answers.OneMemory, **_BY_QUERY},
    ),
    (
        "GET", f"{_AGENT}/memories/{{memory_id}}", Scope.READ, memory.get, "One memory of the agent",
        {"answer": answers.OneMemory, "legacy": True, **_BY_AGENT},
    ),
    (
        "PUT", "/v1/memory/update/{memory_id}", Scope.WRITE, memory.update, "Change a memory",
        {"body": bodies.UpdateBody, "query": bodies.AgentQuery, "answer": answers.OneMemory, **_BY_QUERY},
    ),
    (
        "PUT", f"{_AGENT}/memories/{{memory_id}}", Scope.WRITE, memory.update, "Change a memory of the agent",
        {"body": MemoryChanges, "answer": answers.OneMemory, "legacy": True, **_BY_AGENT},
    ),
    (
        "POST", "/v1/memory/importance", Scope.WRITE, memory.set_importance, "Set the importance",
        {"body": bodies.ImportanceBody, "answer": answers.ImportanceSet, **_BY_BODY},
    ),
    (
        "PUT", f"{_AGENT}/memories/importance", Scope.WRITE, memory.set_importance, "Set the importance of several",
        {"body": bodies.AgentImportanceBody, "answer": answers.ImportanceSet, "legacy": True, **_BY_AGENT},
    ),
    (
        "POST", "/v1/memory/consolidate", Scope.WRITE, memory.consolidate, "Merge similar memories",
        {"body": bodies.ConsolidateBody, "answer": answers.Consolidation, **_BY_BODY},
    ),
    (
        "POST", f"{_AGENT}/memories/consolidate", Scope.WRITE, memory.consolidate, "Merge similar memories",
        {"body": ConsolidateQuery, "answer": answers.Consolidation, "legacy": True, **_BY_AGENT},
    ),
    (
        "POST", "/v1/memory/feedback", Scope.WRITE, memory.feedback, "Say whether a memory helped",
        {"body": bodies.FeedbackBody, "answer": answers.Feedback, **_BY_BODY},
    ),
    (
        "POST", f"{_AGENT}/memories/feedback", Scope.WRITE, memory.feedback, "Say whether a memory helped",
        {"body": bodies.AgentFeedbackBody, "answer": answers.Feedback, "legacy": True, **_BY_AGENT},
    ),
    (
        "POST", "/v1/memory/hybrid", Scope.READ, memory.hybrid, "Hybrid query over an agent's memories",
        {"body": vector_bodies.AgentHybridBody, "answer": vector_answers.HybridHits, **_BY_BODY},
    ),
)  # fmt: skip

FEEDBACK = rows(
    "Feedback",
    (
        "POST", "/v1/memories/{memory_id}/feedback", Scope.WRITE, memory.memory_feedback, "Upvote, downvote or flag",
        {"body": bodies.MemoryFeedbackBody, "answer": answers.Feedback, **_BY_BODY},
    ),
    (
        "GET", "/v1/memories/{memory_id}/feedback", Scope.READ, memory.feedback_history, "The last 100 signals",
        {"query": bodies.AgentQuery, "answer": answers.FeedbackHistory, **_BY_QUERY},
    ),
    (
        "PATCH", "/v1/memories/{memory_id}/importance", Scope.WRITE, memory.patch_importance, "Set the importance",
        {"body": bodies.ImportancePatch, "answer": answers.ImportancePatched, **_BY_BODY},
    ),
    (
        "GET", f"{_AGENT}/feedback/summary", Scope.READ, memory.feedback_summary, "Signals of an agent, counted",
        {"answer": FeedbackSummary, **_BY_AGENT},
    ),
    (
        "GET", "/v1/feedback/health", Scope.READ, memory.feedback_health, "Mean importance of live memories",
        {"query": bodies.AgentQuery, "answer": AgentHealth, **_BY_QUERY},
    ),
)  # fmt: skip

SESSIONS = rows(
    "Sessions",
    (
        "POST", "/v1/sessions/start", Scope.WRITE, sessions.start, "Start a session",
        {"body": bodies.SessionStartBody, "answer": answers.SessionStarted, **_BY_BODY},
    ),
    ("GET", "/v1/sessions/{session_id}", Scope.READ, sessions.get, "One session", {"answer": Session}),
    (
        "POST", "/v1/sessions/{session_id}/end", Scope.WRITE, sessions.end, "End a session",
        {"body": bodies.SessionEndBody, "answer": answers.SessionEnded},
    ),
    (
        "GET", "/v1/sessions", Scope.READ, sessions.list_sessions, "Sessions, newest first",
        {"query": bodies.SessionsQuery, "answer": answers.Sessions | list[Session], **_BY_QUERY},
    ),
    (
        "GET", "/v1/sessions/{session_id}/memories", Scope.READ, sessions.memories, "Memories of a session",
        {"query": bodies.PageQuery, "answer": answers.MemoryPage},
    ),
    (
        "GET", f"{_AGENT}/sessions", Scope.READ, sessions.agent_sessions, "Sessions of an agent",
        {"query": bodies.AgentSessionsQuery, "answer": list[Session], **_BY_AGENT},
    ),
)  # fmt: skip

AGENTS = rows(
    "Agents",
    ("GET", "/v1/agents", Scope.READ, sessions.list_agents, "Agents", {"answer": list[AgentSummary]}),
    (
        "GET", f"{_AGENT}/memories", Scope.READ, sessions.agent_memories, "Memories of an agent, newest first",
        {"query": bodies.AgentMemoriesQuery, "answer": list[answers.RecalledMemory], **_BY_AGENT},
    ),
    (
        "GET", f"{_AGENT}/stats", Scope.READ, sessions.agent_stats, "Figures of an agent",
        {"answer": answers.AgentStats, **_BY_AGENT},
    ),
    (
        "GET", f"{_AGENT}/wake-up", Scope.READ, sessions.wake_up, "What the agent should have in mind",
        {"query": bodies.WakeUpQuery, "answer": answers.WakeUp, **_BY_AGENT},
    ),
    (
        "POST", f"{_AGENT}/compress", Scope.WRITE, sessions.compress, "Summarise old clusters of memories",
        {"answer": answers.Compression, **_BY_AGENT},
    ),
)  # fmt: skip

_BY_NS: dict[str, Any] = {"namespace_from": "path.ns"}


def _admin(path: str) -> dict[str, Any]:
    """An admin row also answers under ``/v1``."""
    return {"aliases": (f"/v1{path}",), "node_wide": True}


_SUPER: dict[str, Any] = {"node_wide": True, "legacy": True}

KEYS = rows(
    "Keys",
    (
        "POST", "/admin/keys", Scope.SUPER_ADMIN, keys.create, "Make a key; its text is shown once",
        {"body": bodies.KeyBody, "answer": answers.NewKey, **_admin("/admin/keys")},
    ),
    (
        "GET", "/admin/keys", Scope.SUPER_ADMIN, keys.list_object, "Keys",
        {"answer": answers.Keys, **_admin("/admin/keys")},
    ),
    (
        "GET", "/admin/keys/{key_id}", Scope.SUPER_ADMIN, keys.get, "One key",
        {"answer": answers.Key, **_admin("/admin/keys/{key_id}")},
    ),
    (
        "DELETE", "/admin/keys/{key_id}", Scope.SUPER_ADMIN, keys.delete, "Delete a key",
        {"answer": answers.Done, **_admin("/admin/keys/{key_id}")},
    ),
    (
        "POST", "/admin/keys/{key_id}/deactivate", Scope.SUPER_ADMIN, keys.deactivate, "Deactivate a key",
        {"answer": answers.DeactivatedKey, **_admin("/admin/keys/{key_id}/deactivate")},
    ),
    (
        "POST", "/admin/keys/{key_id}/rotate", Scope.SUPER_ADMIN, keys.rotate, "Replace the secret of a key",
        {"answer": answers.RotatedKey, **_admin("/admin/keys/{key_id}/rotate")},
    ),
    (
        "GET", "/admin/keys/{key_id}/usage", Scope.SUPER_ADMIN, keys.usage, "What a key was used for",
        {"answer": answers.KeyUsage, **_admin("/admin/keys/{key_id}/usage")},
    ),
    (
        "POST", "/v1/keys", Scope.SUPER_ADMIN, keys.create, "Make a key",
        {"body": bodies.KeyBody, "answer": answers.NewKey, **_SUPER},
    ),
    ("GET", "/v1/keys", Scope.SUPER_ADMIN, keys.list_array, "Keys", {"answer": list[answers.Key], **_SUPER}),
    ("GET", "/v1/keys/{key_id}", Scope.SUPER_ADMIN, keys.get, "One key", {"answer": answers.Key, **_SUPER}),
    ("DELETE", "/v1/keys/{key_id}", Scope.SUPER_ADMIN, keys.delete, "Delete a key", {"answer": answers.Done, **_SUPER}),
    (
        "POST", "/v1/keys/{key_id}/deactivate", Scope.SUPER_ADMIN, keys.deactivate, "Deactivate a key",
        {"answer": answers.DeactivatedKey, **_SUPER},
    ),
    (
        "POST", "/v1/keys/{key_id}/rotate", Scope.SUPER_ADMIN, keys.rotate, "Replace the secret of a key",
        {"answer": answers.RotatedKey, **_SUPER},
    ),
    (
        "GET", "/v1/keys/{key_id}/usage", Scope.SUPER_ADMIN, keys.usage, "What a key was used for",
        {"answer": answers.KeyUsage, **_SUPER},
    ),
    (
        "POST", f"{_NS}/keys", Scope.ADMIN, keys.create_for_namespace, "Make a key for one namespace",
        {"body": bodies.NamespaceKeyBody, "answer": answers.NamespaceNewKey, **_BY_NS},
    ),
    (
        "GET", f"{_NS}/keys", Scope.ADMIN, keys.list_for_namespace, "Keys of a namespace",
        {"answer": answers.NamespaceKeys, **_BY_NS},
    ),
    (
        "DELETE", f"{_NS}/keys/{{key_id}}", Scope.ADMIN, keys.delete_for_namespace, "Delete a namespace's key",
        {"answer": answers.Done, **_BY_NS},
    ),
    (
        "GET", f"{_NS}/keys/{{key_id}}/usage", Scope.ADMIN, keys.usage_for_namespace, "What a namespace's key was used for",
        {"answer": answers.NamespaceKeyUsage, **_BY_NS},
    ),
)  # fmt: skip

_CLUSTER = "/admin/cluster"

CLUSTER = rows(
    "Cluster",
    *(
        (method, path, Scope.SUPER_ADMIN, handler, summary, {**more, **_admin(path)})
        for method, path, handler, summary, more in (
            ("GET", f"{_CLUSTER}/status", cluster.status, "State of the cluster, as this node believes it", {}),
            ("GET", f"{_CLUSTER}/nodes", cluster.nodes, "Nodes, with the age of the belief", {"answer": Any}),
            ("GET", f"{_CLUSTER}/replication", cluster.replication, "Replicas and their lag", {}),
            ("GET", f"{_CLUSTER}/shards", cluster.shards, "Shards and who holds them", {}),
            ("GET", f"{_CLUSTER}/digests", cluster.digests, "Digests of this node's own copies", {}),
            (
                "POST", f"{_CLUSTER}/shards/rebalance", cluster.rebalance, "Plan moves, and begin them unless dry_run",
                {"body": bodies.RebalanceBody},
            ),
            (
                "POST", f"{_CLUSTER}/nodes/{{node_id}}", cluster.member, "Drain, remove or activate a node",
                {"body": bodies.MemberBody},
            ),
            ("GET", f"{_CLUSTER}/maintenance", cluster.maintenance, "Maintenance", {}),
            (
                "POST", f"{_CLUSTER}/maintenance/enable", cluster.maintenance_enable, "Begin maintenance",
                {"body": bodies.MaintenanceBody},
            ),
            ("POST", f"{_CLUSTER}/maintenance/disable", cluster.maintenance_disable, "End maintenance", {}),
        )
    ),
)  # fmt: skip

_EVENTS: dict[str, Any] = {"answer": str, "answer_type": CONTENT_TYPE}

EVENTS = rows(
    "Events",
    (
        "GET", "/v1/events/stream", Scope.READ, events.memories, "Memory events of all nodes, as they happen",
        {"query": bodies.AgentQuery, **_EVENTS, **_BY_QUERY},
    ),
    ("GET", f"{_NS}/events", Scope.READ, events.namespace, "Events of a namespace", {**_EVENTS, **_BY_NS}),
    (
        "GET", "/ops/events", Scope.ADMIN, events.system, "Events of the nodes and all namespaces",
        {**_EVENTS, "node_wide": True},
    ),
)  # fmt: skip

ROUTES: tuple[Route, ...] = (
    *HEALTH,
    *OPS,
    *MEMORY,
    *FEEDBACK,
    *SESSIONS,
    *AGENTS,
    *NAMESPACES,
    *VECTORS,
    *TEXTS,
    *KEYS,
    *CLUSTER,
    *EVENTS,
)
