"""Bad input to every row of the route table: always a 4xx with the contract's code and a message that names the field,
never a 5xx, and nothing is stored."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from dakera_cluster.api.route import NoBody, Route
from dakera_cluster.api.routes import ROUTES
from dakera_cluster.api.streams import CONTENT_TYPE
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.ids import MAX_ID_CHARS
from tests.api.conftest import SMALL_BODY_BYTES
from tests.support.node_process import NodeProcess
from tests.support.wire_examples import VECTOR, World

ROWS = [
    pytest.param(route, path, id=f"{route.method} {path}")
    for route in ROUTES
    for path in route.paths
    if not route.exempt and path != "/ops/shutdown" and route.answer_type != CONTENT_TYPE
]
JSON_ROWS = [row for row in ROWS if row.values[0].body is not NoBody]
PARAMETER_ROWS = [row for row in ROWS if "{" in row.values[1]]
QUERY_ROWS = [row for row in ROWS if row.values[0].query is not None]
CREATES_NAMESPACE = {
    ("POST", "/v1/namespaces/{ns}"),
    ("PUT", "/v1/namespaces/{ns}"),
    ("POST", "/v1/namespaces/{ns}/vectors"),
    ("POST", "/v1/namespaces/{ns}/upsert-columns"),
    ("POST", "/v1/namespaces/{ns}/fulltext/index"),
    ("POST", "/v1/namespaces/{ns}/upsert-text"),
}
KEYS_OF_NAMESPACE = "/v1/namespaces/{ns}/keys"  # a key may be made before its namespace
NAMESPACE_ROWS = [
    row
    for row in ROWS
    if "{ns}" in row.values[1]
    and (row.values[0].method, row.values[1]) not in CREATES_NAMESPACE
    and row.values[1] != KEYS_OF_NAMESPACE
]
CODES = {(error.status, error.code) for error in [DakeraError, *DakeraError.__subclasses__()]} | {
    (error.status, error.code) for branch in DakeraError.__subclasses__() for error in branch.__subclasses__()
}
DEEP = 3_000


@pytest.fixture(scope="module")
def world(http: httpx.Client) -> World:
    return World(http)


@pytest.fixture(scope="module")
def before(world: World) -> Any:
    return world.snapshot()


@pytest.fixture
def unchanged(world: World, before: Any) -> Iterator[None]:
    yield
    assert world.snapshot() == before


def refused(answer: httpx.Response, *statuses: int, names: str = "") -> None:
    """The answer is one of these 4xx, in the contract's form, and its text names the field."""
    assert answer.status_code in statuses, f"{answer.status_code} {answer.text[:300]}"
    body = answer.json()
    assert (answer.status_code, body["code"]) in CODES, body
    assert body["status"] == answer.status_code
    assert names in body["error"], body


def send(world: World, route: Route, path: str, body: Any = None, **kwargs: Any) -> httpx.Response:
    content = kwargs.pop("content", None)
    if content is None and body is not None:
        content = json.dumps(body)
    headers = {"Content-Type": "application/json", **kwargs.pop("headers", {})}
    params = kwargs.pop("params", world.query(route))
    return world.http.request(route.method, world.path(path), content=content, headers=headers, params=params, **kwargs)


def required_fields(kind: type[Any]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind) if field.required]


