"""Walks an official Python client against a node and checks what it parsed. Run as a script, one process for each version
and mode, because all versions share the package name::

    python walk.py <directory of the installed version> sync|async <url> <key>

prints one JSON object a step: ``{"step", "covers", "error"}``; ``error`` is null when the step held. A last line lists the
client's methods whose routes the node has, for the completeness check. A step is a coroutine function named after what it
shows; its decorator names the client methods it covers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

Step = Callable[["Walk"], Awaitable[None]]
STEPS: dict[str, tuple[tuple[str, ...], Step]] = {}
NODE_DIMENSION = 1024
"""The dimension the clients' own live suites create their namespaces with; not the model's."""


def step(*covers: str) -> Callable[[Step], Step]:
    def keep(function: Step) -> Step:
        STEPS[function.__name__] = (covers, function)
        return function

    return keep


class Walk:
    """The client under test, and what every step needs."""

    def __init__(self, client: Any, *, version: tuple[int, ...], mode: str) -> None:
        self.client = client
        self.version = version
        self.sync = mode == "sync"

    async def do(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.client, method)(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    @staticmethod
    def name(kind: str) -> str:
        return f"{kind}-{uuid.uuid4().hex[:12]}"

    async def agent_with(self, *contents: str, **fields: Any) -> tuple[str, list[str]]:
        agent = self.name("agent")
        stored = [await self.do("store_memory", agent, content, **fields) for content in contents]
        return agent, [item["id"] for item in stored]

    async def vectors(self, dimension: int = 4) -> str:
        namespace = self.name("vectors")
        await self.do("create_namespace", namespace, dimensions=dimension)
        rows = [
            {"id": "north", "values": [1.0, 0.0, 0.0, 0.0], "metadata": {"side": "n", "price": 1}},
            {"id": "east", "values": [0.0, 1.0, 0.0, 0.0], "metadata": {"side": "e", "price": 2}},
            {"id": "north-east", "values": [0.7, 0.7, 0.0, 0.0], "metadata": {"side": "n", "price": 3}},
        ]
        if dimension == len(rows[0]["values"]):
            answer = await self.do("upsert", namespace, rows)
            assert answer["upserted_count"] == 3, answer
        return namespace

    async def texts(self) -> str:
        namespace = self.name("texts")
        await self.do("create_namespace", namespace, dimensions=NODE_DIMENSION)
        answer = await self.do(
            "upsert_text",
            namespace,
            [
                {"id": "cat", "text": "The cat sleeps on the warm windowsill", "metadata": {"kind": "pet"}},
                {"id": "ship", "text": "The container ship reached Rotterdam harbour", "metadata": {"kind": "cargo"}},
            ],
        )
        assert answer.upserted_count == 2, answer
        assert answer.model.value in ("minilm", "bge-small", "e5-small", "bge-large")
        assert answer.tokens_processed > 0
        return namespace

    async def refused(self, error: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """The exception of the client's class ``error`` that the call raises."""
        from dakera import exceptions

        try:
            result = await self.do(method, *args, **kwargs)
        except getattr(exceptions, error) as raised:
            return raised
        raise AssertionError(f"{method} answered {result!r} instead of raising {error}")


def ids(found: Any) -> list[str]:
    return [item["id"] if isinstance(item, dict) else item.id for item in found]


# -- health and operations --------------------------------------------------------------------------------------------


@step("health")
async def health_is_healthy(walk: Walk) -> None:
    answer = await walk.do("health")
    assert answer["status"] == "healthy"
    assert isinstance(answer["version"], str)


@step("health_ready")
async def health_ready_lists_checks(walk: Walk) -> None:
    answer = await walk.do("health_ready")
    assert answer["ready"] is True
    assert all(check["status"] == "ok" for check in answer["checks"].values())


@step("health_live")
async def health_live_answers(walk: Walk) -> None:
    assert await walk.do("health_live")


@step("ops_stats")
async def ops_stats_count(walk: Walk) -> None:
    answer = await walk.do("ops_stats")
    for field in ("total_vectors", "namespace_count", "uptime_seconds", "timestamp"):
        assert isinstance(answer[field], int), field
    assert answer["state"] == "healthy"
    assert abs(answer["timestamp"] - time.time()) < 60


@step("ops_metrics")
async def ops_metrics_are_prometheus_text(walk: Walk) -> None:
    try:
        text = await walk.do("ops_metrics")
    except ValueError:
        # Up to 0.11.55 the synchronous client calls .json() on every body and catches only the standard library's error.
        assert walk.version < (0, 12)
        return
    assert "dakera_http_requests_total" in text


@step("get_kpis")
async def kpis_parse(walk: Walk) -> None:
    kpis = await walk.do("get_kpis")
    assert 0.0 <= kpis.memory_retention_7d_pct <= 100.0
    assert kpis.recall_latency_p99_ms >= kpis.recall_latency_p50_ms >= 0.0
    assert isinstance(kpis.active_agents_count, int)


@step("ops_diagnostics")
async def diagnostics_have_components(walk: Walk) -> None:
    answer = await walk.do("ops_diagnostics")
    assert answer["system"]["pid"] > 0
    assert answer["resources"]["memory_bytes"] > 0
    assert {"storage", "search_engine", "cache", "grpc"} <= set(answer["components"])


