"""The dialling side: one connection for calls and one for streams to each peer, opened when first needed.

Streams have their own connection because what already lies in the kernel's buffers cannot be overtaken: a shard on its way
must not delay a write's acknowledgement. A peer that cannot be reached is dialled again after a growing, jittered pause;
calls in between fail at once, as do calls to a peer that membership holds dead: the caller has other replicas to ask. News
of a peer (`on_member`) ends the pause, and replaces connections to an earlier life of it.

Invariant: at most one connection of each lane and one dial to a peer at a time. Called by `cluster.peers`.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import random
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, Callable

import msgspec

from dakera_cluster.cluster.deadlines import Deadlines
from dakera_cluster.cluster.peer_calls import CallLink
from dakera_cluster.cluster.peer_errors import PeerTimeoutError, PeerUnavailableError
from dakera_cluster.cluster.peer_link import Notices
from dakera_cluster.cluster.peer_metrics import CallFailure, PeerCounters, PeerStats
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.model.errors import OverloadedError, PayloadTooLargeError
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import Address
from dakera_cluster.protocols.peer_handshake import Endpoint, HandshakeError
from dakera_cluster.protocols.swim_events import Change, MemberEvent

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
_GONE = (Change.DEAD, Change.LEFT, Change.REAPED)


class Lane(enum.Enum):
    CALLS = "calls"
    STREAMS = "streams"


class Line:
    """The connection of one lane to one peer, or the way to it."""

    __slots__ = ("_client", "_dialling", "_failures", "_node", "_reason", "_retry_s", "link")

    def __init__(self, client: PeerClient, node: NodeId) -> None:
        self._client = client
        self._node = node
        self._dialling: asyncio.Task[CallLink] | None = None
        self._failures = 0
        self._retry_s = 0.0
        self._reason = ""
        self.link: CallLink | None = None

    async def connect(self, timeout_ms: int) -> CallLink:
        """The open connection, a new one if need be. Raises PeerUnavailableError, PeerTimeoutError; never ambiguous."""
        if self.link is not None and self.link.is_usable:
            return self.link
        if self._dialling is None:
            if time.monotonic() < self._retry_s:
                raise PeerUnavailableError(f"{self._node} is not reachable: {self._reason}", ambiguous=False)
            self._dialling = self._client.loop.create_task(self._dial())
            self._dialling.add_done_callback(_retrieved)
        dialling = self._dialling
        await asyncio.wait({dialling}, timeout=timeout_ms / 1000.0)
        if not dialling.done():
            raise PeerTimeoutError(f"{self._node} did not take a connection in time", ambiguous=False)
        if dialling.cancelled():
            raise PeerUnavailableError(f"{self._node}: the dial was given up", ambiguous=False)
        return dialling.result()

    def retry_now(self) -> None:
        """There is news of the peer: forget earlier failures."""
        self._failures = 0
        self._retry_s = 0.0

    def drop(self, reason: str) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        if self.link is not None:
            self.link.abort(reason)
            self.link = None

    async def _dial(self) -> CallLink:
        client = self._client
        try:
            self.link = await client.dial(self._node)
        except PeerUnavailableError as error:
            self._reason = error.message
            pause_ms = min(
                client.settings.backoff_max_ms, client.settings.backoff_min_ms * 2 ** min(self._failures, 16)
            )
            self._failures += 1
            self._retry_s = time.monotonic() + client.rng.uniform(0.5, 1.0) * pause_ms / 1000.0
            raise
        finally:
            self._dialling = None
        self.retry_now()
        return self.link


class PeerClient:
    """Connections of this node to all others. Make it on the event loop that uses it."""

    def __init__(
        self,
        me: Endpoint,
        address_of: Callable[[NodeId], Address | None],
        *,
        is_dead: Callable[[NodeId], bool] = lambda node: False,
        settings: PeerSettings | None = None,
        tls: ssl.SSLContext | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """``address_of``: where a node listens, None when unknown. ``is_dead``: does membership hold it dead?"""
        self.settings = settings or PeerSettings()
        self.me = msgspec.structs.replace(
            me, message_bytes=self.settings.message_bytes, inflight=self.settings.inflight
        )
        self.loop = asyncio.get_running_loop()
        self.rng = rng or random.Random(secrets.randbits(64))
        self.counters = PeerCounters()
        self._address_of = address_of
        self._is_dead = is_dead
        self._tls = tls
        self._deadlines = Deadlines(self.loop)
        self._notices = Notices()
        self._lines: dict[Lane, dict[NodeId, Line]] = {lane: {} for lane in Lane}
        self._call_lines = self._lines[Lane.CALLS]
        self._links: set[CallLink] = set()
        self._is_closed = False
        self._checked_s = time.monotonic()
        self._checking = self.loop.call_later(CHECK_INTERVAL_S, self._check)

    async def call(self, node: NodeId, method: str, payload: bytes, timeout_ms: float | None = None) -> bytes:
        """One request, one answer, within ``timeout_ms`` altogether (default: ``call_timeout_ms``).

        Raises what the service raised, as the same class; PeerUnavailableError, PeerTimeoutError (both with ``ambiguous``),
        OverloadedError, PayloadTooLargeError.
        """
        limit_ms = self.settings.call_timeout_ms if timeout_ms is None else math.ceil(timeout_ms)
        counters = self.counters.method(method)
        started_s = time.monotonic()
        try:
            line = self._call_lines.get(node)
            link = line.link if line is not None else None
            if link is None or not link.is_usable or self._is_dead(node):
                link = await self._line(node, Lane.CALLS).connect(limit_ms)
                limit_ms = max(1, limit_ms - int((time.monotonic() - started_s) * 1000.0))
            return await link.call(method, payload, limit_ms)
        except BaseException as error:
            counters.failures[_kind(error)] += 1
            raise
        finally:
            counters.observe(time.monotonic() - started_s)

    async def stream(
        self, node: NodeId, method: str, payload: bytes, *, idle_timeout_ms: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Chunks as the peer sends them; it sends no further ahead than the window. Leaving the loop cancels the stream at
        the peer; where that must not wait for the garbage collector, use ``contextlib.aclosing``.

        Raises as ``call`` does; PeerTimeoutError when nothing comes for ``idle_timeout_ms``.
        """
        idle_ms = self.settings.stream_idle_timeout_ms if idle_timeout_ms is None else idle_timeout_ms
        counters = self.counters.method(method)
        started_s = time.monotonic()
        try:
            link = await self._line(node, Lane.STREAMS).connect(min(idle_ms, self.settings.call_timeout_ms))
            stream = link.open_stream(method, payload, idle_ms)
            try:
                while (chunk := await stream.next_chunk()) is not None:
                    yield chunk
            finally:
                stream.close()
        except BaseException as error:
            if not isinstance(error, GeneratorExit):
                counters.failures[_kind(error)] += 1
            raise
        finally:
            counters.observe(time.monotonic() - started_s)

    async def call_address(
        self, address: Address, method: str, payload: bytes, timeout_ms: float | None = None
    ) -> bytes:
        """A call to whoever of this cluster listens there, over a connection of its own. Raises as ``call`` does."""
        limit_ms = self.settings.call_timeout_ms if timeout_ms is None else math.ceil(timeout_ms)
        counters = self.counters.method(method)
        started_s = time.monotonic()
        try:
            link = await self._open(address, None)
            try:
                return await link.call(method, payload, limit_ms)
            finally:
                link.close("done")
        except BaseException as error:
            counters.failures[_kind(error)] += 1
            raise
        finally:
            counters.observe(time.monotonic() - started_s)

    async def probe(self, address: Address, node: NodeId) -> bool:
        """Whether that node answers there: a whole new connection, because that is what is asked."""
        try:
            link = await self._open(address, node)
        except PeerUnavailableError:
            return False
        link.close("done")
        return True

    def on_member(self, event: object) -> None:
        """A listener of `GossipNode`: what membership says of a peer decides about its connections."""
        if not isinstance(event, MemberEvent):
            return
        node = event.member.node
        if event.change in _GONE:
            self.lost(node)
        else:
            self.heard(node, event.member.boot)

    def lost(self, node: NodeId) -> None:
        """The node is dead or gone: what is under way to it fails now."""
        for lines in self._lines.values():
            line = lines.pop(node, None)
            if line is not None:
                line.drop(f"{node} is gone")

    def heard(self, node: NodeId, boot: BootId) -> None:
        """The node is alive: dial again without a pause, and leave connections to an earlier life of it."""
        for lines in self._lines.values():
            line = lines.get(node)
            if line is None:
                continue
            line.retry_now()
            if line.link is not None and line.link.session is not None and line.link.session.boot < boot:
                line.drop(f"{node} has restarted")

    def rotate_secrets(self, secrets_: tuple[bytes, ...]) -> None:
        """For connections from now on. Raises ValueError on bad keys."""
        self.me = msgspec.structs.replace(self.me, secrets=secrets_)

    def stats(self) -> PeerStats:
        return self.counters.snapshot(
            connections=len(self._links),
            in_flight=sum(link.under_way for link in self._links),
            queued_bytes=sum(link.queued_bytes for link in self._links),
        )

    async def close(self) -> None:
        """End all connections; calls under way fail."""
        self._is_closed = True
        self._checking.cancel()
        for lines in self._lines.values():
            for line in lines.values():
                line.drop("this node stops")
            lines.clear()
        for link in list(self._links):
            link.abort("this node stops")
        # One turn, so that transports are gone when this returns.
        await asyncio.sleep(0)

    async def dial(self, node: NodeId) -> CallLink:
        """A new connection to a node. Raises PeerUnavailableError."""
        address = self._address_of(node)
        if address is None:
            raise PeerUnavailableError(f"no address of {node} is known", ambiguous=False)
        return await self._open(address, node)

    # -- inside

    def _line(self, node: NodeId, lane: Lane) -> Line:
        if self._is_closed:
            raise PeerUnavailableError("this node stops", ambiguous=False)
        if self._is_dead(node):
            raise PeerUnavailableError(f"{node} is dead", ambiguous=False)
        line = self._lines[lane].get(node)
        if line is None:
            line = self._lines[lane][node] = Line(self, node)
        return line

    async def _open(self, address: Address, node: NodeId | None) -> CallLink:
        if self._is_closed:
            raise PeerUnavailableError("this node stops", ambiguous=False)
        link = CallLink(self.me, node, self.settings, self.counters, self._deadlines)
        self._links.add(link)
        link.on_ended = self._links.discard
        refusal = "connect"
        try:
            async with asyncio.timeout(self.settings.connect_timeout_ms / 1000.0):
                await self.loop.create_connection(
                    lambda: link,
                    address.host,
                    address.port,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls is not None else None,
                )
                await link.established
            return link
        except HandshakeError as error:
            reason = str(error)
            refusal = error.refusal.value
        except (OSError, PeerUnavailableError) as error:  # a time-out is an OSError, too
            reason = str(error) or "no answer in time"
            self.counters.refusals[refusal] += 1
        except BaseException:
            link.abort("given up")
            raise
        link.abort(reason)
        if not self._is_closed and self._notices.is_due(time.monotonic(), address.host, str(address.port), refusal):
            logger.warning("no peer connection to %s at %s:%d: %s", node or "a seed", *address, reason)
        raise PeerUnavailableError(f"{node or 'peer'} at {address.host}:{address.port}: {reason}", ambiguous=False)

    def _check(self) -> None:
        now_s = time.monotonic()
        # After a stall of this loop, what was silent may only have been unheard: read first, judge next time.
        if now_s - self._checked_s < 2 * CHECK_INTERVAL_S:
            for link in list(self._links):
                link.check(now_s)
        self._checked_s = now_s
        self._checking = self.loop.call_later(CHECK_INTERVAL_S, self._check)


def _retrieved(dialling: asyncio.Task[CallLink]) -> None:
    """Whoever waited for the dial has given up: its failure is noted on the line, and is nobody's surprise."""
    if not dialling.cancelled():
        dialling.exception()


def _kind(error: BaseException) -> CallFailure:
    # A PeerTimeoutError that the other side raised is the same news: the caller's time was up.
    if isinstance(error, PeerTimeoutError):
        return CallFailure.TIMEOUT
    if isinstance(error, PeerUnavailableError):
        return CallFailure.UNAVAILABLE
    if isinstance(error, asyncio.CancelledError):
        return CallFailure.CANCELLED
    if isinstance(error, OverloadedError | PayloadTooLargeError):
        return CallFailure.REFUSED
    return CallFailure.REMOTE