def wrong_value(hint: Any) -> Any:
    """A JSON value that no reading of ``hint`` allows; None when everything is allowed."""
    kinds = [part for part in typing.get_args(hint) if part is not types.NoneType]
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        kinds = [hint]
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    for value, fits in ((True, bool), ({"a": 1}, dict), ("text", str), ([[]], list)):
        structural = fits is dict and any(isinstance(o, type) and issubclass(o, msgspec.Struct) for o in origins)
        if fits not in origins and not structural and Any not in origins:
            return value
    return None


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_wrong_types_are_refused_by_field(world: World, route: Route, path: str) -> None:
    hints = typing.get_type_hints(route.body)
    for field in msgspec.structs.fields(route.body):
        value = wrong_value(hints[field.name])
        body = {**(world.body(route) or {}), field.encode_name: value}
        refused(send(world, route, path, body), 422, 400, names=field.encode_name)


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_missing_fields_are_refused_by_name(world: World, route: Route, path: str) -> None:
    for field in required_fields(route.body):
        body = {name: value for name, value in (world.body(route) or {}).items() if name != field}
        refused(send(world, route, path, body), 400, names=field)
        refused(send(world, route, path, {**body, field: None}), 400, names=field)


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_what_is_not_json_is_refused(world: World, route: Route, path: str) -> None:
    valid = json.dumps(world.body(route)).encode()
    for content in (b"{", b'{"a":}', b"\xff\xfe", valid + b"}", b"nonsense", valid[:-1] + b',"x":NaN}', b"\x00"):
        refused(send(world, route, path, content=content), 400, names="body")
    for content in (b"[]", b'"text"', b"1", b"true"):
        refused(send(world, route, path, content=content), 422, names="body")
    refused(send(world, route, path, content=b"null"), 422, 400, names="body")


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_invalid_utf8_is_refused_wherever_it_stands(world: World, route: Route, path: str) -> None:
    valid = json.dumps(world.body(route)).encode()[:-1]
    comma = b"," if len(valid) > 1 else b""
    for content in (valid + comma + b'"unknown":"\xc3\x28"}', valid + comma + b'"\xff":1}'):
        refused(send(world, route, path, content=content), 400, names="UTF-8")
    surrogate = valid + comma + b'"unknown":"\\ud800"}'
    answer = send(world, route, path, content=surrogate)
    assert answer.status_code < 500


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_deep_json_is_refused(world: World, route: Route, path: str) -> None:
    valid = json.dumps(world.body(route)).encode()[:-1]
    comma = b"," if len(valid) > 1 else b""
    hints = typing.get_type_hints(route.body)
    fields = [f.encode_name for f in msgspec.structs.fields(route.body) if "Any" in str(hints[f.name])]
    for field in (*fields, "unknown"):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            for depth in (100, DEEP):
                value = opening * depth + b"1" + closing * depth
                if field != "unknown" and opening == b"[" and "dict" in str(hints[field]):
                    value = b'{"a":' + value + b"}"
                content = valid + comma + b'"%s":%s}' % (field.encode(), value)
                if field == "unknown" and depth < DEEP:
                    continue
                refused(send(world, route, path, content=content), 400, 422)


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_numbers_beyond_any_range_are_refused(world: World, route: Route, path: str) -> None:
    hints = typing.get_type_hints(route.body)
    for field in msgspec.structs.fields(route.body):
        hint = str(hints[field.name])
        if hints[field.name] is bool or not ("int" in hint or "float" in hint) or "list" in hint:
            continue
        numbers = ["1e400", "-1e400"]
        numbers += ["1" + "0" * 40, "-" + "9" * 40] if "float" not in hint else []
        for number in numbers:
            body = {**(world.body(route) or {}), field.encode_name: "@"}
            content = json.dumps(body).replace('"@"', number).encode()
            refused(send(world, route, path, content=content), 400, 422, names=field.encode_name)


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_other_media_types_are_refused(world: World, route: Route, path: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml"):
        answer = send(world, route, path, world.body(route) or {"x": 1}, headers={"Content-Type": kind})
        refused(answer, 415, names="Content-Type")


@pytest.mark.parametrize(("route", "path"), JSON_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_bodies_over_the_limit_are_refused(world: World, route: Route, path: str) -> None:
    padding = b'{"unknown":"' + b"x" * SMALL_BODY_BYTES + b'"}'
    refused(send(world, route, path, content=padding), 413, names="body")

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(padding), 65_536):
            yield padding[at : at + 65_536]

    refused(send(world, route, path, content=chunks()), 413, names="body")


@pytest.mark.parametrize(("route", "path"), PARAMETER_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_bad_ids_in_paths_are_refused_by_name(world: World, route: Route, path: str) -> None:
    for name in (part[1:-1] for part in path.split("/") if part.startswith("{")):
        for bad in ("x" * (MAX_ID_CHARS + 1), "x" * 20_000, "a%00b", "a%0Ab", "%20", "%7F"):
            template = path.replace(f"{{{name}}}", "@")
            url = world.path(template).replace("@", bad)
            answer = world.http.request(
                route.method,
                httpx.URL(world.http.base_url).join(url),
                json=world.body(route),
                params=world.query(route),
            )
            refused(answer, 400, names="namespace" if name == "ns" else name)


@pytest.mark.parametrize(("route", "path"), QUERY_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_bad_query_parameters_are_refused_by_name(world: World, route: Route, path: str) -> None:
    hints = typing.get_type_hints(route.query)
    for field in msgspec.structs.fields(route.query):
        hint = str(hints[field.name])
        if "str" in hint:
            continue
        bad = ["text", "[]", "1e400" if "float" in hint else "9" * 40] + (["-1", "1.5"] if "int" in hint else [])
        for value in bad:
            answer = send(
                world, route, path, world.body(route), params={**world.query(route), field.encode_name: value}
            )
            refused(answer, 400, names=field.encode_name)


@pytest.mark.parametrize(("route", "path"), NAMESPACE_ROWS)
@pytest.mark.usefixtures("unchanged")
def test_unknown_namespaces_are_404(world: World, route: Route, path: str) -> None:
    name = "no-such-namespace"
    answer = world.http.request(
        route.method, world.path(path, ns=name), json=world.body(route), params=world.query(route)
    )
    refused(answer, 404)
    assert answer.json()["code"] in ("NAMESPACE_NOT_FOUND", "API_KEY_NOT_FOUND"), answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/memory/get/absent"),
        ("GET", "/v1/agents/absent/memories/absent"),
        ("DELETE", "/v1/agents/absent/memories/absent"),
        ("GET", "/v1/memories/absent/feedback"),
        ("GET", "/v1/sessions/absent"),
        ("GET", "/v1/sessions/absent/memories"),
        ("POST", "/v1/sessions/absent/end"),
        ("GET", "/admin/keys/absent"),
        ("DELETE", "/v1/keys/absent"),
        ("POST", "/admin/keys/absent/rotate"),
        ("GET", "/ops/jobs/absent"),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_unknown_things_are_404_and_named(world: World, method: str, path: str) -> None:
    refused(world.http.request(method, path), 404, names="absent")


LONG = "x" * 600
STORE = "/v1/memory/store"
RECALL = "/v1/memory/recall"
OUT_OF_RANGE: list[tuple[str, str, dict[str, Any], str]] = [
    *(
        ("POST", STORE, {"agent_id": "a", "content": "c", **change}, field)
        for change, field in [
            ({"content": ""}, "content"),
            ({"importance": 1.01}, "importance"),
            ({"importance": -0.01}, "importance"),
            ({"memory_type": "strategic"}, "memory_type"),
            ({"tags": [""]}, "tags"),
            ({"tags": ["x" * 300]}, "tags"),
            ({"tags": ["x"] * 300}, "tags"),
            ({"ttl_seconds": 0}, "ttl_seconds"),
            ({"ttl_seconds": -5}, "ttl_seconds"),
            ({"ttl_seconds": 2**53}, "ttl_seconds"),
            ({"expires_at": -1}, "expires_at"),
            ({"expires_at": 2**53}, "expires_at"),
            ({"embedding": []}, "embedding"),
            ({"embedding": [1.0, 2.0]}, "embedding"),
            ({"embedding": [1e39] * 384}, "embedding"),
            ({"id": LONG}, "id"),
            ({"id": ""}, "id"),
            ({"id": "a\nb"}, "id"),
            ({"session_id": LONG}, "session_id"),
            ({"agent_id": ""}, "agent_id"),
            ({"agent_id": LONG}, "agent_id"),
            ({"agent_id": "a\u0000b"}, "agent_id"),
            ({"event_time": "not a time"}, "event_time"),
            ({"metadata": {"k": "v" * 300_000}}, ""),
        ]
    ),
    *(
        ("POST", RECALL, {"agent_id": "a", "query": "q", **change}, field)
        for change, field in [
            ({"query": ""}, "query"),
            ({"top_k": 0}, "top_k"),
            ({"top_k": -1}, "top_k"),
            ({"top_k": 1_000_000}, "top_k"),
            ({"memory_type": "x"}, "memory_type"),
            ({"min_importance": 2}, "min_importance"),
            ({"since": "yesterday-ish"}, "since"),
            ({"until": "31/31/2020"}, "until"),
            ({"routing": "teleport"}, "routing"),
            ({"fusion": "cold"}, "fusion"),
            ({"vector_weight": 1.5}, "vector_weight"),
            ({"iterations": 0}, "iterations"),
            ({"iterations": 9}, "iterations"),
            ({"filter": {"x": {"$nope": 1}}}, "filter"),
            ({"filter": {"x": {"$regex": "("}}}, "filter"),
            ({"filter": {"$and": {}}}, "filter"),
            ({"associated_memories_depth": -1}, "associated_memories_depth"),
            ({"consistency": "psychic"}, "consistency"),
        ]
    ),
    ("POST", "/v1/memories/store/batch", {"agent_id": "a", "memories": []}, "memories"),
    ("POST", "/v1/memories/store/batch", {"agent_id": "a", "memories": [{"content": "x"}] * 1001}, "memories"),
    (
        "POST",
        "/v1/memories/store/batch",
        {"agent_id": "a", "memories": [{"content": "x"}, {"content": ""}]},
        "memories[1]",
    ),
    ("POST", "/v1/memories/recall/batch", {"agent_id": "a", "filter": {"min_importance": 3}}, "min_importance"),
    ("DELETE", "/v1/memories/forget/batch", {"agent_id": "a", "filter": {}}, "filter"),
    ("DELETE", "/v1/memories/forget/batch", {"agent_id": "a", "filter": {"tags": []}}, "filter"),
    ("DELETE", "/v1/memories/forget/batch", {"agent_id": "a"}, "filter"),
    ("POST", "/v1/memory/forget", {"agent_id": "a"}, ""),
    ("POST", "/v1/memory/forget", {"agent_id": "a", "memory_ids": [], "tags": []}, ""),
    ("POST", "/v1/memory/importance", {"agent_id": "a", "memory_id": "m", "importance": 2}, "importance"),
    ("POST", "/v1/memory/importance", {"agent_id": "a", "importance": 0.5}, "memory_id"),
    ("POST", "/v1/memories/m/feedback", {"agent_id": "a", "signal": "meh"}, "signal"),
    ("POST", "/v1/memory/consolidate", {"agent_id": "a", "threshold": 7}, "threshold"),
    ("POST", "/v1/memory/consolidate", {"agent_id": "a", "memory_ids": ["one"]}, "memory_ids"),
    ("POST", "/v1/memory/consolidate", {"agent_id": "a", "config": {"algorithm": "magic"}}, "algorithm"),
    ("POST", "/v1/namespaces", {"name": "bad", "dimension": 0}, "dimension"),
    ("POST", "/v1/namespaces", {"name": "bad", "dimension": -3}, "dimension"),
    ("POST", "/v1/namespaces", {"name": "bad", "dimension": 10_000_000}, "dimension"),
    ("POST", "/v1/namespaces", {"name": "bad", "dimension": 4, "distance": "miles"}, "distance"),
    ("POST", "/v1/namespaces", {"name": "bad", "dimension": 4, "index_type": "tree"}, "index_type"),
    ("POST", "/v1/namespaces", {"name": "", "dimension": 4}, "name"),
    ("POST", "/v1/namespaces", {"name": LONG, "dimension": 4}, "name"),
    ("POST", "/v1/namespaces", {"dimension": 4}, "name"),
    ("PUT", "/v1/namespaces/{ns}", {"dimension": 5}, "dimension"),
    *(
        ("POST", f"/v1/namespaces/{{ns}}/{path}", body, field)
        for path, body, field in [
            ("vectors", {"vectors": []}, "vectors"),
            ("vectors", {"vectors": [{"id": "x", "values": [1.0]}]}, "vectors"),
            ("vectors", {"vectors": [{"id": "x", "values": []}]}, "values"),
            ("vectors", {"vectors": [{"id": "x", "values": [1e39, 0, 0, 0]}]}, "values"),
            ("vectors", {"vectors": [{"id": "", "values": VECTOR}]}, "id"),
            ("vectors", {"vectors": [{"id": LONG, "values": VECTOR}]}, "id"),
            ("vectors", {"vectors": [{"id": "x", "values": VECTOR, "ttl_seconds": -1}]}, "ttl_seconds"),
            ("upsert-columns", {"ids": ["a"], "vectors": []}, "vectors"),
            ("upsert-columns", {"ids": ["a"], "vectors": [VECTOR], "attributes": {"x": []}}, "attributes.x"),
            ("upsert-columns", {"ids": ["a"], "vectors": [VECTOR], "dimension": 5}, "vectors[0]"),
            ("query", {"vector": []}, "vector"),
            ("query", {"vector": [1.0, 2.0]}, "vector"),
            ("query", {"vector": VECTOR, "top_k": 0}, "top_k"),
            ("query", {"vector": VECTOR, "distance_metric": "miles"}, "distance_metric"),
            ("query", {"vector": VECTOR, "consistency": "psychic"}, "consistency"),
            ("query", {"vector": VECTOR, "filter": {"a": {"$bad": 1}}}, "filter"),
            ("batch-query", {"queries": []}, "queries"),
            ("vectors/delete", {}, "ids"),
            ("vectors/bulk-delete", {"filter": {}}, "filter"),
            ("vectors/bulk-update", {"filter": {}, "update": {"x": 1}}, "filter"),
            ("vectors/bulk-update", {"filter": {"a": 1}, "update": {}}, "update"),
            ("multi-vector", {}, "positive_vectors"),
            ("multi-vector", {"positive_vectors": []}, "positive"),
            ("multi-vector", {"positive_vectors": [[1.0]]}, "positive"),
            ("multi-vector", {"positive_vectors": [VECTOR], "positive_weights": [1.0, 2.0]}, "positive_weights"),
            ("multi-vector", {"positive_vectors": [VECTOR], "enable_mmr": True, "mmr_lambda": 4}, "mmr_lambda"),
            ("unified-query", {}, "rank_by"),
            ("unified-query", {"rank_by": ["Nope", VECTOR]}, "rank_by"),
            ("unified-query", {"rank_by": []}, "rank_by"),
            ("unified-query", {"rank_by": ["ANN", [1.0]]}, "rank_by"),
            ("unified-query", {"rank_by": ["ANN", ["x"] * 4]}, "rank_by"),
            ("aggregate", {"aggregate_by": {"x": ["Median", "y"]}}, "aggregate_by"),
            ("aggregate", {"metrics": ["median_x"]}, "metrics[0]"),
            ("export", {"limit": 0}, "limit"),
            ("explain", {"query_type": "tarot", "vector": VECTOR}, "query_type"),
            ("fulltext/index", {"documents": [{"id": "x"}]}, "documents[0]"),
            ("fulltext/index", {"documents": []}, "documents"),
            ("fulltext/search", {"query": "x", "top_k": 0}, "top_k"),
            ("upsert-text", {"documents": []}, "documents"),
            ("query-text", {"text": "", "top_k": 1}, "text"),
            ("batch-query-text", {"queries": []}, "queries"),
            ("hybrid", {"top_k": 3}, "query"),
            ("hybrid", {"query": "x", "alpha": 2}, "alpha"),
            ("hybrid", {"query": "x", "vector_weight": -1}, "vector_weight"),
            ("hybrid", {"query": "x", "vector": [1.0]}, "vector"),
            ("cache/warm", {"priority": "royal"}, "priority"),
            ("cache/warm", {"target_tier": "l9"}, "target_tier"),
            ("cache/warm", {"access_pattern": "zigzag"}, "access_pattern"),
            ("keys", {"name": ""}, "name"),
            ("keys", {"name": "x" * 129}, "name"),
            ("keys", {"name": "k", "scope": "super_admin"}, "scope"),
            ("keys", {"name": "k", "expires_in_days": 0}, "expires_in_days"),
        ]
    ),
    ("POST", "/admin/keys", {"name": "k", "scope": "god"}, "scope"),
    ("POST", "/v1/keys", {"name": "k", "permissions": ["fly"]}, "permissions[0]"),
    ("POST", "/v1/keys", {"name": "k", "expires_at": "tomorrow"}, "expires_at"),
    ("POST", "/v1/keys", {"name": "k", "expires_at": "1999-01-01T00:00:00Z"}, "expires_at"),
    ("POST", "/ops/compact", {"namespace": "no-such-namespace"}, "no-such-namespace"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    OUT_OF_RANGE,
    ids=[f"{method} {path} {json.dumps(body)[:60]}" for method, path, body, _ in OUT_OF_RANGE],
)
@pytest.mark.usefixtures("unchanged")
def test_values_out_of_range_are_refused_by_field(
    world: World, method: str, path: str, body: dict[str, Any], field: str
) -> None:
    if body.get("agent_id") == "a":
        body = {**body, "agent_id": world.agent}
    answer = world.http.request(method, world.path(path), json=body)
    refused(answer, 400, 404, 413, 422, names=field)


def test_no_bad_request_reached_the_log_as_an_error(node: NodeProcess) -> None:
    assert "Traceback" not in node.log()
    assert node.running
