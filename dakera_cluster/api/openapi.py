"""The OpenAPI 3.1 document, generated from the route table and the msgspec types it names.

Invariant: nothing is said here that the table does not say; the schemas are those the decoders enforce. Optional fields of
bodies also take ``null``, as the wire rules demand. Called once, when the app is made.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from dakera_cluster import __version__
from dakera_cluster.api.answers import ErrorBody
from dakera_cluster.api.route import NoBody, Route
from dakera_cluster.model.ids import MAX_ID_CHARS, MAX_NAMESPACE_CHARS
from dakera_cluster.model.keys import Scope

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_NOT_WORD = re.compile(r"\W+")
_HEADERS = {
    "X-Request-Id": "names the request in the node's log",
    "X-RateLimit-Limit": "requests per window",
    "X-RateLimit-Remaining": "requests left",
    "X-RateLimit-Reset": "Unix seconds at which the allowance is full",
}
_ERRORS = {
    "400": "A value is missing or out of range",
    "401": "No key, or not a live one",
    "403": "The key's scope or its namespaces do not allow this",
    "404": "Unknown namespace, vector, memory, session, key or job",
    "408": "The body did not arrive in time",
    "409": "It exists already, or changed meanwhile",
    "413": "The body or the quota is exceeded",
    "415": "The body is not JSON",
    "422": "A value has the wrong type",
    "429": "Rate limit exceeded",
    "503": "Starting, draining, overloaded, or too few replicas; retry after Retry-After seconds",
    "504": "No answer in time",
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document as a JSON value."""
    routes = list(routes)
    bodies = [route.body for route in routes if route.body is not NoBody]
    queries = [route.query for route in routes if route.query is not None]
    answers = [route.answer for route in routes if route.answer_type == "application/json"]
    kinds = [*bodies, *queries, *answers, ErrorBody]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = dict(zip(map(repr, kinds), schemas, strict=True))
    for component in components.values():
        if "description" in component:
            # Not every msgspec takes the indentation out of docstrings.
            component["description"] = inspect.cleandoc(component["description"])
    _take_null(components, [schema_of[repr(kind)] for kind in bodies])
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for path in route.paths:
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dakera Cluster",
            "version": __version__,
            "description": "Memory for AI agents: store, recall, and everything around it.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "security": [{"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "headers": {
                name: {"description": text, "schema": {"type": "string" if name == "X-Request-Id" else "integer"}}
                for name, text in _HEADERS.items()
            },
            "responses": {
                f"Error{status}": {
                    "description": text,
                    "content": {"application/json": {"schema": schema_of[repr(ErrorBody)]}},
                }
                for status, text in _ERRORS.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(
    route: Route, path: str, schema_of: dict[str, dict[str, Any]], components: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _NOT_WORD.sub("_", f"{route.method.lower()}{path}").strip("_"),
        "summary": route.summary,
        "tags": [route.tag],
        "x-scope": route.scope.wire,
        "parameters": [*_path_parameters(path), *_query_parameters(route, schema_of, components)],
        "responses": {"200": _success(route, schema_of), **_error_responses(route)},
    }
    if route.scope is Scope.NONE:
        operation["security"] = []
    else:
        operation["description"] = f"Scope: {route.scope.wire}."
    if route.legacy:
        operation["deprecated"] = True
    if route.body is not NoBody:
        schema = schema_of[repr(route.body)]
        needs = components[schema["$ref"].rpartition("/")[2]].get("required", [])
        operation["requestBody"] = {"required": bool(needs), "content": {"application/json": {"schema": schema}}}
    return operation


def _success(route: Route, schema_of: dict[str, dict[str, Any]]) -> dict[str, Any]:
    schema = {"type": "string"} if route.answer_type != "application/json" else schema_of[repr(route.answer)]
    return {
        "description": "Done",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS},
        "content": {route.answer_type: {"schema": schema}},
    }


def _error_responses(route: Route) -> dict[str, Any]:
    left_out = {"401", "403", "429"} if route.scope is Scope.NONE else set()
    if route.body is NoBody:
        left_out |= {"408", "413", "415", "422"}
    return {status: {"$ref": f"#/components/responses/Error{status}"} for status in _ERRORS if status not in left_out}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_NAMESPACE_CHARS if name == "ns" else MAX_ID_CHARS,
            },
        }
        for name in _PARAMETER.findall(path)
    ]


def _query_parameters(
    route: Route, schema_of: dict[str, dict[str, Any]], components: dict[str, Any]
) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    component = components[schema_of[repr(route.query)]["$ref"].rpartition("/")[2]]
    required = component.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(schema)}
        for name, schema in component["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is absent, never null."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if not choices:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **choices[0]} if len(choices) == 1 else {**rest, "anyOf": choices}


def _take_null(components: dict[str, Any], roots: list[dict[str, Any]]) -> None:
    """Let every optional property of the schemas reachable from ``roots`` be null."""
    seen: set[str] = set()
    pending: list[Any] = list(roots)
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
            continue
        if not isinstance(value, dict):
            continue
        pending.extend(item for key, item in value.items() if key != "$ref")
        name = str(value.get("$ref", "")).rpartition("/")[2]
        if not name or name in seen:
            continue
        seen.add(name)
        component = components[name]
        pending.append(component)
        required = component.get("required", [])
        for field, schema in component.get("properties", {}).items():
            if field not in required and schema and schema.get("type") != "null" and not _takes_null(schema):
                default = {"default": schema["default"]} if "default" in schema else {}
                bare = {key: item for key, item in schema.items() if key != "default"}
                component["properties"][field] = {"anyOf": [bare, {"type": "null"}], **default}


def _takes_null(schema: dict[str, Any]) -> bool:
    return {"type": "null"} in schema.get("anyOf", ())