@step("ops_compact", "ops_get_job", "ops_list_jobs")
async def compaction_is_a_job(walk: Walk) -> None:
    namespace = await walk.vectors()
    job_id = (await walk.do("ops_compact", namespace))["job_id"]
    job = await walk.do("ops_get_job", job_id)
    for _ in range(200):
        if job["status"] not in ("pending", "running"):
            break
        await asyncio.sleep(0.02)
        job = await walk.do("ops_get_job", job_id)
    assert job["status"] == "completed", job
    assert job_id in ids(await walk.do("ops_list_jobs"))
    await walk.refused("NotFoundError", "ops_get_job", "no-such-job")


@step("cluster_status", "cluster_nodes")
async def the_cluster_describes_itself(walk: Walk) -> None:
    status = await walk.do("cluster_status")
    assert status["status"] == status["state"] == "healthy"
    assert status["nodes"] == status["node_count"] == 1
    nodes = await walk.do("cluster_nodes")
    (node,) = nodes["nodes"] if isinstance(nodes, dict) else nodes
    assert node["id"] == node["node_id"] == status["leader"]
    assert node["status"] == "active"


@step("admin_cluster_replication", "admin_list_shards", "admin_rebalance_shards")
async def shards_are_listed_and_a_plan_is_shown(walk: Walk) -> None:
    assert (await walk.do("admin_cluster_replication"))["total_nodes"] == 1
    shards = await walk.do("admin_list_shards")
    assert shards["total"] == len(shards["shards"]) > 0
    plan = await walk.do("admin_rebalance_shards", dry_run=True)
    assert (plan["initiated"], plan["planned_moves"]) == (False, [])


@step("admin_maintenance_status", "admin_enable_maintenance", "admin_disable_maintenance")
async def maintenance_begins_and_ends(walk: Walk) -> None:
    begun = await walk.do("admin_enable_maintenance", "a test", duration_minutes=5)
    assert (begun["enabled"], begun["reason"], begun["rejecting_requests"]) == (True, "a test", False)
    assert (await walk.do("admin_maintenance_status"))["scheduled_end"] > time.time()
    assert (await walk.do("admin_disable_maintenance"))["enabled"] is False


# -- namespaces -------------------------------------------------------------------------------------------------------


@step("create_namespace", "get_namespace", "list_namespaces", "delete_namespace")
async def namespace_lives_and_dies(walk: Walk) -> None:
    name = walk.name("space")
    created = await walk.do("create_namespace", name, dimensions=NODE_DIMENSION)
    assert created.name == name
    info = await walk.do("get_namespace", name)
    assert (info.name, info.dimensions) == (name, NODE_DIMENSION)
    assert name in [found.name for found in await walk.do("list_namespaces")]
    await walk.do("delete_namespace", name)
    assert name not in [found.name for found in await walk.do("list_namespaces")]
    raised = await walk.refused("NotFoundError", "get_namespace", name)
    assert raised.code.value == "NAMESPACE_NOT_FOUND"
    assert name in raised.message


@step("create_namespace")
async def creating_a_namespace_twice_fails(walk: Walk) -> None:
    name = walk.name("space")
    await walk.do("create_namespace", name, dimensions=8, metadata={"owner": "x"})
    await walk.refused("DakeraError", "create_namespace", name, dimensions=8)


@step("configure_namespace")
async def configure_creates_once(walk: Walk) -> None:
    from dakera import DistanceMetric

    name = walk.name("space")
    first = await walk.do("configure_namespace", name, 16, distance=DistanceMetric.DOT_PRODUCT)
    assert (first.namespace, first.dimension, first.distance, first.created) == (
        name, 16, DistanceMetric.DOT_PRODUCT, True,
    )  # fmt: skip
    again = await walk.do("configure_namespace", name, 16)
    assert (again.dimension, again.distance, again.created) == (16, DistanceMetric.DOT_PRODUCT, False)
    raised = await walk.refused("ValidationError", "configure_namespace", name, 17)
    assert raised.code.value == "DIMENSION_MISMATCH"


@step("get_index_stats", "compact", "flush")
async def index_stats_compact_and_flush(walk: Walk) -> None:
    namespace = await walk.vectors()
    stats = await walk.do("get_index_stats", namespace)
    assert (stats.total_vectors, stats.dimensions) == (3, 4)
    assert stats.index_type in ("flat", "hnsw", "ivf", "spfresh")
    for method in ("compact", "flush"):
        assert isinstance((await walk.do(method, namespace))["status"], str)


@step("warm_cache")
async def warming_parses(walk: Walk) -> None:
    from dakera import WarmingPriority, WarmingTargetTier

    answer = await walk.do("warm_cache", await walk.vectors(), priority=WarmingPriority.HIGH)
    assert answer.success is True
    assert answer.entries_warmed + answer.entries_skipped >= 0
    assert (answer.priority, answer.target_tier) == (WarmingPriority.HIGH, WarmingTargetTier.L2)


# -- vectors ----------------------------------------------------------------------------------------------------------


