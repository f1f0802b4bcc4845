"""A valid request for every row of the route table, and what exists for it to touch."""

from __future__ import annotations

import uuid
from typing import Any

import httpx

from dakera_cluster.api import bodies, vector_bodies
from dakera_cluster.api.route import NoBody, Route
from dakera_cluster.memory import requests

NOT_ALONE = ("/admin/cluster/nodes/{node_id}",)
"""Paths that a cluster of one answers 409."""
DIMENSION = 4
VECTOR = [1.0, 0.0, 0.0, 0.0]


class World:
    """An agent with a memory and a session, a namespace with vectors and texts, and a key of that namespace."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http
        tag = uuid.uuid4().hex[:12]
        self.agent, self.ns = f"agent-{tag}", f"space-{tag}"
        self.memory = self.post("/v1/memory/store", {"agent_id": self.agent, "content": "something known"})["id"]
        self.session = self.post("/v1/sessions/start", {"agent_id": self.agent})["id"]
        self.post("/v1/namespaces", {"name": self.ns, "dimension": DIMENSION})
        self.post(f"/v1/namespaces/{self.ns}/vectors", {"vectors": [{"id": "v1", "values": VECTOR}]})
        self.post(f"/v1/namespaces/{self.ns}/fulltext/index", {"documents": [{"id": "t1", "text": "a text"}]})
        self.key = self.post(f"/v1/namespaces/{self.ns}/keys", {"name": "pinned", "scope": "read"})["key_id"]
        self.node = http.get("/admin/cluster/nodes").json()["nodes"][0]["node_id"]
        self.job = self.post("/ops/compact", {"namespace": self.ns})["job_id"]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, (path, answer.text)
        found: dict[str, Any] = answer.json()
        return found

    def path(self, template: str, **instead: str) -> str:
        known = {
            "agent_id": self.agent,
            "memory_id": self.memory,
            "session_id": self.session,
            "ns": self.ns,
            "vector_id": "v1",
            "key_id": self.key,
            "job_id": self.job,
            "node_id": self.node,
        }
        return template.format(**{**known, **instead})

    def body(self, route: Route) -> dict[str, Any] | None:
        """A valid body of the route; None when it takes none."""
        if route.body is NoBody:
            return None
        example = dict(EXAMPLES[route.body])
        for name, value in (("agent_id", self.agent), ("memory_id", self.memory)):
            if example.get(name) is ...:
                example[name] = value
        if example.get("namespace") is ...:
            example["namespace"] = self.agent
        return example

    def query(self, route: Route) -> dict[str, str]:
        known = {"agent_id": self.agent, "query": "known"}
        if route.query is bodies.MemorySearchQuery:
            return known
        return {"agent_id": self.agent} if route.query is bodies.AgentPageQuery else {}

    def snapshot(self) -> Any:
        """Everything a refused request must not have changed."""
        get = self.http.get
        return (
            sorted(get("/v1/namespaces").json()["namespaces"]),
            get("/v1/agents").json(),
            get(f"/v1/agents/{self.agent}/sessions").json(),
            [memory["content"] for memory in get(f"/v1/agents/{self.agent}/memories").json()],
            self.http.post(f"/v1/namespaces/{self.ns}/export", json={}).json()["vectors"],
            get("/admin/keys").json()["total"],
        )


EXAMPLES: dict[type[Any], dict[str, Any]] = {
    bodies.StoreBody: {"agent_id": ..., "content": "a memory"},
    requests.StoreItem: {"content": "a memory"},
    bodies.NamespaceStoreBody: {"namespace": ..., "content": "a memory"},
    bodies.StoreBatchBody: {"agent_id": ..., "memories": [{"content": "a memory"}]},
    bodies.RecallBody: {"agent_id": ..., "query": "known"},
    requests.RecallQuery: {"query": "known"},
    bodies.BatchRecallBody: {"agent_id": ...},
    bodies.BatchForgetBody: {"agent_id": ..., "filter": {"tags": ["no such tag"]}},
    bodies.ForgetBody: {"agent_id": ..., "tags": ["no such tag"]},
    bodies.UpdateBody: {"importance": 0.5},
    requests.MemoryChanges: {"importance": 0.5},
    bodies.ImportanceBody: {"agent_id": ..., "memory_id": ..., "importance": 0.5},
    bodies.AgentImportanceBody: {"memory_ids": [], "memory_id": ..., "importance": 0.5},
    bodies.ConsolidateBody: {"agent_id": ..., "dry_run": True},
    requests.ConsolidateQuery: {"dry_run": True},
    bodies.FeedbackBody: {"agent_id": ..., "memory_id": ..., "signal": "neutral"},
    bodies.AgentFeedbackBody: {"memory_id": ..., "feedback": "neutral"},
    bodies.MemoryFeedbackBody: {"agent_id": ..., "signal": "neutral"},
    bodies.ImportancePatch: {"agent_id": ..., "importance": 0.5},
    bodies.SessionStartBody: {"agent_id": ...},
    bodies.SessionEndBody: {},
    bodies.NamespaceBody: {"name": "created", "dimension": DIMENSION},
    bodies.WarmBody: {},
    bodies.CompactBody: {},
    bodies.RebalanceBody: {"dry_run": True},
    bodies.MemberBody: {"action": "activate"},
    bodies.MaintenanceBody: {"reason": "a test"},
    bodies.KeyBody: {"name": "a key", "scope": "read"},
    bodies.NamespaceKeyBody: {"name": "a key", "scope": "read"},
    vector_bodies.AgentHybridBody: {"agent_id": ..., "text": "known"},
    vector_bodies.UpsertBody: {"vectors": [{"id": "new", "values": VECTOR}]},
    vector_bodies.UpsertColumnsBody: {"ids": ["new"], "vectors": [VECTOR]},
    vector_bodies.VectorQueryBody: {"vector": VECTOR},
    vector_bodies.BatchQueryBody: {"queries": [{"vector": VECTOR}]},
    vector_bodies.DeleteVectorsBody: {"ids": ["absent"]},
    vector_bodies.FetchBody: {"ids": ["v1"]},
    vector_bodies.BulkUpdateBody: {"filter": {"absent": 1}, "update": {"x": 1}},
    vector_bodies.BulkDeleteBody: {"filter": {"absent": 1}},
    vector_bodies.CountBody: {},
    vector_bodies.MultiVectorBody: {"positive_vectors": [VECTOR]},
    vector_bodies.UnifiedBody: {"rank_by": ["ANN", VECTOR]},
    vector_bodies.AggregateBody: {"aggregate_by": {"n": ["Count"]}},
    vector_bodies.ExportBody: {},
    requests.ExplainQuery: {"vector": VECTOR},
    vector_bodies.IndexBody: {"documents": [{"id": "new", "text": "a text"}]},
    requests.TextQuery: {"query": "text"},
    vector_bodies.IdsBody: {"ids": ["absent"]},
    vector_bodies.UpsertTextBody: {"documents": [{"id": "new", "text": "a text"}]},
    vector_bodies.QueryTextBody: {"text": "text"},
    vector_bodies.BatchQueryTextBody: {"queries": ["text"]},
    vector_bodies.HybridBody: {"text": "text"},
}
