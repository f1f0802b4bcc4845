"""The HTTP server: from services and settings to an aiohttp application, and a runner that a node starts and drains.

Called by the composition root. A stopping server first closes its listening socket, then waits for the requests in
flight, at most ``drain_timeout_s``; readiness is the caller's to withdraw before that.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CollectorRegistry

from dakera_cluster.api.docs import DocumentPages
from dakera_cluster.api.endpoint import Endpoint, Fallback
from dakera_cluster.api.route import Route
from dakera_cluster.api.routes import ROUTES
from dakera_cluster.api.runtime import Runtime
from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.memory.services import Services

RUNTIME: web.AppKey[Runtime] = web.AppKey("runtime", Runtime)
LINGERING_S = 2.0
"""How long the rest of a body is read and thrown away after a request was refused, so that the client sees the answer."""
_PARAMETER = re.compile(r"\{(\w+)\}")


def make_app(
    services: Services,
    settings: ApiSettings,
    *,
    registry: CollectorRegistry | None = None,
    request_shutdown: Callable[[], None] | None = None,
    routes: Iterable[Route] = ROUTES,
) -> web.Application:
    """The application. ``registry`` collects the metrics of the whole node; ``request_shutdown`` is called when an
    operator asks the node to stop."""
    runtime = Runtime(services, settings, registry=registry, request_shutdown=request_shutdown)
    table = (*routes, *DocumentPages(routes).routes)
    app = web.Application()
    app[RUNTIME] = runtime
    methods: dict[str, set[str]] = {}
    rows = [(route, path) for route in table for path in route.paths]
    for route, path in sorted(rows, key=_literal_first):
        endpoint = Endpoint(route, path, runtime)
        pattern = _PARAMETER.sub(r"{\1:[^/]+}", path)
        app.router.add_route(route.method, pattern, endpoint.handle)
        methods.setdefault(path, set()).add(route.method)
        if route.method == "GET":
            app.router.add_route("HEAD", pattern, endpoint.handle)
            methods[path].add("HEAD")
    app.router.add_route("*", "/{rest:.*}", Fallback(_allowed(methods), runtime).handle)

    async def close(_: web.Application) -> None:
        await runtime.jobs.close()

    async def end_streams(_: web.Application) -> None:
        runtime.services.events.close()

    app.on_shutdown.append(end_streams)
    app.on_cleanup.append(close)
    return app


def _literal_first(row: tuple[Route, str]) -> tuple[bool, ...]:
    """Sort key: a literal segment is tried before a parameter in the same place."""
    return tuple(part.startswith("{") for part in row[1].split("/"))


def _allowed(methods: dict[str, set[str]]) -> Callable[[str], list[str]]:
    """The methods a path answers to, over every row whose template matches it."""
    patterns = [(re.compile(_PARAMETER.sub(r"[^/]+", path)), allowed) for path, allowed in methods.items()]

    def allowed_at(path: str) -> list[str]:
        return sorted({method for pattern, allowed in patterns if pattern.fullmatch(path) for method in allowed})

    return allowed_at


class ApiServer:
    """A listening server. `start` binds, `drain` waits for what is in flight, `stop` ends it."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._settings = app[RUNTIME].settings
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    async def start(self) -> int:
        """Bind and serve; returns the port. Raises OSError when the address is taken."""
        settings = self._settings
        self._runner = web.AppRunner(
            self._app,
            access_log=None,
            auto_decompress=False,
            handle_signals=False,
            keepalive_timeout=settings.keepalive_timeout_s,
            lingering_time=LINGERING_S,
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
            shutdown_timeout=settings.drain_timeout_s,
        )
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner, settings.host, settings.port, ssl_context=_tls(settings), reuse_address=True, backlog=1024
        )
        await self._site.start()
        return self.port

    @property
    def port(self) -> int:
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    async def drain(self) -> bool:
        """Accept no more connections and wait for requests in flight; False when some did not end in time."""
        assert self._site is not None
        await self._site.stop()
        # Streams never end by themselves; their clients connect again, to a node that stays.
        self._app[RUNTIME].services.events.close()
        admission = self._app[RUNTIME].admission
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await admission.idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None


def _tls(settings: ApiSettings) -> ssl.SSLContext | None:
    if settings.tls_cert_path is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.tls_cert_path, settings.tls_key_path)
    return context