@step("upsert", "query")
async def query_ranks_and_filters(walk: Walk) -> None:
    namespace = await walk.vectors()
    found = await walk.do("query", namespace, [1.0, 0.1, 0.0, 0.0], top_k=2, include_values=True)
    assert ids(found.results) == ["north", "north-east"]
    assert found.results[0].values == [1.0, 0.0, 0.0, 0.0]
    assert found.results[0].metadata == {"side": "n", "price": 1}
    assert found.results[0].score > found.results[1].score
    assert found.search_time_ms is not None
    only = await walk.do("query", namespace, [1.0, 0.0, 0.0, 0.0], filter={"side": {"$eq": "e"}})
    assert ids(only.results) == ["east"]
    assert only.results[0].values is None


@step("query")
async def query_options_are_taken(walk: Walk) -> None:
    from dakera import DistanceMetric, ReadConsistency, StalenessConfig

    namespace = await walk.vectors()
    for consistency in ReadConsistency:
        found = await walk.do(
            "query", namespace, [0.0, 1.0, 0.0, 0.0], top_k=1, distance_metric=DistanceMetric.EUCLIDEAN,
            consistency=consistency, staleness_config=StalenessConfig(max_staleness_ms=100), include_metadata=False,
        )  # fmt: skip
        assert ids(found.results) == ["east"]
        assert found.results[0].metadata is None


@step("query", "upsert")
async def wrong_dimensions_are_refused_by_name(walk: Walk) -> None:
    namespace = await walk.vectors()
    raised = await walk.refused("ValidationError", "query", namespace, [1.0, 2.0])
    assert raised.code.value == "DIMENSION_MISMATCH"
    raised = await walk.refused("ValidationError", "upsert", namespace, [{"id": "x", "values": [1.0]}])
    assert raised.code.value == "DIMENSION_MISMATCH"
    raised = await walk.refused("ValidationError", "query", namespace, [])
    assert raised.code.value == "EMPTY_VECTOR"
    raised = await walk.refused("NotFoundError", "query", walk.name("absent"), [1.0])
    assert raised.code.value == "NAMESPACE_NOT_FOUND"


@step("batch_query")
async def batch_query_parses(walk: Walk) -> None:
    namespace = await walk.vectors()
    queries = [{"vector": [1.0, 0.0, 0.0, 0.0], "top_k": 1}, {"id": "b", "vector": [0.0, 1.0, 0.0, 0.0], "top_k": 1}]
    found = await walk.do("batch_query", namespace, queries)
    assert [ids(answer.results) for answer in found] == [["north"], ["east"]]


@step("fetch", "delete")
async def fetch_and_delete(walk: Walk) -> None:
    namespace = await walk.vectors()
    found = await walk.do("fetch", namespace, ["north", "absent"])
    assert ids(found) == ["north"]
    assert found[0].values == [1.0, 0.0, 0.0, 0.0]
    bare = await walk.do("fetch", namespace, ["east"], include_values=False, include_metadata=False)
    assert ids(bare) == ["east"]
    assert (await walk.do("delete", namespace, ids=["north"]))["deleted_count"] == 1
    assert (await walk.do("delete", namespace, filter={"side": "e"}))["deleted_count"] == 1
    assert (await walk.do("delete", namespace, delete_all=True))["deleted_count"] == 1
    assert (await walk.do("query", namespace, [1.0, 0.0, 0.0, 0.0])).results == []


