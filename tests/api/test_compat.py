"""The User-Agent table: what each official client gets, and the keys its parser would refuse."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from dakera_cluster.api.compat import JAVASCRIPT, OTHER, PYTHON, RUST, RUST_STRICT, Client, client_of
from tests.support.wire_examples import VECTOR, World

ALIASED_PAIRS = (
    ("name", "namespace"),
    ("dimension", "dimensions"),
    ("results", "matches"),
    ("originals_deprecated", "removed_count"),
)


@pytest.mark.parametrize(
    ("user_agent", "client"),
    [
        ("python-requests/2.32.3", PYTHON),
        ("python-httpx/0.28.1", PYTHON),
        ("dakera-py/0.12.12", PYTHON),
        ("dakera-client/0.11.54", RUST_STRICT),
        ("dakera-client/0.11.54 (linux)", RUST_STRICT),
        ("dakera-client/0.11.9", RUST_STRICT),
        ("dakera-client/0.10.99", RUST_STRICT),
        ("dakera-client/0.11.55", RUST),
        ("dakera-client/0.12.0", RUST),
        ("dakera-client/1.0.0", RUST),
        ("dakera-client/", RUST),
        ("dakera-client/next", RUST),
        ("dakera-js/0.11.105", JAVASCRIPT),
        ("dakera-go/0.1", OTHER),
        ("node", JAVASCRIPT),
        ("undici", JAVASCRIPT),
        ("curl/8.0 python-requests/2", OTHER),
        ("", OTHER),
        (None, OTHER),
        ("x" * 100_000, OTHER),
    ],
)
def test_client_is_told_by_the_prefix_of_its_user_agent(user_agent: str | None, client: Client) -> None:
    assert client_of(user_agent) == client


@pytest.fixture(scope="module")
def world(http: httpx.Client) -> World:
    return World(http)


def ask(world: World, user_agent: str, method: str, path: str, body: Any = None) -> Any:
    answer = world.http.request(method, world.path(path), json=body, headers={"User-Agent": user_agent})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("user_agent", ["python-requests/2", "python-httpx/0.28", "dakera-py/0.12.12"])
def test_python_clients_get_namespaces_as_objects(world: World, user_agent: str) -> None:
    found = ask(world, user_agent, "GET", "/v1/namespaces")["namespaces"]
    (own,) = [item for item in found if item["name"] == world.ns]
    assert own["dimensions"] == own["dimension"] == len(VECTOR)


@pytest.mark.parametrize("user_agent", ["dakera-client/0.11.54", "dakera-client/0.12.0", "dakera-js/1", "node", ""])
def test_all_others_get_namespaces_as_names(world: World, user_agent: str) -> None:
    found = ask(world, user_agent, "GET", "/v1/namespaces")["namespaces"]
    assert world.ns in found
    assert all(isinstance(item, str) for item in found)


QUERIES = [
    ("/v1/namespaces/{ns}/query", {"vector": VECTOR}),
    ("/v1/namespaces/{ns}/fulltext/search", {"query": "text"}),
    ("/v1/namespaces/{ns}/hybrid", {"text": "text", "vector": VECTOR}),
]


@pytest.mark.parametrize(("path", "body"), QUERIES)
def test_the_key_of_hits(world: World, path: str, body: dict[str, Any]) -> None:
    old = ask(world, "dakera-client/0.11.54", "POST", path, body)
    assert old["matches"]
    assert "results" not in old
    for user_agent in ("dakera-client/0.11.55", "python-requests/2", "node"):
        new = ask(world, user_agent, "POST", path, body)
        assert new["results"]
        assert "matches" not in new


@pytest.mark.parametrize("user_agent", ["dakera-client/0.11.54", "dakera-client/0.11.55", "dakera-client/0.13.0"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/namespaces/{ns}", None),
        ("PUT", "/v1/namespaces/{ns}", {"dimension": 4}),
        ("POST", "/v1/agents/{agent_id}/compress", None),
        *(("POST", path, body) for path, body in QUERIES),
    ],
)
def test_the_rust_client_never_gets_an_aliased_pair(
    world: World, user_agent: str, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = ask(world, user_agent, method, path, body)
    for one, other in ALIASED_PAIRS:
        assert not (one in answer and other in answer), (one, other)


def test_other_clients_get_both_spellings(world: World) -> None:
    info = ask(world, "node", "GET", "/v1/namespaces/{ns}")
    assert (info["name"], info["dimensions"]) == (info["namespace"], info["dimension"])
    compressed = ask(world, "node", "POST", "/v1/agents/{agent_id}/compress")
    assert compressed["removed_count"] == compressed["originals_deprecated"]
    assert isinstance(compressed["duration_ms"], float)


def test_sessions_are_a_bare_array_to_old_rust_only(world: World) -> None:
    assert isinstance(ask(world, "dakera-client/0.11.54", "GET", "/v1/sessions"), list)
    for user_agent in ("dakera-client/0.11.55", "python-requests/2", "node"):
        answer = ask(world, user_agent, "GET", "/v1/sessions")
        assert answer["total"] == len(answer["sessions"])


def test_wake_up_times_are_iso_to_rust_and_seconds_to_others(world: World) -> None:
    (memory,) = ask(world, "dakera-client/0.11.54", "GET", "/v1/agents/{agent_id}/wake-up")["memories"]
    assert memory["created_at"].endswith("Z")
    (memory,) = ask(world, "node", "GET", "/v1/agents/{agent_id}/wake-up")["memories"]
    assert isinstance(memory["created_at"], int)


def test_nodes_are_a_bare_array_to_javascript_only(world: World) -> None:
    for user_agent in ("node", "undici", "dakera-js/0.11.105"):
        assert isinstance(ask(world, user_agent, "GET", "/v1/admin/cluster/nodes"), list)
    for user_agent in ("dakera-client/0.11.54", "python-requests/2", "curl/8", ""):
        answer = ask(world, user_agent, "GET", "/v1/admin/cluster/nodes")
        assert answer["total"] == len(answer["nodes"])
