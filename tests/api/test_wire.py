"""Rules of the wire that hold for every route, and the union shapes that let clients of several versions share them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from dakera_cluster.api.route import NoBody, Route
from dakera_cluster.api.routes import ROUTES
from dakera_cluster.api.streams import CONTENT_TYPE
from tests.support.wire_examples import NOT_ALONE, VECTOR, World

BODY_OPTIONAL = [
    "/v1/namespaces/{ns}/compact",
    "/v1/namespaces/{ns}/flush",
    "/v1/namespaces/{ns}/cache/warm",
    "/v1/namespaces/{ns}/export",
    "/v1/agents/{agent_id}/compress",
    "/v1/agents/{agent_id}/memories/consolidate",
    "/v1/sessions/{session_id}/end",
    "/v1/keys/{key_id}/deactivate",
    "/admin/keys/{key_id}/rotate",
    "/v1/admin/keys/{key_id}/rotate",
    "/ops/compact",
]
MEMORY_FIELDS = {
    "id", "content", "agent_id", "namespace", "memory_type", "importance", "tags", "session_id", "metadata", "created_at",
    "updated_at", "last_accessed_at", "access_count", "ttl_seconds", "expires_at", "embedding_model",
}  # fmt: skip


@pytest.fixture
def world(http: httpx.Client) -> World:
    return World(http)


@pytest.mark.parametrize("path", BODY_OPTIONAL)
@pytest.mark.parametrize("content", [None, b"", b"  \n", b"{}"])
def test_a_missing_or_empty_body_is_an_empty_object(world: World, path: str, content: bytes | None) -> None:
    answer = world.http.post(world.path(path), content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert isinstance(answer.json(), dict)


@pytest.mark.parametrize(
    "path", ["/v1/namespaces/{ns}/query", "/v1/memory/recall", "/v1/memory/store", "/v1/sessions/start"]
)
def test_null_means_absent_for_every_optional_field(world: World, path: str) -> None:
    (route,) = [route for route in ROUTES if path in route.paths and route.method == "POST"]
    body = world.body(route) or {}
    nulls = {field: None for field in route.body.__struct_fields__ if field not in body}
    answer = world.http.post(world.path(path), json={**body, **nulls, "unknown": {"a": [1]}})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "agent", ["a:b", "a.b-c_d", "me@home", "two words", "ünï", "a+b", "100%", "a/b", "q?x=1", "#1"]
)
def test_ids_of_all_kinds_travel_in_paths(world: World, agent: str) -> None:
    stored = world.post("/v1/memory/store", {"agent_id": agent, "content": "kept", "id": f"mem {agent}"})
    quoted = "".join(f"%{byte:02X}" for byte in agent.encode())
    answer = world.http.get(f"/v1/agents/{quoted}/memories/mem%20{quoted}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == stored["id"]
    assert answer.json()["agent_id"] == agent


def test_ids_may_come_unencoded(world: World) -> None:
    world.post("/v1/memory/store", {"agent_id": "a:b@c", "content": "kept", "id": "m:1"})
    assert world.http.get("/v1/agents/a:b@c/memories/m:1").status_code == 200


def test_booleans_in_queries_are_lower_case_words(world: World) -> None:
    for word, count in (("true", 1), ("false", 1)):
        answer = world.http.get("/v1/sessions", params={"agent_id": world.agent, "active_only": word})
        assert len(answer.json()["sessions"]) == count


def test_empty_arrays_in_filters_mean_not_given(world: World) -> None:
    body = {"agent_id": world.agent, "query": "known", "tags": []}
    assert world.post("/v1/memory/recall", body)["memories"]
    assert world.post("/v1/memories/recall/batch", {"agent_id": world.agent, "filter": {"tags": []}})["filtered"] == 1


def test_a_delete_reads_its_body(world: World) -> None:
    world.post("/v1/memory/store", {"agent_id": world.agent, "content": "tagged", "tags": ["gone"]})
    body = {"agent_id": world.agent, "filter": {"tags": ["gone"]}}
    answer = world.http.request("DELETE", "/v1/memories/forget/batch", json=body)
    assert (answer.status_code, answer.json()["deleted_count"]) == (200, 1)


def test_deletes_answer_200_with_a_json_body(world: World) -> None:
    for path in (
        "/v1/namespaces/{ns}/vectors/v1",
        "/v1/namespaces/{ns}/keys/{key_id}",
        "/v1/agents/{agent_id}/memories/{memory_id}",
        "/v1/namespaces/{ns}",
    ):
        answer = world.http.delete(world.path(path))
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        assert isinstance(answer.json(), dict)


def test_admin_rows_answer_under_both_prefixes() -> None:
    paths = {path for route in ROUTES for path in route.paths}
    for path in paths:
        if path.startswith("/admin/"):
            assert f"/v1{path}" in paths


def test_a_stored_memory_comes_back_in_every_shape(world: World) -> None:
    fields = {
        "content": "shape",
        "tags": ["t"],
        "importance": 0.7,
        "metadata": {"k": [1, {"x": None}]},
        "memory_type": "semantic",
    }
    for path, body in (
        ("/v1/memory/store", {"agent_id": world.agent, **fields}),
        ("/v1/memories", {"agent_id": world.agent, **fields}),
        ("/v1/memory", {"namespace": world.agent, **fields}),
        (f"/v1/agents/{world.agent}/memories", fields),
    ):
        answer = world.post(path, body)
        assert answer["ok"] is True
        assert answer["id"] == answer["memory_id"] == answer["memory"]["id"]
        assert answer.keys() >= MEMORY_FIELDS
        assert answer["memory"].keys() >= MEMORY_FIELDS
        for name, value in fields.items():
            assert answer[name] == answer["memory"][name] == value
        assert answer["agent_id"] == world.agent
        assert answer["namespace"] == f"_dakera_agent_{world.agent}"


@pytest.mark.parametrize(
    "path", ["/v1/memory/recall", "/v1/memories/recall", "/v1/memory/search", "/v1/agents/{agent_id}/memories/recall"]
)
def test_recalled_memories_are_flat_and_nested(world: World, path: str) -> None:
    body = {"query": "known"} | ({} if "{agent_id}" in path else {"agent_id": world.agent})
    answer = world.post(world.path(path), body)
    (found,) = answer["memories"]
    assert answer["total_found"] == 1
    assert found["memory"].keys() >= MEMORY_FIELDS
    assert {name: found[name] for name in MEMORY_FIELDS} == {name: found["memory"][name] for name in MEMORY_FIELDS}
    assert isinstance(found["score"], float)
    assert "associated_memories" not in answer


@pytest.mark.parametrize("params", [{"q": "known"}, {"query": "known", "limit": "1"}])
@pytest.mark.parametrize("path", ["/v1/memory/search", "/v1/memories/search"])
def test_search_by_query_string(world: World, path: str, params: dict[str, str]) -> None:
    for holder in (
        {"agent_id": world.agent},
        {"namespace": world.agent},
        {"namespace": f"_dakera_agent_{world.agent}"},
    ):
        answer = world.http.get(path, params={**params, **holder})
        assert [memory["id"] for memory in answer.json()["memories"]] == [world.memory]


def test_top_k_defaults_to_5_on_recall_and_10_on_search(world: World) -> None:
    items = [{"content": f"apple number {at}"} for at in range(12)]
    world.post("/v1/memories/store/batch", {"agent_id": world.agent, "memories": items})
    body = {"agent_id": world.agent, "query": "apple number"}
    assert len(world.post("/v1/memory/recall", body)["memories"]) == 5
    assert len(world.post("/v1/memory/search", body)["memories"]) == 10


def test_batch_filters_nested_or_flat(world: World) -> None:
    world.post("/v1/memory/store", {"agent_id": world.agent, "content": "tagged", "tags": ["x", "y"]})
    nested = world.post("/v1/memories/recall/batch", {"agent_id": world.agent, "filter": {"tags": ["x"]}})
    flat = world.post("/v1/memories/recall/batch", {"agent_id": world.agent, "tags": ["y", "x"]})
    assert nested["filtered"] == flat["filtered"] == 1
    assert nested["total"] == flat["total"] == 2


def test_hybrid_weights_are_read_in_both_spellings(world: World) -> None:
    def first(**body: Any) -> str:
        path = world.path("/v1/namespaces/{ns}/hybrid-search")
        answer = world.post(path, {"vector": [0.0, 1.0, 0.0, 0.0], **body})
        return str(answer["results"][0]["id"])

    body = {"vectors": [{"id": "v2", "values": [0.0, 1.0, 0.0, 0.0]}]}
    world.post(world.path("/v1/namespaces/{ns}/vectors"), body)
    assert first(query="text", alpha=1.0) == "t1"
    assert first(query="text", alpha=0.0) == "v2"
    assert first(text="text", vector_weight=1.0) == "v2"
    assert first(text="text", vector_weight=1.0, alpha=1.0) == "v2"


def test_fulltext_takes_both_document_fields_and_answers_both(world: World) -> None:
    documents = [{"id": "c", "content": "quartz crystal"}, {"id": "t", "text": "quartz clock"}]
    world.post(world.path("/v1/namespaces/{ns}/fulltext/index"), {"documents": documents})
    answer = world.post(world.path("/v1/namespaces/{ns}/fulltext/search"), {"query": "quartz"})
    assert {hit["id"] for hit in answer["results"]} == {"c", "t"}
    assert all(hit["content"] == hit["text"] for hit in answer["results"])


def test_fulltext_stats_carry_every_name(world: World) -> None:
    answer = world.http.get(world.path("/v1/namespaces/{ns}/fulltext/stats")).json()
    assert answer.keys() >= {"document_count", "unique_terms", "term_count", "avg_doc_length", "namespace"}
    assert answer["unique_terms"] == answer["term_count"]


def test_aggregate_in_both_forms(world: World) -> None:
    path = world.path("/v1/namespaces/{ns}/aggregate")
    grouped = world.post(path, {"aggregate_by": {"n": ["Count"]}, "group_by": ["missing"]})
    assert grouped["aggregation_groups"] == grouped["groups"]
    assert world.post(path, {"metrics": ["count"]})["aggregations"]["count"] >= 1


def test_paths_of_older_and_newer_clients_share_a_handler(world: World) -> None:
    body = {"positive": [VECTOR], "top_k": 1}
    for path in ("/v1/namespaces/{ns}/multi-vector", "/v1/namespaces/{ns}/search/multi-vector"):
        assert world.post(world.path(path), body)["results"][0]["id"] == "v1"
    for path in ("/v1/namespaces/{ns}/unified-query", "/v1/namespaces/{ns}/search/unified"):
        assert world.post(world.path(path), {"vector": VECTOR, "top_k": 1})["results"][0]["id"] == "v1"
    for path in ("/v1/namespaces/{ns}/explain", "/v1/namespaces/{ns}/query/explain"):
        assert world.post(world.path(path), {"vector": VECTOR})["query_type"] == "vector_search"


def test_a_memory_is_found_by_id_alone(world: World) -> None:
    assert world.http.get(f"/v1/memory/get/{world.memory}").json()["agent_id"] == world.agent
    changed = world.http.put(f"/v1/memory/update/{world.memory}", json={"importance": 0.9})
    assert changed.json()["memory"]["importance"] == 0.9


def test_an_id_held_by_several_agents_needs_the_agent(world: World) -> None:
    shared = f"shared-{world.agent}"
    for agent in (world.agent, f"{world.agent}-2"):
        world.post("/v1/memory/store", {"agent_id": agent, "content": f"of {agent}", "id": shared})
    assert world.http.get(f"/v1/memory/get/{shared}").status_code == 400
    answer = world.http.get(f"/v1/memory/get/{shared}", params={"agent_id": world.agent})
    assert answer.json()["content"] == f"of {world.agent}"


def test_every_row_answers_a_valid_request(http: httpx.Client) -> None:
    order = {"GET": 0, "POST": 1, "PUT": 1, "PATCH": 1, "DELETE": 3}

    def rank(row: tuple[Route, str]) -> tuple[int, bool]:
        return order[row[0].method], "delete" in row[1] or "deactivate" in row[1]

    rows = [(route, path) for route in ROUTES for path in route.paths if route.answer_type != CONTENT_TYPE]
    for route, path in sorted(rows, key=rank):
        if path == "/ops/shutdown":
            continue
        world = World(http)
        body = world.body(route)
        if route.method == "POST" and path.startswith("/v1/namespaces") and body and "dimension" in body:
            body["name"] = f"{world.ns}-new"
            if path.endswith("{ns}"):
                path = path.replace("{ns}", body["name"])
        content = None if route.body is NoBody else json.dumps(body)
        answer = http.request(
            route.method, world.path(path), content=content, params=world.query(route),
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        if path.endswith(NOT_ALONE):
            assert answer.status_code == 409
            continue
        assert answer.status_code == 200, f"{route.method} {path}: {answer.status_code} {answer.text[:300]}"
        assert answer.headers["Content-Type"].startswith(route.answer_type)