@step("upsert_columns")
async def columns_upsert(walk: Walk) -> None:
    namespace = await walk.vectors()
    answer = await walk.do(
        "upsert_columns", namespace, ["a", "b"], [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
        attributes={"size": [1, 2]}, dimension=4,
    )  # fmt: skip
    assert answer["upserted_count"] == 2
    found = await walk.do("query", namespace, [0.0, 0.0, 0.0, 1.0], top_k=1)
    assert (found.results[0].id, found.results[0].metadata) == ("b", {"size": 2})
    await walk.refused("ValidationError", "upsert_columns", namespace, ["a"], [])


@step("bulk_update_vectors", "bulk_delete_vectors", "count_vectors")
async def bulk_operations_count(walk: Walk) -> None:
    namespace = await walk.vectors()
    assert (await walk.do("count_vectors", namespace)) == {"count": 3, "namespace": namespace}
    changed = await walk.do("bulk_update_vectors", namespace, {"side": "n"}, {"seen": True})
    assert (changed["updated"], changed["failed"], changed["errors"]) == (2, 0, [])
    assert (await walk.do("count_vectors", namespace, {"seen": True}))["count"] == 2
    gone = await walk.do("bulk_delete_vectors", namespace, {"seen": True})
    assert (gone["deleted"], gone["failed"], gone["errors"]) == (2, 0, [])
    assert (await walk.do("count_vectors", namespace))["count"] == 1


@step("multi_vector_search")
async def multi_vector_search_avoids_the_negative(walk: Walk) -> None:
    namespace = await walk.vectors()
    answer = await walk.do(
        "multi_vector_search", namespace, [[1.0, 0.0, 0.0, 0.0]], negative=[[0.0, 1.0, 0.0, 0.0]], top_k=3
    )
    assert ids(answer["results"])[0] == "north"
    assert ids(answer["results"])[-1] == "east"
    diverse = await walk.do("multi_vector_search", namespace, [[1.0, 0.0, 0.0, 0.0]], mmr_lambda=0.1, top_k=2)
    assert all("mmr_score" in result for result in diverse["results"])


@step("unified_query")
async def unified_query_in_its_three_forms(walk: Walk) -> None:
    namespace = await walk.vectors()
    by_vector = await walk.do("unified_query", namespace, vector=[1.0, 0.0, 0.0, 0.0], top_k=1)
    assert ids(by_vector["results"]) == ["north"]
    assert "$dist" in by_vector["results"][0]
    texts = await walk.texts()
    by_text = await walk.do("unified_query", texts, text="windowsill", top_k=1)
    assert ids(by_text["results"]) == ["cat"]


@step("aggregate")
async def aggregate_groups(walk: Walk) -> None:
    namespace = await walk.vectors()
    answer = await walk.do("aggregate", namespace, group_by="side", metrics=["count", "avg_price"])
    groups = {group["side"]: group for group in answer["groups"]}
    assert (groups["n"]["count"], groups["n"]["avg_price"]) == (2, 2.0)
    assert (groups["e"]["count"], groups["e"]["avg_price"]) == (1, 2.0)
    total = await walk.do("aggregate", namespace, metrics=["count"], filter={"price": {"$gt": 1}})
    assert total["aggregations"] == {"count": 2}


@step("export_vectors")
async def export_pages_through_everything(walk: Walk) -> None:
    namespace = await walk.vectors()
    first = await walk.do("export_vectors", namespace, limit=2, include_vectors=True)
    assert (first["returned_count"], first["total_count"]) == (2, 3)
    assert len(first["vectors"][0]["values"]) == 4
    second = await walk.do("export_vectors", namespace, limit=2, cursor=first["next_cursor"])
    assert sorted(ids(first["vectors"]) + ids(second["vectors"])) == ["east", "north", "north-east"]
    assert not second.get("next_cursor")


@step("explain_query")
async def explain_has_a_plan(walk: Walk) -> None:
    namespace = await walk.vectors()
    answer = await walk.do("explain_query", namespace, [1.0, 0.0, 0.0, 0.0], top_k=2)
    assert answer["namespace"] == namespace
    assert answer["index_selection"]["index_stats"]["vector_count"] == 3
    assert [stage["order"] for stage in answer["stages"]] == list(range(1, len(answer["stages"]) + 1))
    assert answer["query_params"]["top_k"] == 2
    assert isinstance(answer["summary"], str)


# -- texts ------------------------------------------------------------------------------------------------------------


@step("index_documents", "fulltext_search")
async def fulltext_finds_and_highlights(walk: Walk) -> None:
    namespace = walk.name("docs")
    await walk.do("create_namespace", namespace, dimensions=NODE_DIMENSION)
    answer = await walk.do(
        "index_documents",
        namespace,
        [
            {"id": "a", "content": "Photosynthesis happens in leaves", "metadata": {"topic": "plants"}},
            {"id": "b", "content": "Sharks have cartilage"},
        ],
    )
    assert answer["indexed_count"] == 2
    (hit,) = await walk.do("fulltext_search", namespace, "photosynthesis")
    assert (hit.id, hit.content) == ("a", "Photosynthesis happens in leaves")
    assert hit.score > 0
    assert hit.metadata == {"topic": "plants"}
    assert await walk.do("fulltext_search", namespace, "leaves", filter={"topic": "rocks"}) == []


@step("fulltext_stats", "fulltext_delete")
async def fulltext_stats_and_delete(walk: Walk) -> None:
    namespace = walk.name("docs")
    await walk.do("create_namespace", namespace, dimensions=NODE_DIMENSION)
    await walk.do("index_documents", namespace, [{"id": "a", "content": "one two three"}])
    stats = await walk.do("fulltext_stats", namespace)
    assert stats.document_count == 1
    assert stats.unique_terms >= 1
    assert (await walk.do("fulltext_delete", namespace, ["a", "b"]))["deleted_count"] == 1
    assert (await walk.do("fulltext_stats", namespace)).document_count == 0


@step("upsert_text", "query_text", "batch_query_text")
async def text_is_found_by_meaning(walk: Walk) -> None:
    namespace = await walk.texts()
    answer = await walk.do("query_text", namespace, "a pet resting in the sun", top_k=1)
    assert ids(answer.results) == ["cat"]
    assert answer.results[0].text == "The cat sleeps on the warm windowsill"
    assert answer.results[0].metadata == {"kind": "pet"}
    assert answer.results[0].vector is None
    assert answer.embedding_time_ms >= 0
    batch = await walk.do("batch_query_text", namespace, ["sleeping animal", "vessel at a port"], top_k=1)
    assert [ids(found) for found in batch.results] == [["cat"], ["ship"]]


@step("hybrid_search")
async def hybrid_search_with_and_without_a_vector(walk: Walk) -> None:
    namespace = await walk.texts()
    by_text = await walk.do("hybrid_search", namespace, query="windowsill cat", vector=None, top_k=2)
    assert ids(by_text)[0] == "cat"
    assert isinstance(by_text[0].text_score, float)
    vectors = await walk.vectors()
    weights = {"alpha": 0.0} if walk.version < (0, 11, 55) else {"vector_weight": 1.0}
    by_vector = await walk.do(
        "hybrid_search", vectors, query="nothing", vector=[0.0, 1.0, 0.0, 0.0], top_k=1, **weights
    )
    assert ids(by_vector) == ["east"]


# -- memory -----------------------------------------------------------------------------------------------------------


@step("store_memory", "recall")
async def a_stored_memory_is_recalled_at_once(walk: Walk) -> None:
    agent = walk.name("agent")
    stored = await walk.do(
        "store_memory", agent, "Alice prefers green tea in the morning", memory_type="semantic", importance=0.9,
        metadata={"source": "chat"},
    )  # fmt: skip
    assert stored["id"]
    assert stored["importance"] == 0.9
    await walk.do("store_memory", agent, "The printer on floor three is broken")
    answer = await walk.do("recall", agent, "what does Alice like to drink?", top_k=1)
    (memory,) = answer.memories
    assert (memory.id, memory.content) == (stored["id"], "Alice prefers green tea in the morning")
    assert (memory.memory_type, memory.importance) == ("semantic", 0.9)
    assert memory.metadata == {"source": "chat"}
    assert memory.score > 0
    assert answer.associated_memories is None


@step("recall")
async def recall_options_are_taken(walk: Walk) -> None:
    from dakera import FusionStrategy, RoutingMode

    agent, (first, _) = await walk.agent_with("The red kettle whistles", "The blue kettle hums", importance=0.6)
    for routing in RoutingMode:
        answer = await walk.do("recall", agent, "red kettle", routing=routing, top_k=2)
        assert ids(answer.memories)[0] == first, routing
    for fusion in FusionStrategy:
        answer = await walk.do("recall", agent, "red kettle", fusion=fusion, vector_weight=0.4, rerank=False)
        assert ids(answer.memories)[0] == first
    answer = await walk.do(
        "recall", agent, "red kettle", include_associated=True, associated_memories_cap=3, associated_memories_depth=2,
        associated_memories_min_weight=0.1, iterations=2, neighborhood=False, since="2020-01-01T00:00:00Z",
        until="2100-01-01T00:00:00Z", min_importance=0.5,
    )  # fmt: skip
    assert first in ids(answer.memories)
    assert answer.associated_memories is not None
    assert (await walk.do("recall", agent, "kettle", min_importance=0.7)).memories == []
    assert (await walk.do("recall", agent, "kettle", memory_type="procedural")).memories == []
    assert (await walk.do("recall", agent, "kettle", until="2020-01-01T00:00:00Z")).memories == []
    await walk.refused("ValidationError", "recall", agent, "kettle", since="not a time")


@step("search_memories")
async def search_is_a_list(walk: Walk) -> None:
    agent, (first, _) = await walk.agent_with("Copper conducts electricity", "Rubber insulates")
    found = await walk.do("search_memories", agent, "copper electricity", top_k=5)
    assert isinstance(found, list)
    assert ids(found)[0] == first
    assert found[0]["content"] == "Copper conducts electricity"
    assert found[0]["score"] > 0


@step("get_memory")
async def a_memory_is_got_by_id(walk: Walk) -> None:
    agent, (memory_id,) = await walk.agent_with("A fact to get")
    found = await walk.do("get_memory", agent, memory_id)
    assert (found["id"], found["content"], found["agent_id"]) == (memory_id, "A fact to get", agent)
    raised = await walk.refused("NotFoundError", "get_memory", agent, "mem-that-is-not-there")
    assert raised.status_code == 404


@step("update_memory")
async def an_update_is_found_by_its_new_content(walk: Walk) -> None:
    agent, (memory_id,) = await walk.agent_with("The meeting is on Monday")
    changed = await walk.do(
        "update_memory", agent, memory_id, content="The picnic is on Sunday", metadata={"v": 2}, memory_type="semantic"
    )
    assert changed["content"] == "The picnic is on Sunday"
    assert changed["memory"]["metadata"] == {"v": 2}
    (found,) = (await walk.do("recall", agent, "picnic Sunday")).memories
    assert (found.id, found.content, found.memory_type) == (memory_id, "The picnic is on Sunday", "semantic")


@step("forget")
async def a_forgotten_memory_is_gone(walk: Walk) -> None:
    agent, (keep, drop) = await walk.agent_with("Keep this orange", "Drop this orange")
    assert (await walk.do("forget", agent, drop))["deleted_count"] == 1
    assert ids((await walk.do("recall", agent, "orange")).memories) == [keep]
    await walk.refused("NotFoundError", "get_memory", agent, drop)


@step("batch_recall", "batch_forget")
async def batch_recall_and_forget_by_filter(walk: Walk) -> None:
    from dakera import BatchForgetRequest, BatchMemoryFilter, BatchRecallRequest

    agent, (low, _) = await walk.agent_with("low", "high", importance=0.2)
    await walk.do("update_importance", agent, [(await walk.do("store_memory", agent, "top"))["id"]], 0.95)
    everything = await walk.do("batch_recall", BatchRecallRequest(agent_id=agent))
    assert (len(everything.memories), everything.total, everything.filtered) == (3, 3, 3)
    some = await walk.do(
        "batch_recall",
        BatchRecallRequest(agent_id=agent, filter=BatchMemoryFilter(min_importance=0.9), limit=10),
    )
    assert [memory.content for memory in some.memories] == ["top"]
    assert (some.total, some.filtered) == (3, 1)
    gone = await walk.do(
        "batch_forget", BatchForgetRequest(agent_id=agent, filter=BatchMemoryFilter(max_importance=0.3))
    )
    assert gone.deleted_count == 2
    await walk.refused("NotFoundError", "get_memory", agent, low)
    await walk.refused(
        "ValidationError", "batch_forget", BatchForgetRequest(agent_id=agent, filter=BatchMemoryFilter())
    )


@step("store_memories_batch")
async def a_batch_of_three_is_stored(walk: Walk) -> None:
    from dakera.models import BatchStoreMemoryItem, BatchStoreMemoryRequest

    agent = walk.name("agent")
    items = [BatchStoreMemoryItem(content=f"batch item {at}", tags=["b"], importance=0.4) for at in range(3)]
    answer = await walk.do("store_memories_batch", BatchStoreMemoryRequest(agent_id=agent, memories=items))
    assert answer.stored_count == 3
    assert len({item.id for item in answer.stored}) == 3
    assert [item.content for item in answer.stored] == [item.content for item in items]
    assert all(item.tags == ["b"] and item.importance == 0.4 for item in answer.stored)
    assert answer.total_embedding_time_ms >= 0


@step("update_importance")
async def importance_of_one_and_of_several(walk: Walk) -> None:
    agent, (one, two) = await walk.agent_with("first", "second")
    await walk.do("update_importance", agent, [one], 0.25)
    await walk.do("update_importance", agent, [one, two], 0.75)
    for memory_id in (one, two):
        assert (await walk.do("get_memory", agent, memory_id))["importance"] == 0.75
    await walk.refused("ValidationError", "update_importance", agent, [one], 1.5)


@step("consolidate")
async def consolidation_answers_counts(walk: Walk) -> None:
    same = "The deploy runs every Friday at noon"
    agent, _ = await walk.agent_with(same, f"{same} sharp", "Penguins cannot fly")
    dry = await walk.do("consolidate", agent, dry_run=True, threshold=0.8)
    assert isinstance(dry["consolidated_count"], int)
    assert len(await walk.do("agent_memories", agent)) == 3
    wet = await walk.do("consolidate", agent)
    for field in ("consolidated_count", "removed_count"):
        assert isinstance(wet[field], int), field
    assert isinstance(wet["new_memories"], list)
    assert "Penguins cannot fly" in [memory["content"] for memory in await walk.do("agent_memories", agent)]


@step("compress_agent")
async def compression_parses(walk: Walk) -> None:
    agent, _ = await walk.agent_with("one fact", "another thing entirely")
    answer = await walk.do("compress_agent", agent)
    assert answer.agent_id == agent
    assert answer.memories_before == 2
    assert answer.memories_before - answer.memories_after <= answer.removed_count
    assert answer.duration_ms >= 0.0


# -- feedback ---------------------------------------------------------------------------------------------------------


@step("feedback_memory", "get_memory_feedback_history", "get_agent_feedback_summary", "get_feedback_health")
async def feedback_moves_importance_and_is_kept(walk: Walk) -> None:
    agent, (memory_id,) = await walk.agent_with("judge me", importance=0.5)
    up = await walk.do("feedback_memory", memory_id, agent, "upvote")
    assert (up.memory_id, up.signal.value) == (memory_id, "upvote")
    assert abs(up.new_importance - 0.575) < 1e-6
    down = await walk.do("feedback_memory", memory_id, agent, "downvote")
    assert abs(down.new_importance - 0.575 * 0.85) < 1e-6
    await walk.do("feedback_memory", memory_id, agent, "flag")
    history = await walk.do("get_memory_feedback_history", memory_id)
    assert [entry.signal.value for entry in history.entries] == ["upvote", "downvote", "flag"]
    assert abs(history.entries[0].old_importance - 0.5) < 1e-6
    assert abs(history.entries[0].timestamp - time.time()) < 60
    summary = await walk.do("get_agent_feedback_summary", agent)
    assert (summary.upvotes, summary.downvotes, summary.flags, summary.total_feedback) == (1, 1, 1, 3)
    state = await walk.do("get_feedback_health", agent)
    assert (state.agent_id, state.memory_count) == (agent, 1)
    assert 0.0 <= state.health_score <= 1.0


@step("memory_feedback")
async def the_older_feedback_route(walk: Walk) -> None:
    agent, (memory_id,) = await walk.agent_with("judge me the old way")
    answer = await walk.do("memory_feedback", agent, memory_id, "positive", relevance_score=0.9)
    assert isinstance(answer["status"], str)
    assert answer["updated_importance"] > 0.5


@step("patch_memory_importance")
async def patched_importance_parses(walk: Walk) -> None:
    agent, (memory_id,) = await walk.agent_with("patch me", importance=0.5)
    raised = await walk.do("patch_memory_importance", memory_id, agent, 0.8)
    assert (raised.memory_id, raised.new_importance, raised.signal.value) == (memory_id, 0.8, "upvote")
    lowered = await walk.do("patch_memory_importance", memory_id, agent, 0.1)
    assert lowered.signal.value == "downvote"


@step("evaluate_tif")
async def truth_is_computed_from_history(walk: Walk) -> None:
    agent, (memory_id,) = await walk.agent_with("true enough")
    for _ in range(3):
        await walk.do("feedback_memory", memory_id, agent, "upvote")
    score = await walk.do("evaluate_tif", memory_id)
    assert (score.truth, score.feedback_count) == (1.0, 3)


# -- sessions and agents ----------------------------------------------------------------------------------------------


@step("start_session", "get_session", "end_session", "list_sessions", "session_memories", "agent_sessions")
async def a_session_from_start_to_end(walk: Walk) -> None:
    agent = walk.name("agent")
    session = await walk.do("start_session", agent, metadata={"topic": "tests"})
    session_id = session["id"]
    assert session_id == session["session_id"]
    assert session["agent_id"] == agent
    await walk.do("store_memory", agent, "said in the session", session_id=session_id)
    assert (await walk.do("get_session", session_id))["metadata"] == {"topic": "tests"}
    listed = await walk.do("list_sessions", agent_id=agent, active_only=True, limit=10)
    assert ids(listed["sessions"]) == [session_id]
    memories = await walk.do("session_memories", session_id)
    memories = memories["memories"] if isinstance(memories, dict) else memories
    assert [memory["content"] for memory in memories] == ["said in the session"]
    assert ids(await walk.do("agent_sessions", agent, active_only=True)) == [session_id]
    summary = {} if walk.version < (0, 11, 55) else {"summary": "short"}
    ended = await walk.do("end_session", session_id, **summary)
    assert ended["memory_count"] == 1
    assert ended["session"]["ended_at"] is not None
    assert (await walk.do("list_sessions", agent_id=agent, active_only=True))["sessions"] == []
    assert (await walk.do("get_session", session_id)).get("summary") == summary.get("summary")
    await walk.refused("NotFoundError", "get_session", "no-such-session")


@step("list_agents", "agent_memories", "agent_stats")
async def agents_are_listed_and_described(walk: Walk) -> None:
    agent, (first, second) = await walk.agent_with("older", "newer")
    (row,) = [found for found in await walk.do("list_agents") if found["agent_id"] == agent]
    assert (row["memory_count"], row["session_count"], row["active_sessions"]) == (2, 0, 0)
    memories = await walk.do("agent_memories", agent, memory_type="episodic", limit=10)
    assert sorted(ids(memories)) == sorted([first, second])
    assert ids(await walk.do("agent_memories", agent, limit=1))[0] in (first, second)
    stats = await walk.do("agent_stats", agent)
    assert (stats["agent_id"], stats["total_memories"]) == (agent, 2)
    assert stats["memories_by_type"]["episodic"] == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stats["oldest_memory_at"])


