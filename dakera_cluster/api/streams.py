"""Event streams (server-sent events): one answer that goes on until the client, its key or the node goes.

Framing of the contract: ``data:`` and one JSON object in one line of ASCII, then an empty line; a comment line every
``stream_heartbeat_s`` of silence. The first event is ``connected``; a client that does not keep up gets ``stream_lagged``
with the number of events it lost. Nothing a client does holds up a request: its queue is bounded, and a client that takes
no bytes for ``stream_write_timeout_s`` is cut off. A key that is deactivated or expires ends its streams at the next look.
Made by the event handlers, opened and run by `endpoint`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from dakera_cluster.api.runtime import Runtime
from dakera_cluster.memory.events import Event
from dakera_cluster.model.errors import DakeraError, OverloadedError

CONTENT_TYPE = "text/event-stream"
RETRY_S = 5
_HEARTBEAT = b": heartbeat\n\n"
_HEADERS = {
    "Content-Type": CONTENT_TYPE,
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """Events that ``wanted`` accepts, for one client."""

    def __init__(
        self,
        runtime: Runtime,
        http: web.BaseRequest,
        wanted: Callable[[Event], bool],
        still_allowed: Callable[[], Awaitable[object]],
    ) -> None:
        """``still_allowed`` raises an error of the tree once the caller may listen no longer."""
        self._runtime = runtime
        self._http = http
        self._wanted = wanted
        self._still_allowed = still_allowed
        self._response = web.StreamResponse()

    async def open(self, headers: Mapping[str, str]) -> web.StreamResponse:
        """Take a place and send the headers. Raises OverloadedError when there is no place."""
        if self._runtime.streams >= self._runtime.settings.max_streams:
            raise OverloadedError(f"{self._runtime.streams} event streams are open; retry later", retry_after_s=RETRY_S)
        self._response.headers.update(headers)
        self._response.headers.update(_HEADERS)
        await self._response.prepare(self._http)
        return self._response

    async def run(self) -> None:
        """Until the client goes, may listen no longer, or the node stops."""
        if self._http.method == "HEAD":
            return
        events = self._runtime.services.events
        subscription = events.subscribe(self._wanted)
        self._runtime.streams += 1
        try:
            await events.ready()
            await self._write(_frame(events.connected()))
            while True:
                try:
                    async with asyncio.timeout(self._runtime.settings.stream_heartbeat_s):
                        told = await subscription.next()
                except TimeoutError:
                    await self._still_allowed()
                    await self._write(_HEARTBEAT)
                    continue
                if told is None:
                    return
                await self._write(b"".join(map(_frame, told)))
        except (ConnectionError, TimeoutError, DakeraError):
            return
        finally:
            self._runtime.streams -= 1
            subscription.close()

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(self._runtime.settings.stream_write_timeout_s):
            await self._response.write(data)


def _frame(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
