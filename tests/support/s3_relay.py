"""An HTTP relay in front of an S3 server that does to chosen requests what networks and busy servers do.

Faults are queued and each is used by the next request whose method matches; requests without one pass through. It counts
what arrived, so that a test can see hidden repetitions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from enum import Enum

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

HOP_HEADERS = frozenset({"transfer-encoding", "connection", "keep-alive"})


class Fault(Enum):
    """What happens to a request."""

    LOSE_REPLY = "the server acts, the connection is reset before it answers"
    LOSE_REQUEST = "the connection is reset before the server sees it"
    LATE = "the server acts, the answer does not come"
    CONFLICT = "409 ConditionalRequestConflict, the server does not see it"
    SLOW_DOWN = "503 SlowDown, the server does not see it"
    ERROR_DONE = "the server acts, the answer is 500"
    ERROR_NOT_DONE = "500, the server does not see it"
    UNSUPPORTED = "501 NotImplemented, the server does not see it"
    FORBIDDEN = "403 AccessDenied, the server does not see it"


ANSWERS = {
    Fault.CONFLICT: (409, "ConditionalRequestConflict"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.ERROR_DONE: (500, "InternalError"),
    Fault.ERROR_NOT_DONE: (500, "InternalError"),
    Fault.UNSUPPORTED: (501, "NotImplemented"),
    Fault.FORBIDDEN: (403, "AccessDenied"),
}
REACHES_SERVER = frozenset({Fault.LOSE_REPLY, Fault.LATE, Fault.ERROR_DONE})


class S3Relay:
    """``async with S3Relay(upstream) as relay``: serves on ``relay.url``; faults go into ``relay.faults``."""

    def __init__(self, upstream: str) -> None:
        self._upstream = URL(upstream)
        self.faults: deque[tuple[str, Fault]] = deque()
        self.arrived: list[str] = []
        self.url = ""
        self._ending = asyncio.Event()

    def fail(self, method: str, *faults: Fault) -> None:
        """The next requests with ``method`` meet these faults, one each."""
        self.faults.extend((method, fault) for fault in faults)

    async def __aenter__(self) -> S3Relay:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._relay)
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._ending.set()
        await self._runner.cleanup()
        await self._session.close()

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.arrived.append(request.method)
        fault = None
        if self.faults and self.faults[0][0] == request.method:
            fault = self.faults.popleft()[1]
        answer = web.Response()
        if fault is None or fault in REACHES_SERVER:
            answer = await self._forward(request, body)
        if fault in (Fault.LOSE_REPLY, Fault.LOSE_REQUEST):
            assert request.transport is not None
            request.transport.abort()
        elif fault is Fault.LATE:
            await self._ending.wait()
        elif fault is not None:
            status, code = ANSWERS[fault]
            text = f"<Error><Code>{code}</Code><Message>ordered by the test</Message></Error>"
            answer = web.Response(status=status, text=text, content_type="application/xml")
        return answer

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        url = self._upstream.join(URL(request.raw_path, encoded=True))
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in HOP_HEADERS | {"expect"})
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, allow_redirects=False
        ) as upstream:
            kept = CIMultiDict((k, v) for k, v in upstream.headers.items() if k.lower() not in HOP_HEADERS)
            content = await upstream.read()
            if request.method != "HEAD":
                kept.popall("Content-Length", None)
            return web.Response(status=upstream.status, headers=kept, body=content)
