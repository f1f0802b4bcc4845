"""How messages between peers are cut, sealed and put together again. Pure: bytes in, bytes out.

::

    stream  = record*
    record  = u32 length | body                    length <= RECORD_MAX_BYTES, refused before a byte of it is kept
    body    = AES-256-GCM(frame*)                  with a cluster secret; the frames themselves without one
    frame   = u8 kind | u8 flags | u32 call | u32 length | payload

All integers are big-endian. A record takes whatever waits at that moment, so that many small frames share one seal and one
write. A message longer than ``FRAGMENT_BYTES`` travels in several frames, all but the last flagged MORE, and gives way to
others between them: a shard of 64 MB on its way does not hold up a ping.

The nonce of a record is its number on the connection, which is not sent: a record that is dropped, repeated, moved,
altered or taken from another connection or direction does not open, and the connection ends. Keys are fresh for every
connection and direction (`peer_handshake`), so no (key, nonce) pair occurs twice.

Invariant: what a reader keeps is bounded, whatever arrives: one record, and unfinished messages of ``2 * message_bytes``
together; an outbox starts no more than ``message_bytes`` of them. Called by `cluster.peer_link`.
"""

from __future__ import annotations

import enum
import struct
from collections import OrderedDict, deque
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LENGTH = struct.Struct(">I")
FRAME = struct.Struct(">BBII")

FRAGMENT_BYTES = 64 * 1024
RECORD_BYTES = 128 * 1024
"""A record is closed when it holds this much."""
RECORD_MAX_BYTES = 256 * 1024
"""Longest record accepted: a full one, one more fragment, headers and seal, with room to spare."""
HANDSHAKE_MAX_BYTES = 2 * 1024
"""Longest record accepted from a stranger."""
UNFINISHED_MAX = 4096
"""Messages that may be under way in fragments at once."""

MORE = 1
"""Flag: the message goes on in a later frame of the same kind and call."""
CONNECTION = 0
"""The call number of frames that concern the connection as a whole."""


class FrameKind(enum.IntEnum):
    """On the wire: append, never renumber. Unknown kinds are skipped, so that a newer peer may send them."""

    REQUEST = 1
    """head and payload of a call (`peer_messages`)"""
    STREAM = 2
    """same, answered with CHUNK* then END"""
    ANSWER = 3
    FAILURE = 4
    """a typed error; ends the call or stream"""
    CANCEL = 5
    """the caller no longer wants an answer"""
    CHUNK = 6
    END = 7
    CREDIT = 8
    """u32 bytes the reader of a stream can take in addition"""
    PING = 9
    PONG = 10
    GOODBYE = 11
    """no new calls, please: what runs is still answered"""


class FrameFault(enum.Enum):
    """Why a connection's bytes were refused; each ends the connection."""

    OVERSIZE = "oversize"
    GARBAGE = "garbage"
    FORGED = "forged"