@step("wake_up")
async def wake_up_ranks_by_importance(walk: Walk) -> None:
    agent, _ = await walk.agent_with("minor detail", importance=0.2)
    await walk.do("store_memory", agent, "the main thing", importance=0.9)
    answer = await walk.do("wake_up", agent, top_n=1, min_importance=0.1)
    assert (answer.agent_id, answer.total_available) == (agent, 2)
    assert [memory.content for memory in answer.memories] == ["the main thing"]


# -- keys -------------------------------------------------------------------------------------------------------------


@step("create_key", "list_keys", "get_key", "key_usage", "rotate_key", "deactivate_key", "delete_key")
async def a_key_from_creation_to_deletion(walk: Walk) -> None:
    made = await walk.do("create_key", walk.name("key"), permissions=["read", "write"])
    key_id = made["key_id"]
    assert made["key"]
    assert made["scope"] == "write"
    listed = await walk.do("list_keys")
    listed = listed["keys"] if isinstance(listed, dict) else listed
    assert key_id in [row["key_id"] for row in listed]
    assert "key" not in next(row for row in listed if row["key_id"] == key_id)
    assert (await walk.do("get_key", key_id))["active"] is True
    assert (await walk.do("key_usage", key_id))["total_requests"] == 0
    rotated = await walk.do("rotate_key", key_id)
    assert rotated["key"] == rotated["new_key"] != made["key"]
    assert (await walk.do("deactivate_key", key_id))["success"] is True
    assert (await walk.do("get_key", key_id))["active"] is False
    assert (await walk.do("delete_key", key_id))["success"] is True
    await walk.refused("NotFoundError", "get_key", key_id)


