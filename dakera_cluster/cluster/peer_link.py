"""One TCP connection between two peers: records in and out, back-pressure, keep-alive. What both sides have in common.

Messages queued within one turn of the loop leave in one record and one write. When the kernel takes no more, writing
stops, the queue grows to ``queue_bytes``, and then senders wait (``has_room``, ``flushed``). Reading never stops for the
sake of writing: two peers that both waited to be read would wait for ever. Instead the number of calls, the bytes in
fragments and the windows of streams are bounded, and a peer that reads nothing at all is cut off.

Invariant: after ``ended`` was called nothing is sent and no message is delivered. Subclassed by `cluster.peer_client` and
`cluster.peer_server`; everything runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import cast

from dakera_cluster.cluster.peer_metrics import PeerCounters
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.protocols.peer_frames import (
    CONNECTION,
    LENGTH,
    RECORD_MAX_BYTES,
    FrameError,
    FrameKind,
    MessageReader,
    Outbox,
    RecordReader,
)
from dakera_cluster.protocols.peer_handshake import HandshakeError, Session

logger = logging.getLogger(__name__)

WRITE_HIGH_BYTES = 1024**2
"""Bytes handed to the transport and not yet to the kernel, above which we keep the rest."""
_PING, _PONG = int(FrameKind.PING), int(FrameKind.PONG)


class Link(asyncio.Protocol):
    """Life: connected -> handshake -> session -> ended."""

    def __init__(self, settings: PeerSettings, counters: PeerCounters) -> None:
        self.settings = settings
        self.counters = counters
        self.loop = asyncio.get_running_loop()
        self.session: Session | None = None
        self.reason = ""
        """Why the connection ended; empty while it lives."""
        self.peer_address = "?"
        self._transport: asyncio.Transport | None = None
        self._records = RecordReader()
        self._messages = MessageReader(settings.message_bytes)
        self._outbox = Outbox()
        self._flushing = False
        self._paused = False
        self._unread_max = 2 * settings.queue_bytes + settings.message_bytes
        self.heard_s = self.used_s = time.monotonic()

    # -- for subclasses to fill in

    def greet(self) -> None:
        """The connection is there."""

    def handshake(self, body: bytes) -> Session | None:
        """Take a record before there is a session. Raises HandshakeError."""
        raise NotImplementedError

    def message(self, kind: int, call: int, payload: bytes) -> None:
        """Take a message."""
        raise NotImplementedError

    def ended(self) -> None:
        """The connection is gone; called once."""

    def refused(self, error: HandshakeError) -> None:
        """The handshake failed."""

    def flushed(self) -> None:
        """Messages went out and there is room for more."""

    # -- what subclasses and owners use

    @property
    def is_open(self) -> bool:
        return not self.reason and self.session is not None

    @property
    def queued_bytes(self) -> int:
        return self._outbox.queued_bytes

    def send(self, kind: int, call: int, payload: bytes) -> None:
        """Queue a message; dropped when the connection has ended."""
        if self.reason:
            return
        outbox = self._outbox
        outbox.put(kind, call, payload)
        if self._paused:
            if outbox.queued_bytes > self._unread_max:
                self.fault("unread", "takes nothing of what is sent to it")
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def unsend(self, call: int) -> bool:
        """Forget the unsent rest of a call's long message; True when there was one."""
        return self._outbox.drop(call)

    def has_room(self) -> bool:
        return self._outbox.queued_bytes < self.settings.queue_bytes

    def send_record(self, body: bytes) -> None:
        """Write a body of the handshake."""
        if self._transport is not None and not self.reason:
            self._write(body)

    def check(self, now_s: float) -> None:
        """Look for silence; called every second or so."""
        if not self.reason and (now_s - self.heard_s) * 1000.0 > self.settings.silence_timeout_ms:
            self.fault("silent", f"was silent for {now_s - self.heard_s:.1f} s")

    def fault(self, kind: str, text: str) -> None:
        """Cut the connection off and count why."""
        self.counters.faults[kind] += 1
        logger.warning("peer %s %s; the connection is cut off", self.name, text)
        self.abort(text)

    def abort(self, reason: str) -> None:
        """End at once; unsent messages are lost."""
        if self._end(reason) and self._transport is not None:
            self._transport.abort()

    def close(self, reason: str) -> None:
        """End after what is queued has been handed to the kernel, as far as it takes it."""
        if self._outbox.queued_bytes and not self._paused and not self.reason:
            self._flush()
        if self._end(reason) and self._transport is not None:
            self._transport.close()

    @property
    def name(self) -> str:
        return f"{self.session.node} ({self.peer_address})" if self.session is not None else self.peer_address

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        address = transport.get_extra_info("peername")
        if address:
            self.peer_address = f"{address[0]}:{address[1]}"
        self.heard_s = self.used_s = time.monotonic()
        if self.reason:
            self._transport.abort()
        else:
            self.greet()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection broke: {exc}" if exc is not None else "the peer closed the connection")
        self._transport = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.heard_s = time.monotonic()
        self.counters.bytes_received += len(data)
        try:
            self._records.feed(data)
            while not self.reason and (body := self._records.next_body()) is not None:
                session = self.session
                if session is None:
                    self._shake_hands(body)
                    continue
                for kind, call, payload in self._messages.read(session.seal.open(body)):
                    if kind == _PING:
                        self.send(_PONG, CONNECTION, b"")
                    elif kind != _PONG:
                        self.message(kind, call, payload)
                    if self.reason:
                        return
        except FrameError as error:
            self.fault(error.fault.value, str(error))
        except HandshakeError as error:
            self.counters.refusals[error.refusal.value] += 1
            self.refused(error)
            if error.answer:
                self.send_record(error.answer)
            self.close(str(error))

    # -- inside

    def _shake_hands(self, body: bytes) -> None:
        session = self.handshake(body)
        if session is not None:
            self.session = session
            self.counters.opened += 1
            self._records.limit_bytes = RECORD_MAX_BYTES
            self._outbox.started_max_bytes = session.message_bytes

    def _flush(self) -> None:
        self._flushing = False
        session = self.session
        if self.reason or session is None:
            return
        while not self._paused and (plain := self._outbox.take()):
            self._write(session.seal.close(plain))
        if self.has_room():
            self.flushed()

    def _write(self, body: bytes) -> None:
        assert self._transport is not None
        record = LENGTH.pack(len(body)) + body
        self.counters.bytes_sent += len(record)
        self._transport.write(record)

    def _end(self, reason: str) -> bool:
        if self.reason:
            return False
        self.reason = reason or "closed"
        self.ended()
        return True


class Notices:
    """Lets the same line into the log once a minute: a misconfigured peer knocks several times a second."""

    INTERVAL_S = 60.0
    REMEMBERED = 256

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def is_due(self, now_s: float, *key: str) -> bool:
        last_s = self._seen.get(key)
        if last_s is not None and now_s - last_s < self.INTERVAL_S:
            return False
        self._seen[key] = now_s
        self._seen.move_to_end(key)
        if len(self._seen) > self.REMEMBERED:
            self._seen.popitem(last=False)
        return True
