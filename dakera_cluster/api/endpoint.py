"""The way of a request: admit, identify, limit, read, decode, check the namespace, call the handler, encode, answer.

One `Endpoint` is made for each path of the route table, with everything that can be prepared (decoder, scope, template);
nothing is looked up by reflection while a request runs. Invariants: whatever goes wrong is answered with the error body
of the contract; a traceback goes to the log and never to a client; every answer carries the headers of `headers` and is
counted once. Called by `dispatch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from aiohttp import web
from multidict import CIMultiDict, istr

from dakera_cluster.api import content
from dakera_cluster.api.auth import Identity, anonymous, require_namespace, require_scope, require_unpinned
from dakera_cluster.api.compat import client_of
from dakera_cluster.api.content import BodyReader
from dakera_cluster.api.decode import Decoder, decode_query
from dakera_cluster.api.headers import HeaderPolicy
from dakera_cluster.api.limits import Allowance
from dakera_cluster.api.metrics import UNKNOWN_PATH
from dakera_cluster.api.reply import Reply, header_lines, without
from dakera_cluster.api.route import Call, NoBody, Raw, Route
from dakera_cluster.api.runtime import Runtime
from dakera_cluster.api.streams import EventStream
from dakera_cluster.cluster import levels
from dakera_cluster.model.errors import (
    AuthenticationRequiredError,
    DakeraError,
    InternalError,
    InvalidApiKeyError,
    InvalidRequestError,
    MethodNotAllowedError,
    OverloadedError,
    PayloadTooLargeError,
    QueryTimeoutError,
    RateLimitedError,
    RequestTimeoutError,
    RouteNotFoundError,
    UnsupportedMediaTypeError,
)
from dakera_cluster.model.ids import AGENT_PREFIX, MAX_NAMESPACE_CHARS, agent_namespace, check_id, check_namespace
from dakera_cluster.model.keys import Scope
from dakera_cluster.protocols.quorum import ReadLevel, WriteLevel

log = logging.getLogger(__name__)
access_log = logging.getLogger("dakera_cluster.api.access")

JSON = "application/json"
_JSON_LINE = header_lines({"Content-Type": JSON})
_ACCEPT_ENCODING = istr("Accept-Encoding")
_CONTENT_TYPE = istr("Content-Type")
_READ_LEVEL = istr("X-Read-Consistency")
_USER_AGENT = istr("User-Agent")
_WRITE_LEVEL = istr("X-Write-Level")
MAX_AGENT_CHARS = MAX_NAMESPACE_CHARS - len(AGENT_PREFIX)
_JSON_SUFFIX = "+json"
_HTTP_OK = 200
_HTTP_NO_CONTENT = 204

_Level = TypeVar("_Level", WriteLevel, ReadLevel)


class Endpoint:
    """One path of one route."""

    def __init__(self, route: Route, template: str, runtime: Runtime) -> None:
        self.route = route
        self.template = template
        self._runtime = runtime
        self._takes_json = route.body is not NoBody
        self._takes_body = route.method not in ("GET", "HEAD")
        self._decoder = Decoder(route.body, max_depth=runtime.settings.max_json_depth)
        self._from_query = route.answer_type == "text/event-stream"
        source, _, name = (route.namespace_from or "").partition(".")
        self._namespace_source = source
        self._namespace_name = name

    async def handle(self, http: web.BaseRequest, path: Mapping[str, str]) -> web.StreamResponse:
        """Answer a request; ``path``: the parameters in its path."""
        runtime = self._runtime
        started = runtime.monotonic()
        exchange = Exchange(runtime, http, self.template, self.route.operation, started)
        admitted = False
        try:
            if not self.route.exempt:
                runtime.admission.enter()
                admitted = True
            answer = await self._work(http, path, exchange)
            if not isinstance(answer, EventStream):
                body, head = exchange.encoded(answer)
                if len(body) >= runtime.settings.compress_min_bytes:
                    body, head = await exchange.packed(body, head)
                return exchange.succeed(body, head)
            response = await answer.open(exchange.stream_headers())
        except DakeraError as error:
            return exchange.fail(error)
        except Exception:
            log.exception("request %s failed: %s %s", exchange.request_id, http.method, self.template)
            return exchange.fail(InternalError("internal error", details={"request_id": exchange.request_id}))
        finally:
            if admitted:
                runtime.admission.leave()
            exchange.finish()
        # A stream is counted as answered when it begins: what follows has no time limit and takes no place.
        await answer.run()
        return response

    async def _work(self, http: web.BaseRequest, path: Mapping[str, str], exchange: Exchange) -> Any:
        """The handler's answer. Raises the errors of the tree."""
        runtime = self._runtime
        settings = runtime.settings
        aside = settings.decode_off_loop_bytes
        identity = await self._identify(http, exchange)
        reader = BodyReader(
            runtime.admission, limit_bytes=settings.max_body_bytes, off_loop_bytes=settings.compress_off_loop_bytes
        )
        reading = True
        ours = False
        limit = runtime.time_limits.begin()
        try:
            try:
                data = await reader.read(http) if self._takes_body else b""
                reading = False
                body = await self._decode_aside(http, data) if len(data) >= aside else self._decode(http, data)
                if path:
                    _check_path(path)
                query = decode_query(http.query, self.route.query) if self.route.query is not None else None
                exchange.namespace = namespace = self._namespace(path, body, query)
                if namespace is not None:
                    require_namespace(identity, namespace)
                _take_levels(http)
                call = Call(
                    runtime.services, runtime, http, client_of(http.headers.get(_USER_AGENT)), identity, path, query
                )
                return await self.route.handler(call, body)
            finally:
                ours = limit.end()
        except asyncio.CancelledError:
            if not ours:
                raise
            if reading:
                raise RequestTimeoutError("the body did not arrive in time") from None
            raise QueryTimeoutError(f"no answer within {settings.request_timeout_s:g} s") from None
        finally:
            reader.close()

    async def _identify(self, http: web.BaseRequest, exchange: Exchange) -> Identity:
        runtime = self._runtime
        route = self.route
        if route.scope is Scope.NONE:
            identity = anonymous(http, Scope.NONE)
            exchange.allowance = runtime.limiter.peek(identity.bucket, exchange.started)
            return identity
        try:
            identity = await runtime.auth.identify(http, from_query=self._from_query)
        except (AuthenticationRequiredError, InvalidApiKeyError):
            exchange.allowance = runtime.limiter.take(anonymous(http, Scope.NONE).bucket, exchange.started)
            raise
        exchange.key_id = identity.key_id
        if not route.exempt:
            exchange.allowance = runtime.limiter.take(identity.bucket, exchange.started)
        require_scope(identity, route.scope)
        if route.node_wide:
            require_unpinned(identity)
        return identity

    async def _decode_aside(self, http: web.BaseRequest, data: bytes) -> Any:
        return await asyncio.to_thread(self._decode, http, data)

    def _decode(self, http: web.BaseRequest, data: bytes) -> Any:
        if not self._takes_json:
            return None
        if data and not _is_json(http.headers.get(_CONTENT_TYPE)):
            raise UnsupportedMediaTypeError(
                f"Content-Type: expected {JSON}, got {http.headers.get(_CONTENT_TYPE)!r}",
                details={"field": "Content-Type"},
            )
        return self._decoder.decode(data)

    def _namespace(self, path: Mapping[str, str], body: Any, query: Any) -> str | None:
        """The namespace this request touches, when the route names one."""
        source = self._namespace_source
        if not source:
            return None
        name = self._namespace_name
        value = path[name] if source == "path" else getattr(body if source == "body" else query, name)
        if value is None:
            return None
        if name == "agent_id":
            return agent_namespace(value if source == "path" else check_id(value, name, limit=MAX_AGENT_CHARS))
        return value if source == "path" else check_namespace(value, name)


