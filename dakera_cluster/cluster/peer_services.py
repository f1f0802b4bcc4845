"""What a peer may ask for: services by name, the context they run in, and one piece of work under way.

Called by `cluster.peer_server`; services themselves see `Context` only.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from dakera_cluster.cluster.peer_metrics import MethodCounters
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.peer_handshake import Session


class Priority(enum.Enum):
    """CONTROL calls (gossip, map) pass the bounds over all connections: a busy node must not look dead."""

    NORMAL = "normal"
    CONTROL = "control"


class Context:
    """Who asks, and for how long."""

    __slots__ = ("_deadline_s", "boot", "node", "version")

    def __init__(self, session: Session, timeout_ms: int) -> None:
        self.node: NodeId = session.node
        self.boot: BootId = session.boot
        self.version: int = session.version
        """Protocol version of the connection."""
        self._deadline_s = time.monotonic() + timeout_ms / 1000.0 if timeout_ms else None

    def remaining_ms(self) -> int | None:
        """What is left of the caller's time, to be passed on with calls of one's own; None without a bound."""
        if self._deadline_s is None:
            return None
        return max(0, int((self._deadline_s - time.monotonic()) * 1000.0))


Handler = Callable[[bytes, Context], Awaitable[bytes]]
StreamHandler = Callable[[bytes, Context], AsyncGenerator[bytes, None]]


class Service:
    """Exactly one of ``handler`` and ``stream`` is there."""

    __slots__ = ("counters", "handler", "name", "priority", "stream")

    def __init__(
        self,
        name: str,
        priority: Priority,
        counters: MethodCounters,
        handler: Handler | None,
        stream: StreamHandler | None,
    ) -> None:
        self.name = name
        self.priority = priority
        self.counters = counters
        self.handler = handler
        self.stream = stream


class Work:
    """One request under way."""

    __slots__ = ("call", "credit", "granted", "is_cancelled", "is_expired", "is_started", "service", "size", "task")

    def __init__(self, service: Service, call: int, size: int, credit: int) -> None:
        self.service = service
        self.call = call
        self.size = size
        self.credit = credit
        self.granted: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_started = self.is_cancelled = self.is_expired = False

    def expire(self) -> None:
        self.is_expired = True
        self.cancel()

    def cancel(self) -> None:
        self.is_cancelled = True
        # A task cancelled before its first step never runs, not even what it would do at its end.
        if self.is_started and self.task is not None:
            self.task.cancel()

    def grant(self, credit: int) -> None:
        self.credit += credit
        if self.granted is not None and not self.granted.done():
            self.granted.set_result(None)