@step("create_namespace_key", "list_namespace_keys", "get_namespace_key_usage", "delete_namespace_key")
async def a_namespace_key_is_pinned(walk: Walk) -> None:
    namespace = await walk.vectors()
    made = await walk.do("create_namespace_key", namespace, "reader", expires_in_days=7)
    assert made.namespace == namespace
    assert made.expires_at is not None and made.expires_at > time.time()
    listed = await walk.do("list_namespace_keys", namespace)
    assert (listed.total, [key.key_id for key in listed.keys]) == (1, [made.key_id])
    other = client_like(walk.client, made.key)
    pinned = Walk(other, version=walk.version, mode="sync" if walk.sync else "async")
    try:
        assert (await pinned.do("query", namespace, [1.0, 0.0, 0.0, 0.0])).results
        raised = await pinned.refused("AuthorizationError", "get_namespace", await walk.vectors())
        assert raised.code.value == "NAMESPACE_ACCESS_DENIED"
        raised = await pinned.refused("AuthorizationError", "delete_namespace", namespace)
        assert raised.code.value == "INSUFFICIENT_SCOPE"
    finally:
        await close(other)
    usage = await walk.do("get_namespace_key_usage", namespace, made.key_id)
    assert (usage.key_id, usage.total_requests, usage.failed_requests) == (made.key_id, 3, 2)
    assert (await walk.do("delete_namespace_key", namespace, made.key_id))["success"] is True