def _check_path(path: Mapping[str, str]) -> None:
    for name, value in path.items():
        if name == "ns":
            check_namespace(value)
        elif name == "agent_id":
            check_id(value, name, limit=MAX_AGENT_CHARS)
        else:
            check_id(value, name)


def _take_levels(http: web.BaseRequest) -> None:
    """Note the write level and read consistency that the headers ask for. Raises InvalidRequestError.

    What is set stays with the task of this request alone: aiohttp makes one for each, in the context of its connection, where
    nothing is ever set.
    """
    headers = http.headers
    if (wanted := headers.get(_WRITE_LEVEL)) is not None:
        levels.write_level.set(_level(wanted, _WRITE_LEVEL, WriteLevel))
    if (wanted := headers.get(_READ_LEVEL)) is not None:
        levels.read_level.set(_level(wanted, _READ_LEVEL, ReadLevel))


def _level(value: str, header: str, kind: type[_Level]) -> _Level:
    try:
        return kind(value.lower())
    except ValueError:
        raise InvalidRequestError(f"expected one of {', '.join(kind)}, got {value[:32]!r}", field=str(header)) from None


def _is_json(content_type: str | None) -> bool:
    if content_type is None or content_type == JSON:
        return True
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith(_JSON_SUFFIX)


class Fallback:
    """Answers what no route took: 404, 405 with Allow, and CORS preflights."""

    def __init__(self, allowed: Any, runtime: Runtime) -> None:
        self._allowed = allowed
        self._runtime = runtime

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        exchange = Exchange(self._runtime, http, UNKNOWN_PATH, "", self._runtime.monotonic())
        exchange.allowance = self._runtime.limiter.peek(anonymous(http, Scope.NONE).bucket, exchange.started)
        allowed: list[str] = self._allowed(http.rel_url.raw_path)
        try:
            if http.method == "OPTIONS" and (allowed or "Access-Control-Request-Method" in http.headers):
                return exchange.preflight([*allowed, "OPTIONS"])
            if not allowed:
                return exchange.fail(RouteNotFoundError(f"no route {http.method} {http.path[:200]}"))
            error = MethodNotAllowedError(f"{http.method} is not allowed here; use {', '.join(allowed)}")
            return exchange.fail(error, Allow=", ".join(allowed))
        finally:
            exchange.finish()


