"""The dialling side of one connection: calls and streams under way.

Invariant: every call that was numbered ends exactly once: by its answer, a failure, its deadline, its caller's cancellation
or the end of the connection; and the other side is told when it need not go on. Called by `cluster.peer_client`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable

from dakera_cluster.cluster.deadlines import Deadlines
from dakera_cluster.cluster.peer_errors import PeerTimeoutError, PeerUnavailableError
from dakera_cluster.cluster.peer_link import Link
from dakera_cluster.cluster.peer_metrics import PeerCounters
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.model.errors import DakeraError, OverloadedError, PayloadTooLargeError
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.peer_frames import CONNECTION, FRAME, FrameKind
from dakera_cluster.protocols.peer_handshake import Dialler, Endpoint, HandshakeError, Session
from dakera_cluster.protocols.peer_messages import decode_failure, head

_REQUEST, _STREAM, _ANSWER = int(FrameKind.REQUEST), int(FrameKind.STREAM), int(FrameKind.ANSWER)
_FAILURE, _CANCEL, _CHUNK, _END = (
    int(FrameKind.FAILURE),
    int(FrameKind.CANCEL),
    int(FrameKind.CHUNK),
    int(FrameKind.END),
)
_CREDIT, _PING, _GOODBYE = int(FrameKind.CREDIT), int(FrameKind.PING), int(FrameKind.GOODBYE)
_NUMBERS = 1 << 32
CREDIT_BYTES = 4


class Call:
    """One call; ``future`` is first its turn to be sent, then its answer."""

    __slots__ = ("future", "is_sent", "method", "size")

    def __init__(self, method: str, size: int, future: asyncio.Future[bytes]) -> None:
        self.method = method
        self.size = size
        self.future = future
        self.is_sent = False

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(PeerTimeoutError(f"{self.method} took too long", ambiguous=self.is_sent))

    def fail(self, error: DakeraError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class PeerStream:
    """The reading end of a stream; chunks that arrived and were not taken count against the window."""

    __slots__ = (
        "_buffered",
        "_chunks",
        "_deadlines",
        "_idle_ms",
        "_link",
        "_number",
        "_taken",
        "_waiting",
        "_window",
        "ending",
        "method",
    )

    def __init__(self, link: CallLink, deadlines: Deadlines, method: str, window: int, idle_ms: int) -> None:
        self.method = method
        self._link = link
        self._deadlines = deadlines
        self._window = window
        self._idle_ms = idle_ms
        self._number = 0
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._taken = 0
        self._waiting: asyncio.Future[None] | None = None
        self.ending: DakeraError | StopAsyncIteration | None = None

    @property
    def buffered_bytes(self) -> int:
        """Arrived and not taken, in bytes of the window."""
        return self._buffered

    def opened(self, number: int) -> None:
        self._number = number

    def arrive(self, chunk: bytes) -> bool:
        """False when the sender ignores the window."""
        self._chunks.append(chunk)
        self._buffered += len(chunk) + FRAME.size
        self._stir()
        return self._buffered <= self._window + self._link.settings.message_bytes + FRAME.size

    def end(self, error: DakeraError | None) -> None:
        if self.ending is None:
            self.ending = error or StopAsyncIteration()
            self._stir()

    def fail(self, error: DakeraError) -> None:
        self.end(error)

    def expire(self) -> None:
        self.end(PeerTimeoutError(f"{self.method} did not move for {self._idle_ms} ms", ambiguous=True))

    async def next_chunk(self) -> bytes | None:
        """The next chunk, None at the end. Raises what ended the stream, after the chunks that came before."""
        while not self._chunks:
            if isinstance(self.ending, StopAsyncIteration):
                return None
            if self.ending is not None:
                raise self.ending
            self._waiting = asyncio.get_running_loop().create_future()
            slot = self._deadlines.add(self, self._idle_ms)
            try:
                await self._waiting
            finally:
                self._waiting = None
                self._deadlines.discard(self, slot)
        chunk = self._chunks.popleft()
        weight = len(chunk) + FRAME.size
        self._buffered -= weight
        self._taken += weight
        # Credit is returned by halves of the window: seldom, and early enough that the sender does not run dry.
        if self._taken * 2 >= self._window and self.ending is None:
            self._link.send(_CREDIT, self._number, self._taken.to_bytes(CREDIT_BYTES, "big"))
            self._taken = 0
        return chunk

    def close(self) -> None:
        """No more of it, please."""
        self._link.close_stream(self._number, self)

    def _stir(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class CallLink(Link):
    """A connection this node opened."""

    def __init__(
        self,
        me: Endpoint,
        to_node: NodeId | None,
        settings: PeerSettings,
        counters: PeerCounters,
        deadlines: Deadlines,
    ) -> None:
        super().__init__(settings, counters)
        self._dialler = Dialler(me, to_node=to_node, nonce=secrets.token_bytes(32), private=secrets.token_bytes(32))
        self._deadlines = deadlines
        self.established: asyncio.Future[None] = self.loop.create_future()
        """Done when there is a session; fails with HandshakeError or PeerUnavailableError."""
        # Whoever dials may have given up before the news came; it is not an error that nobody looks.
        self.established.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._under_way: dict[int, Call | PeerStream] = {}
        self._turns: deque[Call] = deque()
        self._number = 0
        self._granted = self._granted_bytes = 0
        """Calls that were given their turn and have not run yet."""
        self._inflight = settings.inflight
        self._is_leaving = False
        self.on_ended: Callable[[CallLink], None] = lambda link: None

    @property
    def is_usable(self) -> bool:
        """May new calls be sent?"""
        return not self.reason and self.session is not None and not self._is_leaving

    @property
    def under_way(self) -> int:
        return len(self._under_way) + len(self._turns)

    async def call(self, method: str, payload: bytes, timeout_ms: int) -> bytes:
        """One request, one answer. Raises what the peer raised, PeerTimeoutError, PeerUnavailableError, OverloadedError,
        PayloadTooLargeError."""
        self._check_size(method, payload)
        call = Call(method, len(payload), self.loop.create_future())
        slot = self._deadlines.add(call, timeout_ms)
        try:
            if self._turns or len(self._under_way) + self._granted >= self._inflight or not self.has_room():
                started_s = time.monotonic()
                await self._turn(call)
                timeout_ms -= int((time.monotonic() - started_s) * 1000.0)
                if timeout_ms <= 0:
                    raise PeerTimeoutError(f"{method} waited too long for its turn", ambiguous=False)
            if self.reason:
                raise PeerUnavailableError(f"{self.name}: {self.reason}", ambiguous=False)
            number = self._next_number()
            call.is_sent = True
            self._under_way[number] = call
            self.used_s = self.heard_s
            self.send(_REQUEST, number, head(method, timeout_ms) + payload)
            try:
                return await call.future
            except (asyncio.CancelledError, PeerTimeoutError):
                self._give_up(number)
                raise
            finally:
                del self._under_way[number]
        finally:
            self._deadlines.discard(call, slot)
            if self._turns:
                self._next_turns()

    def open_stream(self, method: str, payload: bytes, idle_ms: int) -> PeerStream:
        """Ask for a stream. Raises PayloadTooLargeError, PeerUnavailableError."""
        self._check_size(method, payload)
        if self.reason:
            raise PeerUnavailableError(f"{self.name}: {self.reason}", ambiguous=False)
        window = self.settings.window_bytes
        stream = PeerStream(self, self._deadlines, method, window, idle_ms)
        number = self._next_number()
        stream.opened(number)
        self._under_way[number] = stream
        self.used_s = self.heard_s
        self.send(_STREAM, number, head(method, 0, window) + payload)
        return stream

    def close_stream(self, number: int, stream: PeerStream) -> None:
        if self._under_way.pop(number, None) is not None and not isinstance(stream.ending, StopAsyncIteration):
            self._give_up(number)

    def check(self, now_s: float) -> None:
        if self._under_way:
            self.used_s = now_s
        idle_ms = (now_s - self.used_s) * 1000.0
        if (
            self.session is not None
            and not self.under_way
            and (self._is_leaving or idle_ms > self.settings.idle_close_ms)
        ):
            self.close("idle")
            return
        super().check(now_s)
        if self.is_open and (now_s - self.heard_s) * 1000.0 > self.settings.ping_interval_ms:
            self.send(_PING, CONNECTION, b"")

    # -- from Link

    def greet(self) -> None:
        self.send_record(self._dialler.hello())

    def handshake(self, body: bytes) -> Session | None:
        answer = self._dialler.receive(body)
        if answer:
            self.send_record(answer)
        session = self._dialler.session
        if session is not None:
            self._inflight = min(self.settings.inflight, max(1, session.inflight))
            if not self.established.done():
                self.established.set_result(None)
        return session

    def refused(self, error: HandshakeError) -> None:
        if not self.established.done():
            self.established.set_exception(error)

    def message(self, kind: int, call: int, payload: bytes) -> None:
        if kind == _ANSWER:
            entry = self._under_way.get(call)
            if isinstance(entry, Call) and not entry.future.done():
                entry.future.set_result(payload)
        elif kind == _CHUNK:
            entry = self._under_way.get(call)
            if isinstance(entry, PeerStream) and not entry.arrive(payload):
                self.fault("window", "sends more of a stream than was asked for")
        elif kind == _FAILURE:
            entry = self._under_way.get(call)
            if entry is not None:
                entry.fail(decode_failure(payload))
        elif kind == _END:
            entry = self._under_way.get(call)
            if isinstance(entry, PeerStream):
                entry.end(None)
        elif kind == _GOODBYE:
            self._is_leaving = True

    def ended(self) -> None:
        if not self.established.done():
            self.established.set_exception(PeerUnavailableError(self.reason, ambiguous=False))
        for entry in list(self._under_way.values()):
            entry.fail(PeerUnavailableError(f"{self.name}: {self.reason}", ambiguous=True))
        for call in self._turns:
            call.fail(PeerUnavailableError(f"{self.name}: {self.reason}", ambiguous=False))
        self._turns.clear()
        self.on_ended(self)

    def flushed(self) -> None:
        if self._turns:
            self._next_turns()

    # -- inside

    def _check_size(self, method: str, payload: bytes) -> None:
        limit = self.session.message_bytes if self.session is not None else self.settings.message_bytes
        if len(payload) > limit - 256:  # leaves room for the head
            raise PayloadTooLargeError(f"{method}: {len(payload)} bytes; {self.name} takes {limit}")

    def _next_number(self) -> int:
        number = (self._number + 1) % _NUMBERS or 1
        while number in self._under_way:
            number = (number + 1) % _NUMBERS or 1
        self._number = number
        return number

    async def _turn(self, call: Call) -> None:
        if len(self._turns) >= self.settings.waiting:
            self.counters.overloads += 1
            raise OverloadedError(f"{len(self._turns)} calls to {self.name} wait already")
        self._turns.append(call)
        turn = call.future
        try:
            await turn
        finally:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._granted -= 1
                self._granted_bytes -= call.size
                call.future = self.loop.create_future()
            else:
                self._turns = deque(other for other in self._turns if other is not call)

    def _next_turns(self) -> None:
        free = self._inflight - len(self._under_way) - self._granted
        room = self.settings.queue_bytes - self.queued_bytes - self._granted_bytes
        while self._turns and free > 0 and room > 0:
            call = self._turns.popleft()
            if not call.future.done():
                call.future.set_result(b"")
                self._granted += 1
                self._granted_bytes += call.size
                free -= 1
                room -= call.size

    def _give_up(self, number: int) -> None:
        self.unsend(number)
        self.send(_CANCEL, number, b"")
