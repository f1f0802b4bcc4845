"""The listening side: services by name, and the work that connected peers ask for.

A service is a coroutine from bytes to bytes, or an asynchronous generator of chunks. Its work is bounded in number and in
bytes, for each connection and altogether; a call beyond a bound is refused with OverloadedError before it has any effect.
Work stops when the caller's time is up, when the caller cancels or when its connection ends; what was done by then stays
done, as with any crash, so services must be idempotent or say that the outcome is unknown.

Invariant: every request is answered at most once, and nothing of a stranger reaches a service. Called by the node's wiring.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import ssl
import time

import msgspec

from dakera_cluster.cluster.deadlines import Deadlines
from dakera_cluster.cluster.peer_calls import CREDIT_BYTES
from dakera_cluster.cluster.peer_errors import PeerTimeoutError
from dakera_cluster.cluster.peer_link import Link, Notices
from dakera_cluster.cluster.peer_metrics import CallFailure, PeerCounters, PeerStats
from dakera_cluster.cluster.peer_services import Context, Handler, Priority, Service, StreamHandler, Work
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.model.errors import (
    DakeraError,
    InternalError,
    InvalidRequestError,
    NotImplementedRouteError,
    NotReadyError,
    OverloadedError,
    PayloadTooLargeError,
)
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.peer_frames import CONNECTION, FRAME, FrameKind
from dakera_cluster.protocols.peer_handshake import Acceptor, Endpoint, HandshakeError, Refusal, Session, refuse
from dakera_cluster.protocols.peer_messages import encode_failure, split_request

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
_REQUEST, _STREAM, _ANSWER = int(FrameKind.REQUEST), int(FrameKind.STREAM), int(FrameKind.ANSWER)
_FAILURE, _CANCEL, _CHUNK, _END = (
    int(FrameKind.FAILURE),
    int(FrameKind.CANCEL),
    int(FrameKind.CHUNK),
    int(FrameKind.END),
)
_CREDIT, _GOODBYE = int(FrameKind.CREDIT), int(FrameKind.GOODBYE)


class PeerServer:
    """``register`` the services, ``start``, and in the end ``close``."""

    def __init__(self, me: Endpoint, settings: PeerSettings | None = None, tls: ssl.SSLContext | None = None) -> None:
        """``me.message_bytes`` and ``me.inflight`` are replaced by those of ``settings``, which are what is enforced."""
        self.settings = settings or PeerSettings()
        self.me = msgspec.structs.replace(
            me, message_bytes=self.settings.message_bytes, inflight=self.settings.inflight
        )
        self.counters = PeerCounters()
        self.notices = Notices()
        self.working = 0
        self.working_bytes = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.links: set[ServeLink] = set()
        self.strangers: set[ServeLink] = set()
        self.is_closing = False
        self._tls = tls
        self._services: dict[str, Service] = {}
        self._server: asyncio.Server | None = None
        self._checking: asyncio.TimerHandle | None = None
        self._checked_s = 0.0

    def register(self, method: str, handler: Handler, *, priority: Priority = Priority.NORMAL) -> None:
        """``handler(payload, context)`` answers calls of ``method``. DakeraErrors it raises reach the caller as they are,
        ValueErrors (undecodable payloads) as InvalidRequestError, others as InternalError."""
        self._add(method, priority, handler, None)

    def register_stream(self, method: str, handler: StreamHandler) -> None:
        """``handler(payload, context)`` yields chunks; it runs only as far ahead as the reader's window."""
        self._add(method, Priority.NORMAL, None, handler)

    def _add(self, method: str, priority: Priority, handler: Handler | None, stream: StreamHandler | None) -> None:
        assert method not in self._services, f"{method} is registered twice"
        self._services[method] = Service(method, priority, self.counters.method(method), handler, stream)

    async def start(self, address: Address) -> Address:
        """Listen; port 0 takes a free one. Returns the bound address. Raises OSError."""
        self.loop = asyncio.get_running_loop()
        self.deadlines = Deadlines(self.loop)
        handshake_s = self.settings.connect_timeout_ms / 1000.0 if self._tls is not None else None
        self._server = await self.loop.create_server(
            lambda: ServeLink(self),
            address.host,
            address.port,
            ssl=self._tls,
            ssl_handshake_timeout=handshake_s,
            backlog=512,
        )
        self._checked_s = time.monotonic()
        self._check()
        bound = self._server.sockets[0].getsockname()
        return Address(bound[0], bound[1])

    async def close(self) -> None:
        """Accept nothing new, let what runs end for at most ``drain_timeout_ms``, then close all connections."""
        self.is_closing = True
        if self._server is not None:
            self._server.close()
        for link in self.links:
            link.send(_GOODBYE, CONNECTION, b"")
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=self.settings.drain_timeout_ms / 1000.0)
        for link in [*self.strangers, *self.links]:
            link.close("this node stops")
        if self._checking is not None:
            self._checking.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)

    def service(self, method: str) -> Service | None:
        return self._services.get(method)

    def rotate_secrets(self, secrets_: tuple[bytes, ...]) -> None:
        """For connections from now on; see `peer_handshake` for the order of a rotation. Raises ValueError on bad keys."""
        self.me = msgspec.structs.replace(self.me, secrets=secrets_)

    def stats(self) -> PeerStats:
        return self.counters.snapshot(
            connections=len(self.links),
            in_flight=self.working,
            queued_bytes=sum(link.queued_bytes for link in self.links),
        )

    def superseded(self, session: Session) -> None:
        """A node came back: connections of its earlier life are dead, whatever TCP thinks."""
        for link in list(self.links):
            other = link.session
            if other is not None and other.node == session.node and other.boot < session.boot:
                link.abort("the peer has restarted")

    def _check(self) -> None:
        now_s = time.monotonic()
        # After a stall of this loop, what was silent may only have been unheard: read first, judge next time.
        if now_s - self._checked_s < 2 * CHECK_INTERVAL_S:
            for link in [*self.strangers, *self.links]:
                link.check(now_s)
        self._checked_s = now_s
        self._checking = self.loop.call_later(CHECK_INTERVAL_S, self._check)


