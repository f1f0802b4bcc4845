"""From a request's method and path to the endpoint that answers it.

Most paths of the table are literal and are found by one look-up. The others are tried from the longest literal beginning to
the shortest, and a literal segment before a parameter in the same place. A parameter is one segment, decoded; an encoded
slash in it (``%2F``) does not end it. What no route takes goes to the fallback. Called by `server`, which gives `handle` to
aiohttp's low-level server: that has no table of its own, no middlewares and no hooks to pass through.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping

from aiohttp import hdrs, web

from dakera_cluster.api.endpoint import Endpoint, Fallback
from dakera_cluster.api.route import Route
from dakera_cluster.api.runtime import Runtime

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PARAMETER = re.compile(r"\{(\w+)\}")
_NO_PARAMETERS: Mapping[str, str] = {}


class Dispatcher:
    """The route table, ready to be asked."""

    def __init__(self, routes: Iterable[Route], runtime: Runtime) -> None:
        self._literal: dict[tuple[str, str], Endpoint] = {}
        self._by_beginning: dict[str, list[tuple[re.Pattern[str], str, Endpoint]]] = {}
        self._methods: dict[str, set[str]] = {}
        self._fallback = Fallback(self._allowed, runtime)
        rows = [(route, path) for route in routes for path in route.paths]
        for route, path in sorted(rows, key=_literal_first):
            endpoint = Endpoint(route, path, runtime)
            for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
                self._add(method, path, endpoint)
        self._patterns = [(_pattern(path), methods) for path, methods in self._methods.items()]

    def _add(self, method: str, path: str, endpoint: Endpoint) -> None:
        methods = self._methods.setdefault(path, set())
        if method in methods:
            raise ValueError(f"two routes answer {method} {path}")
        methods.add(method)
        beginning, parameter, _ = path.partition("/{")
        if parameter:
            self._by_beginning.setdefault(beginning, []).append((_pattern(path), method, endpoint))
        else:
            self._literal[method, path] = endpoint

    def handle(self, http: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer a request. Raises HTTPExpectationFailed, which aiohttp answers."""
        return self._ask_for_body(http) if hdrs.EXPECT in http.headers else self._answer(http)

    async def _ask_for_body(self, http: web.BaseRequest) -> web.StreamResponse:
        await _go_on(http)
        return await self._answer(http)

    def _answer(self, http: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        method, path = http.method, http.rel_url.path_safe
        endpoint = self._literal.get((method, path))
        if endpoint is not None:
            return endpoint.handle(http, _NO_PARAMETERS)
        found = self._find(method, path)
        if found is None:
            return self._fallback.handle(http)
        return found[0].handle(http, found[1])

    def _find(self, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]] | None:
        beginning = path
        while beginning:
            beginning = beginning.rpartition("/")[0]
            for pattern, its_method, endpoint in self._by_beginning.get(beginning, ()):
                if its_method == method and (match := pattern.fullmatch(path)) is not None:
                    return endpoint, {name: _decoded(value) for name, value in match.groupdict().items()}
        return None

    def _allowed(self, path: str) -> list[str]:
        """The methods a path answers to, over every row whose template matches it."""
        return sorted({method for pattern, methods in self._patterns if pattern.fullmatch(path) for method in methods})


async def _go_on(http: web.BaseRequest) -> None:
    """Tell a client that asks before it sends its body to go on."""
    expected = http.headers[hdrs.EXPECT]
    if http.version < (1, 1):
        return
    if expected.lower() != "100-continue":
        raise web.HTTPExpectationFailed(text=f"Unknown Expect: {expected}")
    await http.writer.write(_CONTINUE)
    http.writer.output_size = 0  # the answer has not begun


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", path))


def _decoded(value: str) -> str:
    """A segment of a path in which all but slash and percent sign is decoded."""
    return value.replace("%2F", "/").replace("%25", "%") if "%" in value else value


def _literal_first(row: tuple[Route, str]) -> tuple[bool, ...]:
    """Sort key: a literal segment is tried before a parameter in the same place."""
    return tuple(part.startswith("{") for part in row[1].split("/"))