class Exchange:
    """One request and its answer: builds responses with the common headers and does the bookkeeping."""

    __slots__ = ("_http", "_now", "_operation", "_runtime", "_sent", "_status", "_template", "allowance", "key_id",
                 "namespace", "request_id", "started")  # fmt: skip

    def __init__(self, runtime: Runtime, http: web.BaseRequest, template: str, operation: str, started: float) -> None:
        self._runtime = runtime
        self._http = http
        self._template = template
        self._operation = operation
        self._status = 0
        self._sent = 0
        self.started = started
        self.request_id = runtime.headers.request_id(http)
        self.allowance: Allowance | None = None
        self.key_id: str | None = None
        self.namespace: str | None = None
        runtime.metrics.active += 1

    def _headers(self) -> str:
        runtime = self._runtime
        allowance = self.allowance
        if allowance is None:
            caller = self.key_id or anonymous(self._http, Scope.NONE).bucket
            allowance = runtime.limiter.peek(caller, self.started)
        return runtime.headers.base(self._http, self.request_id, allowance, runtime.clock())

    def stream_headers(self) -> CIMultiDict[str]:
        self._status = _HTTP_OK
        pairs = (line.split(": ", 1) for line in self._headers().splitlines())
        return CIMultiDict((name, value) for name, value in pairs)

    def encoded(self, answer: Any) -> tuple[bytes, str]:
        """Body and header lines of an answer."""
        if isinstance(answer, Raw):
            own = {"Content-Type": answer.content_type, **answer.headers}
            return answer.body, without(self._headers(), answer.headers) + header_lines(own)
        return self._runtime.encode(answer), self._headers() + _JSON_LINE

    async def packed(self, body: bytes, head: str) -> tuple[bytes, str]:
        """The same, compressed as the client accepts it."""
        head += "Vary: Accept-Encoding\r\n"
        encoding = content.accepted_encoding(self._http.headers.get(_ACCEPT_ENCODING, "")[:256])
        if encoding is None:
            return body, head
        head += f"Content-Encoding: {encoding}\r\n"
        if len(body) >= self._runtime.settings.compress_off_loop_bytes:
            return await asyncio.to_thread(content.pack, body, encoding), head
        return content.pack(body, encoding), head

    def succeed(self, body: bytes, head: str) -> Reply:
        return self._respond(_HTTP_OK, body, head)

    def fail(self, error: DakeraError, **more: str) -> Reply:
        if isinstance(error, (OverloadedError, RateLimitedError, PayloadTooLargeError)):
            self._runtime.metrics.reject(error.code.lower())
        if error.retry_after_s is not None:
            more["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, AuthenticationRequiredError | InvalidApiKeyError):
            more["WWW-Authenticate"] = "Bearer"
        head = self._headers() + _JSON_LINE + header_lines(more)
        return self._respond(error.status, self._runtime.encode(error.body()), head)

    def preflight(self, allowed: list[str]) -> Reply:
        head = self._headers() + header_lines(HeaderPolicy.preflight(allowed))
        return self._respond(_HTTP_NO_CONTENT, b"", head)

    def _respond(self, status: int, body: bytes, head: str) -> Reply:
        self._status = status
        self._sent = len(body)
        return Reply(status, head, body)

    def finish(self) -> None:
        runtime = self._runtime
        seconds = runtime.monotonic() - self.started
        http = self._http
        status = self._status
        runtime.metrics.active -= 1
        runtime.metrics.observe(http.method, self._template, status, seconds, self._operation)
        if self.key_id is not None:
            runtime.services.keys.note(
                self.key_id,
                route=self._template,
                namespace=self.namespace,
                status=status,
                sent_bytes=self._sent,
                latency_ms=seconds * 1e3,
            )
        settings = runtime.settings
        slow = 0 < settings.slow_request_ms <= seconds * 1e3
        if slow or (settings.access_log and access_log.isEnabledFor(logging.INFO)):
            self._log(seconds, logging.WARNING if slow else logging.INFO)

    def _log(self, seconds: float, level: int) -> None:
        http = self._http
        line = {
            "request_id": self.request_id,
            "method": http.method,
            "path": self._template if self._template != UNKNOWN_PATH else http.path[:200],
            "status": self._status,
            "duration_ms": round(seconds * 1e3, 3),
            "sent_bytes": self._sent,
            "key_id": self.key_id,
            "namespace": self.namespace,
            "remote": http.remote,
        }
        access_log.log(level, "request", extra=line)