class ServeLink(Link):
    """A connection a peer opened."""

    def __init__(self, server: PeerServer) -> None:
        super().__init__(server.settings, server.counters)
        self._server = server
        self._acceptor = Acceptor(server.me, nonce=secrets.token_bytes(32), private=secrets.token_bytes(32))
        self._works: dict[int, Work] = {}
        self._room: list[asyncio.Future[None]] = []
        self._streams = 0

    def greet(self) -> None:
        server = self._server
        is_full = len(server.links) >= self.settings.connections or len(server.strangers) >= self.settings.strangers
        if server.is_closing or is_full:
            self.counters.refusals[Refusal.BUSY.value] += 1
            self.send_record(refuse(Refusal.BUSY, ""))
            self.close("too many connections")
            return
        server.strangers.add(self)

    def handshake(self, body: bytes) -> Session | None:
        answer = self._acceptor.receive(body)
        self.send_record(answer)
        session = self._acceptor.session
        if session is not None:
            self._server.superseded(session)
            self._server.strangers.discard(self)
            self._server.links.add(self)
        return session

    def refused(self, error: HandshakeError) -> None:
        if self._server.notices.is_due(time.monotonic(), self.peer_address.rsplit(":", 1)[0], error.refusal):
            logger.warning(
                "refused a peer connection from %s (%s): %s", self.peer_address, self._acceptor.claimed, error
            )

    def check(self, now_s: float) -> None:
        if self.session is None and (now_s - self.used_s) * 1000.0 > self.settings.connect_timeout_ms:
            self.fault("stranger", "did not finish its handshake")
        else:
            super().check(now_s)

    def ended(self) -> None:
        self._server.links.discard(self)
        self._server.strangers.discard(self)
        for work in list(self._works.values()):
            work.cancel()
        self._works.clear()
        self.flushed()

    def flushed(self) -> None:
        # All of them: each looks again whether there is room, in order, before it queues anything.
        waiting, self._room = self._room, []
        for turn in waiting:
            if not turn.done():
                turn.set_result(None)

    def message(self, kind: int, call: int, payload: bytes) -> None:
        if kind == _REQUEST:
            self._begin(call, payload, is_stream=False)
        elif kind == _CREDIT:
            work = self._works.get(call)
            if work is not None:
                work.grant(int.from_bytes(payload[:CREDIT_BYTES], "big"))
        elif kind == _CANCEL:
            work = self._works.pop(call, None)
            if work is not None:
                work.cancel()
            if self.unsend(call):
                # The reader holds the beginning of an answer: only a message of another kind makes it let go.
                self._fail(call, InternalError("cancelled by the caller"))
        elif kind == _STREAM:
            self._begin(call, payload, is_stream=True)

    # -- inside

    def _begin(self, call: int, data: bytes, *, is_stream: bool) -> None:
        assert self.session is not None
        server = self._server
        try:
            head, payload = split_request(data)
        except ValueError as error:
            self._fail(call, InvalidRequestError(f"no request: {error}"))
            return
        service = server.service(head.method)
        if service is None or (service.stream is not None) is not is_stream:
            self._fail(call, NotImplementedRouteError(f"{server.me.node} has no service {head.method!r}"))
            return
        refusal = self._refusal(service, len(payload), call, is_stream=is_stream)
        if refusal is not None:
            self.counters.overloads += isinstance(refusal, OverloadedError)
            self._fail(call, refusal)
            return
        work = Work(service, call, len(payload), head.window_bytes)
        context = Context(self.session, head.timeout_ms)
        self._works[call] = work
        server.working += 1
        server.working_bytes += work.size
        work.task = self.loop.create_task(self._run(work, payload, context, head.timeout_ms))
        server.tasks.add(work.task)

    def _refusal(self, service: Service, size: int, call: int, *, is_stream: bool) -> DakeraError | None:
        server, settings = self._server, self.settings
        if server.is_closing:
            return NotReadyError(f"{server.me.node} is stopping")
        if call in self._works:
            return InvalidRequestError(f"call {call} is under way already")
        if len(self._works) >= settings.inflight + settings.streams or (
            is_stream and self._streams >= settings.streams
        ):
            return OverloadedError(f"{server.me.node} works on {len(self._works)} calls of this connection")
        if service.priority is Priority.NORMAL and (
            server.working >= settings.inflight_total or server.working_bytes + size > settings.inflight_bytes
        ):
            return OverloadedError(f"{server.me.node} works on {server.working} calls, {server.working_bytes} bytes")
        return None

    async def _run(self, work: Work, payload: bytes, context: Context, timeout_ms: int) -> None:
        server, service = self._server, work.service
        started_s = time.monotonic()
        slot = server.deadlines.add(work, timeout_ms) if timeout_ms else 0
        failure: DakeraError | None = None
        kind = CallFailure.REMOTE
        work.is_started = True
        try:
            if work.is_cancelled:
                raise asyncio.CancelledError
            if service.handler is not None:
                answer = await service.handler(payload, context)
                await self._answer(work, answer)
            else:
                self._streams += 1
                try:
                    await self._stream(work, payload, context)
                finally:
                    self._streams -= 1
        except asyncio.CancelledError:
            kind = CallFailure.TIMEOUT if work.is_expired else CallFailure.CANCELLED
            failure = PeerTimeoutError(f"{service.name} was cancelled", ambiguous=True)
        except DakeraError as error:
            failure = error
        except ValueError as error:
            failure = InvalidRequestError(f"{service.name}: {error}")
        except Exception as error:
            logger.exception("service %s failed for %s", service.name, self.name)
            failure = InternalError(f"{service.name} failed on {server.me.node}: {type(error).__name__}")
        finally:
            if slot:
                server.deadlines.discard(work, slot)
            server.working -= 1
            server.working_bytes -= work.size
            if work.task is not None:
                server.tasks.discard(work.task)
            if self._works.get(work.call) is work:
                del self._works[work.call]
                if failure is not None:
                    self._fail(work.call, failure)
            service.counters.observe(time.monotonic() - started_s)
            if failure is not None:
                service.counters.failures[kind.value] += 1

    async def _answer(self, work: Work, answer: bytes) -> None:
        self._check_size(work, answer)
        while not self.has_room() and not self.reason:
            await self._wait_for_room()
        if self._works.get(work.call) is work:
            self.send(_ANSWER, work.call, answer)

    async def _stream(self, work: Work, payload: bytes, context: Context) -> None:
        assert work.service.stream is not None
        async with contextlib.aclosing(work.service.stream(payload, context)) as chunks:
            async for chunk in chunks:
                self._check_size(work, chunk)
                # A chunk may overdraw the window once: otherwise one larger than the window could never be sent.
                while work.credit <= 0 or not self.has_room():
                    await self._wait_for_reader(work)
                work.credit -= len(chunk) + FRAME.size
                self.send(_CHUNK, work.call, chunk)
        self.send(_END, work.call, b"")

    async def _wait_for_reader(self, work: Work) -> None:
        idle_ms = self.settings.stream_idle_timeout_ms
        slot = self._server.deadlines.add(work, idle_ms)
        try:
            if work.credit > 0:
                await self._wait_for_room()
            else:
                work.granted = self.loop.create_future()
                await work.granted
        finally:
            work.granted = None
            self._server.deadlines.discard(work, slot)

    async def _wait_for_room(self) -> None:
        turn: asyncio.Future[None] = self.loop.create_future()
        self._room.append(turn)
        await turn

    def _check_size(self, work: Work, data: bytes) -> None:
        assert self.session is not None
        limit = min(self.settings.message_bytes, self.session.message_bytes)
        if len(data) > limit:
            raise PayloadTooLargeError(f"{work.service.name} answers with {len(data)} bytes; the limit is {limit}")

    def _fail(self, call: int, error: DakeraError) -> None:
        self.unsend(call)
        self.send(_FAILURE, call, encode_failure(error))
