"""The OpenAPI document: valid, complete, true of live answers; and what a fuzzer makes of it."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error

from dakera_cluster.api.openapi import document
from dakera_cluster.api.route import NoBody
from dakera_cluster.api.routes import ROUTES
from dakera_cluster.model.keys import Scope
from tests.support.node_process import NodeProcess
from tests.support.wire_examples import NOT_ALONE, World

EXAMPLES_PER_OPERATION = 12
DOCUMENT = document(ROUTES)
STOPS_THE_NODE = ("/ops/shutdown", "/cluster/maintenance/enable", "/cluster/nodes/{node_id}")
ENDLESS = ("/events", "/events/stream")
FUZZED = {
    **DOCUMENT,
    "paths": {path: rows for path, rows in DOCUMENT["paths"].items() if not path.endswith((*STOPS_THE_NODE, *ENDLESS))},
}
schema = schemathesis.openapi.from_dict(FUZZED)


def test_the_document_is_valid_openapi_3_1() -> None:
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1")


def test_every_path_of_the_table_is_in_the_document_once() -> None:
    rows = [(path, route.method.lower()) for route in ROUTES for path in route.paths]
    assert len(rows) == len(set(rows))
    assert set(rows) == {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    ids = [row["operationId"] for methods in DOCUMENT["paths"].values() for row in methods.values()]
    assert len(ids) == len(set(ids))


def test_each_row_says_its_parameters_body_scope_and_errors() -> None:
    for route in ROUTES:
        for path in route.paths:
            row = DOCUMENT["paths"][path][route.method.lower()]
            named = {parameter["name"] for parameter in row["parameters"] if parameter["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))
            assert ("requestBody" in row) == (route.body is not NoBody)
            assert (row.get("security") == []) == (route.scope is Scope.NONE)
            assert ("401" in row["responses"]) == (route.scope is not Scope.NONE)
            assert "404" in row["responses"]


def test_the_live_document_and_page_need_nothing_from_outside(node: NodeProcess) -> None:
    live = httpx.get(f"{node.url}/openapi.json").json()
    assert live["paths"].keys() == DOCUMENT["paths"].keys() | {"/openapi.json", "/docs"}
    page = httpx.get(f"{node.url}/docs")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.findall(r"""(?:src|href)=["']""", page.text)
    assert not re.search(r"https?://", page.text)
    # One policy: browsers enforce every one they are sent, and the common one lets no script run.
    (policy,) = page.headers.get_list("Content-Security-Policy")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    for kind, text in re.findall(r"<(script|style)>(.*?)</\1>", page.text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_live_answers_have_the_documented_types(http: httpx.Client) -> None:
    """Decodes every live answer as the declared type: a missing or wrong field fails."""
    for route in ROUTES:
        if route.answer_type != "application/json" or route.path in ("/ops/shutdown", *NOT_ALONE):
            continue
        world = World(http)
        body: Any = world.body(route)
        if body and "dimension" in body and route.method == "POST":
            body["name"] = f"{world.ns}-new"
        path = (
            world.path(route.path, ns=body["name"])
            if body and body.get("name", "").endswith("-new")
            else world.path(route.path)
        )
        answer = http.request(route.method, path, json=body, params=world.query(route))
        assert answer.status_code == 200, (route.path, answer.text)
        try:
            msgspec.convert(answer.json(), route.answer)
        except msgspec.ValidationError as error:
            pytest.fail(f"{route.method} {route.path}: {error}\n{answer.text[:500]}")


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=EXAMPLES_PER_OPERATION,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_no_generated_request_makes_a_5xx(case: schemathesis.Case, node: NodeProcess) -> None:
    headers = {"Authorization": f"Bearer {node.key}"}
    answer = case.call(base_url=node.url, headers=headers)
    case.validate_response(answer, checks=(not_a_server_error,))