@step()
async def a_bad_key_is_an_authentication_error(walk: Walk) -> None:
    other = client_like(walk.client, "invalid-key-xxx")
    try:
        bad = Walk(other, version=walk.version, mode="sync" if walk.sync else "async")
        raised = await bad.refused("AuthenticationError", "list_namespaces")
        assert (raised.status_code, raised.code.value) == (401, "INVALID_API_KEY")
    finally:
        await close(other)


@step()
async def rate_limit_headers_are_read(walk: Walk) -> None:
    await walk.do("health")
    await walk.do("list_agents")
    headers = walk.client.last_rate_limit_headers
    if walk.sync:
        assert headers.limit > 0
        assert headers.remaining >= 0
        assert headers.reset >= time.time() - 60


@step()
async def validation_errors_name_the_field(walk: Walk) -> None:
    agent = walk.name("agent")
    raised = await walk.refused("ValidationError", "store_memory", agent, "x", importance=7.0)
    assert raised.code.value == "INVALID_REQUEST"
    assert "importance" in raised.message
    raised = await walk.refused("ValidationError", "store_memory", agent, "x", memory_type="imaginary")
    assert "memory_type" in raised.message


# -- event streams ----------------------------------------------------------------------------------------------------


async def heard(walk: Walk, stream: Any, make: Callable[[], Any], wanted: Callable[[Any], bool]) -> list[Any]:
    """Events of a stream up to the first that is wanted; ``make`` is called once the stream says it is connected."""
    events: list[Any] = []

    async def listen(first: Any) -> None:
        async with asyncio.timeout(20):
            event = await first()
            assert (getattr(event, "type", None) or event.event_type) == "connected"
            await make()
            while not events or not wanted(events[-1]):
                events.append(await first())

    if walk.sync:
        iterator = iter(stream)
        await listen(lambda: asyncio.to_thread(next, iterator))
    else:
        await listen(stream.__anext__)
    close_stream = getattr(stream, "aclose", None) or stream.close
    closed = close_stream()
    if inspect.isawaitable(closed):
        await closed
    return events