class FrameError(Exception):
    """The bytes that arrived are not acceptable, and nothing after them can be."""

    def __init__(self, fault: FrameFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class Seal(Protocol):
    """Both directions of one connection."""

    def close(self, plain: bytes) -> bytes: ...

    def open(self, body: bytes) -> bytes:
        """Raises FrameError."""
        ...


class NoSeal:
    """For clusters without a secret."""

    __slots__ = ()

    def close(self, plain: bytes) -> bytes:
        return plain

    def open(self, body: bytes) -> bytes:
        return body


class CounterSeal:
    """AES-256-GCM; nonces count records, separately for each direction and key."""

    __slots__ = ("_closed", "_closing", "_opened", "_opening")

    def __init__(self, sending_key: bytes, receiving_key: bytes) -> None:
        self._closing = AESGCM(sending_key)
        self._opening = AESGCM(receiving_key)
        self._closed = self._opened = 0

    def close(self, plain: bytes) -> bytes:
        nonce = self._closed.to_bytes(12, "big")
        self._closed += 1
        return self._closing.encrypt(nonce, plain, None)

    def open(self, body: bytes) -> bytes:
        try:
            plain = self._opening.decrypt(self._opened.to_bytes(12, "big"), body, None)
        except InvalidTag:
            raise FrameError(FrameFault.FORGED, "a record was altered, repeated or lost on its way") from None
        self._opened += 1
        return plain


class RecordReader:
    """Cuts a byte stream into record bodies. ``limit_bytes`` grows when the handshake is done."""

    __slots__ = ("_at", "_data", "_partial", "limit_bytes")

    def __init__(self, limit_bytes: int = HANDSHAKE_MAX_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._data = b""
        self._at = 0
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrived; call ``next_body`` until it has no more before feeding again."""
        if self._partial:
            self._partial += data
        else:
            self._data, self._at = data, 0

    def next_body(self) -> bytes | None:
        """The next whole record, None when bytes are missing. Raises FrameError on one that is too long."""
        source: bytes | bytearray = self._partial or self._data
        have = len(source) - self._at
        if have >= LENGTH.size:
            (length,) = LENGTH.unpack_from(source, self._at)
            if length > self.limit_bytes:
                raise FrameError(FrameFault.OVERSIZE, f"a record of {length} bytes; the limit is {self.limit_bytes}")
            stop = self._at + LENGTH.size + length
            if stop <= len(source):
                if self._partial:
                    self._data, self._at = bytes(source), self._at
                    self._partial.clear()
                body = self._data[self._at + LENGTH.size : stop]
                self._at = stop
                return body
        if not self._partial:
            self._partial += self._data[self._at :]
            self._data, self._at = b"", 0
        return None


Message = tuple[int, int, bytes]
"""(kind, call, payload)"""


class MessageReader:
    """Cuts opened records into messages and joins fragments."""

    __slots__ = ("_message_bytes", "_unfinished", "_unfinished_bytes")

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._unfinished: dict[int, tuple[int, list[bytes], int]] = {}
        self._unfinished_bytes = 0

    @property
    def unfinished_bytes(self) -> int:
        return self._unfinished_bytes

    def read(self, plain: bytes) -> list[Message]:
        """Messages that this record completes, in order. Raises FrameError."""
        found: list[Message] = []
        at, end = 0, len(plain)
        while at < end:
            if end - at < FRAME.size:
                raise FrameError(FrameFault.GARBAGE, "a record ends inside a frame's header")
            kind, flags, call, length = FRAME.unpack_from(plain, at)
            at += FRAME.size
            stop = at + length
            if stop > end:
                raise FrameError(FrameFault.GARBAGE, "a frame is longer than its record")
            payload = plain[at:stop]
            at = stop
            if flags & MORE or call in self._unfinished:
                whole = self._join(kind, flags, call, payload)
                if whole is None:
                    continue
                payload = whole
            found.append((kind, call, payload))
        return found

    def _join(self, kind: int, flags: int, call: int, payload: bytes) -> bytes | None:
        known = self._unfinished.pop(call, None)
        if known is not None and known[0] != kind:
            # The sender gave the message up: a failure, a cancellation or an end of the same call says so.
            self._unfinished_bytes -= known[2]
            known = None
        _, parts, size = known or (kind, [], 0)
        parts.append(payload)
        size += len(payload)
        if not flags & MORE:
            self._unfinished_bytes -= size - len(payload)
            return b"".join(parts)
        if not payload:
            raise FrameError(FrameFault.GARBAGE, "an empty fragment")
        self._unfinished_bytes += len(payload)
        self._unfinished[call] = (kind, parts, size)
        if size > self._message_bytes:
            raise FrameError(FrameFault.OVERSIZE, f"a message of more than {self._message_bytes} bytes")
        if self._unfinished_bytes > 2 * self._message_bytes or len(self._unfinished) > UNFINISHED_MAX:
            raise FrameError(FrameFault.OVERSIZE, "too much in fragments")
        return None


class Outbox:
    """What waits to be sent, and what goes into the next record.

    Short messages go first, in order. Long ones take turns, a fragment each, as many at once as the reader has room for;
    messages of one call keep their order.
    """

    __slots__ = ("_long", "_short", "_short_bytes", "_started", "_started_bytes", "queued_bytes", "started_max_bytes")

    def __init__(self) -> None:
        self._short: deque[bytes] = deque()
        self._short_bytes = 0
        self._long: OrderedDict[int, deque[_Long]] = OrderedDict()
        """Long messages by call whose turn has not come, in order of their coming."""
        self._started: OrderedDict[int, deque[_Long]] = OrderedDict()
        """Calls whose first message is partly sent."""
        self._started_bytes = 0
        self.queued_bytes = 0
        self.started_max_bytes = 0
        """Bytes of long messages the reader may have to keep at once; one message is always allowed."""

    def put(self, kind: int, call: int, payload: bytes) -> None:
        length = len(payload)
        self.queued_bytes += length + FRAME.size
        waiting = self._started.get(call) or self._long.get(call)
        if waiting is not None:
            waiting.append(_Long(kind, payload))
        elif length > FRAGMENT_BYTES:
            self._long[call] = deque([_Long(kind, payload)])
        else:
            frame = FRAME.pack(kind, 0, call, length) + payload
            self._short.append(frame)
            self._short_bytes += len(frame)

    def drop(self, call: int) -> bool:
        """Forget what is left of the long messages of a call; True when there was some. The reader must then be told by
        a message of another kind, or it would wait for the rest."""
        waiting = self._started.pop(call, None)
        if waiting is not None:
            self._started_bytes -= len(waiting[0].payload)
        else:
            waiting = self._long.pop(call, None)
            if waiting is None:
                return False
        self.queued_bytes -= sum(len(long.payload) - long.sent + FRAME.size for long in waiting)
        return True

    def take(self) -> bytes:
        """The frames of the next record, empty when nothing waits."""
        if self._short_bytes <= RECORD_BYTES:
            parts = list(self._short)
            size = self._short_bytes
            self._short.clear()
            self._short_bytes = 0
        else:
            parts, size = [], 0
            while self._short and size + len(self._short[0]) <= RECORD_BYTES:
                parts.append(self._short.popleft())
                size += len(parts[-1])
            self._short_bytes -= size
        self.queued_bytes -= size
        if self._long or self._started:
            self._take_long(parts, size)
        return b"".join(parts)

    def _take_long(self, parts: list[bytes], size: int) -> None:
        # At least one fragment goes out each time, or a stream of short messages could hold a long one up for ever.
        first = True
        while first or size < RECORD_BYTES:
            first = False
            self._start()
            if not self._started:
                return
            call, waiting = self._started.popitem(last=False)
            long = waiting[0]
            piece = long.payload[long.sent : long.sent + FRAGMENT_BYTES]
            long.sent += len(piece)
            self.queued_bytes -= len(piece)
            if long.sent < len(long.payload):
                parts.append(FRAME.pack(long.kind, MORE, call, len(piece)))
                self._started[call] = waiting
            else:
                parts.append(FRAME.pack(long.kind, 0, call, len(piece)))
                self.queued_bytes -= FRAME.size
                self._started_bytes -= len(long.payload)
                waiting.popleft()
                if waiting:
                    self._long[call] = waiting
            parts.append(piece)
            size += len(piece) + FRAME.size

    def _start(self) -> None:
        while self._long:
            call = next(iter(self._long))
            length = len(self._long[call][0].payload)
            if self._started and self._started_bytes + length > self.started_max_bytes:
                return
            self._started[call] = self._long.pop(call)
            self._started_bytes += length


class _Long:
    """A message that goes out in several frames, or waits behind one."""

    __slots__ = ("kind", "payload", "sent")

    def __init__(self, kind: int, payload: bytes) -> None:
        self.kind = kind
        self.payload = payload
        self.sent = 0
