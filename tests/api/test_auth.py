"""Keys, scopes and pinned namespaces, on a live node."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from dakera_cluster.api.route import NoBody, Route
from dakera_cluster.api.routes import ROUTES
from dakera_cluster.api.streams import CONTENT_TYPE
from dakera_cluster.model.keys import Scope
from tests.support.node_process import NodeProcess
from tests.support.wire_examples import VECTOR, World

GUARDED = [pytest.param(r, p, id=f"{r.method} {p}") for r in ROUTES for p in r.paths if r.scope is not Scope.NONE]
Login = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def world(http: httpx.Client) -> World:
    return World(http)


@pytest.fixture
def login(node: NodeProcess, http: httpx.Client) -> Login:
    """Makes a key and a client that shows it."""

    def make(scope: str, namespaces: list[str] | None = None, **more: Any) -> httpx.Client:
        body = {"name": uuid.uuid4().hex, "scope": scope, "namespaces": namespaces, **more}
        made = http.post("/admin/keys", json=body).json()
        client = httpx.Client(base_url=node.url, headers={"Authorization": f"Bearer {made['key']}"}, timeout=30)
        client.key_id = made["key_id"]  # type: ignore[attr-defined]
        return client

    return make


@pytest.mark.parametrize(("route", "path"), GUARDED)
def test_every_guarded_row_wants_a_key(world: World, node: NodeProcess, route: Route, path: str) -> None:
    answer = httpx.request(route.method, node.url + world.path(path), json={})
    assert (answer.status_code, answer.json()["code"]) == (401, "AUTHENTICATION_REQUIRED")
    answer = httpx.request(route.method, node.url + world.path(path), json={}, headers={"X-API-Key": "wrong"})
    assert (answer.status_code, answer.json()["code"]) == (401, "INVALID_API_KEY")


def test_open_rows_need_none(node: NodeProcess) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"):
        assert httpx.get(node.url + path).status_code == 200, path


def test_both_header_forms_and_their_order(node: NodeProcess) -> None:
    url = f"{node.url}/v1/agents"
    assert httpx.get(url, headers={"X-API-Key": node.key}).status_code == 200
    assert httpx.get(url, headers={"Authorization": f"bearer {node.key}"}).status_code == 200
    both = {"Authorization": "Bearer wrong", "X-API-Key": node.key}
    assert httpx.get(url, headers=both).status_code == 401
    assert httpx.get(url, params={"api_key": node.key}).status_code == 401
    assert httpx.get(url, headers={"Authorization": "Basic abc", "X-API-Key": node.key}).status_code == 200


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
def test_a_scope_reaches_its_rows_and_no_further(world: World, login: Login, scope: str) -> None:
    client = login(scope)
    have = Scope[scope.upper()]
    for route in ROUTES:
        if route.scope is Scope.NONE or (route.scope <= have and route.answer_type == CONTENT_TYPE):
            continue
        path = world.path(route.path, memory_id="absent", ns="absent", session_id="absent", vector_id="absent")
        body = {} if route.body is not NoBody else None
        answer = client.request(route.method, path, json=body)
        if route.scope > have:
            assert (answer.status_code, answer.json()["code"]) == (403, "INSUFFICIENT_SCOPE"), path
            assert answer.json()["details"] == f"required: {route.scope.wire}, actual: {scope}"
        else:
            assert answer.status_code not in (401, 403), (path, answer.text)
            assert answer.status_code < 500, (path, answer.text)


def test_a_pinned_key_sees_its_namespaces_only(world: World, http: httpx.Client, login: Login) -> None:
    own = f"_dakera_agent_{world.agent}"
    client = login("admin", [own])
    stranger = World(http)
    assert client.post("/v1/memory/recall", json={"agent_id": world.agent, "query": "known"}).status_code == 200
    assert [row["agent_id"] for row in client.get("/v1/agents").json()] == [world.agent]
    assert client.get("/v1/namespaces").json()["namespaces"][0]["name"] == own
    assert len(client.get("/v1/namespaces").json()["namespaces"]) == 1
    sessions = client.get("/v1/sessions").json()
    assert {row["agent_id"] for row in sessions["sessions"]} == {world.agent}
    assert client.get(f"/v1/memory/get/{world.memory}").status_code == 200
    assert client.get(f"/v1/memory/get/{stranger.memory}").status_code == 404
    assert client.get("/v1/memories").json()["total"] == 1
    other = stranger.agent
    for method, path, body in [
        ("POST", "/v1/memory/store", {"agent_id": other, "content": "x"}),
        ("POST", "/v1/memory", {"namespace": other, "content": "x"}),
        ("POST", f"/v1/agents/{other}/memories", {"content": "x"}),
        ("POST", "/v1/memory/recall", {"agent_id": other, "query": "x"}),
        ("GET", f"/v1/memory/search?q=x&agent_id={other}", None),
        ("GET", f"/v1/memory/search?q=x&namespace={other}", None),
        ("GET", f"/v1/memories?agent_id={other}", None),
        ("GET", f"/v1/memory/get/{stranger.memory}?agent_id={other}", None),
        ("PUT", f"/v1/memory/update/{stranger.memory}", {"agent_id": other, "importance": 0.1}),
        ("PUT", f"/v1/memory/update/{stranger.memory}?agent_id={other}", {"importance": 0.1}),
        ("POST", "/v1/memory/forget", {"agent_id": other, "memory_ids": ["x"]}),
        ("DELETE", "/v1/memories/forget/batch", {"agent_id": other, "filter": {"tags": ["x"]}}),
        ("POST", f"/v1/memories/{stranger.memory}/feedback", {"agent_id": other, "signal": "upvote"}),
        ("GET", f"/v1/feedback/health?agent_id={other}", None),
        ("POST", "/v1/sessions/start", {"agent_id": other}),
        ("GET", f"/v1/sessions/{stranger.session}", None),
        ("POST", f"/v1/sessions/{stranger.session}/end", None),
        ("GET", f"/v1/sessions?agent_id={other}", None),
        ("GET", f"/v1/agents/{other}/stats", None),
        ("GET", f"/v1/namespaces/{stranger.ns}", None),
        ("POST", f"/v1/namespaces/{stranger.ns}/query", {"vector": VECTOR}),
        ("POST", "/v1/namespaces", {"name": "elsewhere", "dimension": 4}),
        ("DELETE", f"/v1/namespaces/{stranger.ns}", None),
        ("POST", f"/v1/namespaces/{own}/keys", {"name": "k", "extra_namespaces": [stranger.ns]}),
        ("GET", "/v1/kpis", None),
        ("GET", "/ops/jobs", None),
        ("GET", "/v1/ops/metrics", None),
    ]:
        answer = client.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "NAMESPACE_ACCESS_DENIED"), (
            method,
            path,
            answer.text,
        )
        assert answer.json()["details"].startswith("namespace: ")
    assert http.get(f"/v1/memory/get/{stranger.memory}").json()["importance"] == 0.5
    assert http.get(f"/v1/sessions/{stranger.session}").json()["ended_at"] is None


def test_a_pin_may_be_a_pattern(world: World, login: Login) -> None:
    client = login("read", [f"{world.ns[:8]}*"])
    assert client.get(f"/v1/namespaces/{world.ns}").status_code == 200
    assert client.get(f"/v1/agents/{world.agent}/stats").status_code == 403


def test_a_revoked_key_stops_working_at_once(world: World, http: httpx.Client, login: Login) -> None:
    for end in ("deactivate", "delete", "rotate"):
        client = login("read")
        assert client.get("/v1/agents").status_code == 200
        key_id = client.key_id  # type: ignore[attr-defined]
        method, path = (
            ("DELETE", f"/admin/keys/{key_id}") if end == "delete" else ("POST", f"/admin/keys/{key_id}/{end}")
        )
        assert http.request(method, path).status_code == 200
        answer = client.get("/v1/agents")
        assert (answer.status_code, answer.json()["code"]) == (401, "INVALID_API_KEY"), end


def test_a_namespace_admin_makes_keys_for_its_namespace_up_to_its_own_scope(world: World, login: Login) -> None:
    admin = login("admin", [world.ns])
    path = f"/v1/namespaces/{world.ns}/keys"
    made = admin.post(path, json={"name": "child"})
    assert (made.json()["scope"], made.json()["namespaces"]) == ("write", [world.ns])
    assert made.json()["key_id"] in [key["key_id"] for key in admin.get(path).json()["keys"]]
    assert admin.post(path, json={"name": "child", "scope": "super_admin"}).status_code == 400
    assert admin.get("/admin/keys").status_code == 403


def test_a_namespace_admin_cannot_remove_a_key_that_reaches_further(
    world: World, http: httpx.Client, login: Login
) -> None:
    admin = login("admin", [world.ns])
    wide = http.post("/admin/keys", json={"name": "wide", "scope": "read", "namespaces": [world.ns, "other"]}).json()
    for path in (f"/v1/namespaces/{world.ns}/keys/{wide['key_id']}", f"/v1/namespaces/{world.ns}/keys/absent"):
        assert admin.delete(path).json()["code"] == "API_KEY_NOT_FOUND"


def test_usage_counts_what_a_key_did(world: World, http: httpx.Client, login: Login) -> None:
    client = login("read")
    client.post("/v1/memory/recall", json={"agent_id": world.agent, "query": "known"})
    client.post("/v1/memory/recall", json={"agent_id": world.agent})
    usage = http.get(f"/admin/keys/{client.key_id}/usage").json()  # type: ignore[attr-defined]
    assert (usage["total_requests"], usage["successful_requests"], usage["failed_requests"]) == (2, 1, 1)
    assert usage["by_endpoint"][0]["endpoint"] == "/v1/memory/recall"
    assert usage["requests_by_endpoint"] == {"/v1/memory/recall": 2}
    assert usage["by_namespace"] == [
        {"namespace": f"_dakera_agent_{world.agent}", "requests": 1, "vectors_accessed": 0}
    ]
    assert usage["bytes_transferred"] > 0


@pytest.fixture(scope="module")
def open_node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    node = NodeProcess(tmp_path_factory.mktemp("open") / "node.log", {"DAKERA_ROOT_API_KEY": ""}).start()
    yield node
    node.stop()


def test_without_a_root_key_everything_is_open_until_a_key_exists(open_node: NodeProcess) -> None:
    url = open_node.url
    assert httpx.get(f"{url}/admin/keys").status_code == 200
    locked = httpx.post(f"{url}/admin/keys", json={"name": "first", "scope": "read"})
    assert (locked.status_code, "scope" in locked.json()["error"]) == (400, True)
    made = httpx.post(f"{url}/admin/keys", json={"name": "first", "scope": "super_admin"}).json()
    assert httpx.get(f"{url}/admin/keys").status_code == 401
    headers = {"Authorization": f"Bearer {made['key']}"}
    assert httpx.get(f"{url}/admin/keys", headers=headers).json()["total"] == 1
    assert httpx.delete(f"{url}/admin/keys/{made['key_id']}", headers=headers).status_code == 200
    assert httpx.get(f"{url}/admin/keys").status_code == 200
