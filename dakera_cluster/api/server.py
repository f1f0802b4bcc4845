"""The HTTP server: from services and settings to a server that a node starts and drains.

Called by the composition root. A stopping server first closes its listening socket, then waits for the requests in
flight, at most ``drain_timeout_s``; readiness is the caller's to withdraw before that.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client import CollectorRegistry

from dakera_cluster.api.dispatch import Dispatcher
from dakera_cluster.api.docs import DocumentPages
from dakera_cluster.api.route import Route
from dakera_cluster.api.routes import ROUTES
from dakera_cluster.api.runtime import Runtime
from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.memory.services import Services

LINGERING_S = 2.0
"""How long the rest of a body is read and thrown away after a request was refused, so that the client sees the answer."""


class ApiServer:
    """A listening server. `start` binds, `drain` waits for what is in flight, `stop` ends it."""

    def __init__(
        self,
        services: Services,
        settings: ApiSettings,
        *,
        registry: CollectorRegistry | None = None,
        request_shutdown: Callable[[], None] | None = None,
        routes: Iterable[Route] = ROUTES,
    ) -> None:
        """``registry`` collects the metrics of the whole node; ``request_shutdown`` is called when an operator asks the
        node to stop."""
        self.runtime = Runtime(services, settings, registry=registry, request_shutdown=request_shutdown)
        self._settings = settings
        self._dispatcher = Dispatcher((*routes, *DocumentPages(routes).routes), self.runtime)
        self._runner: _Runner | None = None
        self._site: web.TCPSite | None = None

    async def start(self) -> int:
        """Bind and serve; returns the port. Raises OSError when the address is taken."""
        settings = self._settings
        server = web.Server(
            self._dispatcher.handle,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=settings.keepalive_timeout_s,
            lingering_time=LINGERING_S,
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
        )
        self._runner = _Runner(server, self.runtime, shutdown_timeout=settings.drain_timeout_s)
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
        self.runtime.services.events.close()
        admission = self.runtime.admission
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
            await self.runtime.jobs.close()


class _Runner(web.ServerRunner):
    """Ends the event streams with the server: they never end by themselves."""

    def __init__(self, server: web.Server, runtime: Runtime, *, shutdown_timeout: float) -> None:
        super().__init__(server, handle_signals=False, shutdown_timeout=shutdown_timeout)
        self._runtime = runtime

    async def shutdown(self) -> None:
        self._runtime.services.events.close()


def _tls(settings: ApiSettings) -> ssl.SSLContext | None:
    if settings.tls_cert_path is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.tls_cert_path, settings.tls_key_path)
    return context
