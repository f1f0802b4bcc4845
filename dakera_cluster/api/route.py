"""The nouns of routing: a row of the route table, one call of it, and answers that are not JSON.

A `Route` says everything the server and the OpenAPI document need to know of a path; handlers get a `Call` and the
decoded body and return what is to be encoded. Called by `routes` (the table), `endpoint` (which runs it) and `openapi`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from aiohttp.web import BaseRequest as HttpRequest

from dakera_cluster.api.compat import Client
from dakera_cluster.memory.services import Services
from dakera_cluster.model.keys import Access, Scope

if TYPE_CHECKING:
    from dakera_cluster.api.auth import Identity
    from dakera_cluster.api.runtime import Runtime

NamespaceFrom = Literal[
    "path.ns", "path.agent_id", "body.agent_id", "body.namespace", "query.agent_id", "query.namespace"
]
Handler = Callable[["Call", Any], Awaitable[Any]]


class NoBody(msgspec.Struct):
    """The body of a route that takes none: whatever is sent is read and ignored."""


class Raw(msgspec.Struct, frozen=True):
    """An answer that is not JSON."""

    body: bytes
    content_type: str
    headers: dict[str, str] = {}


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. ``aliases`` are further paths of the same row; ``namespace_from`` names the value that says
    which namespace is touched, which is checked against the pins of the caller's key."""

    method: str
    path: str
    scope: Scope
    handler: Handler
    summary: str
    tag: str
    body: type[Any] = NoBody
    query: type[Any] | None = None
    answer: Any = dict[str, Any]
    answer_type: str = "application/json"
    namespace_from: NamespaceFrom | None = None
    aliases: tuple[str, ...] = ()
    operation: str = ""
    """What the request counts as in metrics: store, recall, ...; empty for others."""
    legacy: bool = False
    node_wide: bool = False
    """Touches every namespace: refused to keys that are pinned to some."""
    exempt: bool = False
    """Not rate limited and not counted against the bound on requests in flight: what must answer under overload."""

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.aliases)


class Call:
    """One request, after everything that can refuse it has passed."""

    __slots__ = ("client", "http", "identity", "path", "query", "runtime", "services")

    def __init__(
        self,
        services: Services,
        runtime: Runtime,
        http: HttpRequest,
        client: Client,
        identity: Identity,
        path: Mapping[str, str],
        query: Any,
    ) -> None:
        self.services = services
        self.runtime = runtime
        self.http = http
        self.client = client
        self.identity = identity
        self.path = path
        self.query = query

    @property
    def access(self) -> Access:
        return self.identity.access


Row = tuple[str, str, Scope, Handler, str, dict[str, Any]]
"""Method, path, scope, handler, summary, and what else the `Route` needs."""


def rows(tag: str, *table: Row) -> tuple[Route, ...]:
    """Routes of one subject."""
    return tuple(
        Route(method=method, path=path, scope=scope, handler=handler, summary=summary, tag=tag, **more)
        for method, path, scope, handler, summary, more in table
    )