@step("stream_memory_events")
async def memory_events_are_streamed(walk: Walk) -> None:
    agent = walk.name("agent")
    text = "tea \u2028 at five\u0085 \u00e9 \U0001f600\n\n"

    async def make() -> None:
        await walk.do("store_memory", agent, text, importance=0.75)
        session = await walk.do("start_session", agent)
        await walk.do("end_session", session.session_id if hasattr(session, "session_id") else session["session_id"])

    ends = lambda event: (event.event_type, event.agent_id) == ("session_ended", agent)  # noqa: E731
    events = [e for e in await heard(walk, walk.client.stream_memory_events(), make, ends) if e.agent_id == agent]
    assert [event.event_type for event in events] == ["stored", "session_started", "session_ended"]
    stored = events[0]
    assert (stored.content, stored.importance) == (text, 0.75)
    assert stored.memory_id and abs(stored.timestamp / 1000 - time.time()) < 60
    assert events[1].session_id == events[2].session_id


@step("stream_namespace_events", "stream_global_events")
async def system_events_are_streamed(walk: Walk) -> None:
    for method, arguments in (("stream_namespace_events", True), ("stream_global_events", False)):
        name = walk.name("ns")

        async def make(name: str = name) -> None:
            await walk.do("create_namespace", name, 3)
            await walk.do("delete_namespace", name)

        stream = getattr(walk.client, method)(*([name] if arguments else []))
        ends = lambda event, name=name: (event.type, event.namespace) == ("namespace_deleted", name)  # noqa: E731
        events = [event for event in await heard(walk, stream, make, ends) if event.namespace == name]
        assert [event.type for event in events] == ["namespace_created", "namespace_deleted"]
        assert events[0].dimension == 3


# -- the program ------------------------------------------------------------------------------------------------------


def client_like(client: Any, key: str) -> Any:
    return type(client)(client.base_url, api_key=key, max_retries=1)


async def close(client: Any) -> None:
    result = client.close()
    if inspect.isawaitable(result):
        await result


def called_routes(client: Any) -> dict[str, list[tuple[str, str]]]:
    """Client method -> the routes it calls, read from its source; parameters of a path become ``{}``."""
    calls = {}
    for name, function in inspect.getmembers(type(client), inspect.isfunction):
        if name.startswith("_"):
            continue
        found = re.findall(r"""_request\(\s*["']([A-Z]+)["'],\s*f?["']([^"']+)["']""", inspect.getsource(function))
        calls[name] = [(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in found]
    return calls


async def main(directory: str, mode: str, url: str, key: str) -> None:
    sys.path.insert(0, directory)
    from importlib.metadata import distributions

    from dakera.async_client import AsyncDakeraClient
    from dakera.client import DakeraClient

    version = next(found.version for found in distributions(path=[directory]) if found.metadata["Name"] == "dakera")
    client = (DakeraClient if mode == "sync" else AsyncDakeraClient)(url, api_key=key, max_retries=1)
    walk = Walk(client, version=tuple(map(int, version.split("."))), mode=mode)
    for name, (covers, function) in STEPS.items():
        if not all(hasattr(client, method) for method in covers):
            continue
        error = None
        try:
            await function(walk)
        except Exception:
            error = traceback.format_exc(limit=-6)
        print(json.dumps({"step": name, "covers": covers, "error": error}), flush=True)
    print(json.dumps({"routes": called_routes(client)}), flush=True)
    await close(client)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
