"""What the drivers of replication need from the peer transport: to call a method of a node, and to answer one.

Called by repair, hints, mover and collector; the peer server and client fit these shapes, and so does a direct connection
between nodes of one process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec

from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.model.ids import NodeId

Handler = Callable[[bytes, Any], Awaitable[bytes]]
M = TypeVar("M")

_ENCODER = msgspec.msgpack.Encoder()


class Caller(Protocol):
    """Calls a method of another node."""

    async def call(self, node: NodeId, method: str, payload: bytes, timeout_ms: float) -> bytes:
        """The answer. Raises the errors of `model.errors`: the node's own, or ServiceUnavailableError and QueryTimeoutError
        when it cannot be reached in time."""
        ...


class Registrar(Protocol):
    """Takes the methods that a node answers."""

    def register(self, method: str, handler: Handler) -> None: ...


def pack(message: msgspec.Struct) -> bytes:
    """The message as msgpack."""
    return _ENCODER.encode(message)


def unpack(data: bytes, kind: type[M]) -> M:
    """Raises InvalidRequestError when the bytes are no such message."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidRequestError(f"a peer's {kind.__name__} cannot be read: {error}") from error
