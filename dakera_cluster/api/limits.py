"""Bounds on load: a token bucket per caller, and a bound on requests and body bytes in flight.

The bucket holds ``burst`` tokens and gains ``rps`` a second (token bucket as in RFC 2697's committed rate); it is kept as
one number, the time at which it was last full plus what was taken, so that nothing runs on a timer. Buckets of callers
not seen lately are dropped, oldest first. Time is a parameter. Called by `endpoint`, and by `shared_limits`, which tells
the other nodes what was taken here and this limiter what was taken there.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping

import msgspec

from dakera_cluster.model.errors import OverloadedError, RateLimitedError

MAX_BUCKETS = 10_000
UNLIMITED = 2_147_483_647
OVERLOAD_RETRY_S = 1
TELL_FRACTION = 8
"""Of a shared bucket's burst: so much taken here is told to the other nodes at once."""


class Allowance(msgspec.Struct, frozen=True):
    """What the rate-limit headers say. ``reset_s`` is in seconds from now until the bucket is full."""

    limit: int
    remaining: int
    reset_s: float


_NO_LIMIT = Allowance(UNLIMITED, UNLIMITED, 0.0)


class Taken(msgspec.Struct):
    """Tokens that one caller took here and nobody else has been told of. ``since`` is when the first was taken."""

    tokens: int
    since: float


class RateLimiter:
    """Buckets of this node. Alone until `share` is called."""

    def __init__(self, *, rps: int, burst: int) -> None:
        self._rps = rps
        self._burst = max(burst, 1)
        self._limit = max(rps, self._burst)
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._taken: dict[str, Taken] = {}
        self._tell: Callable[[bool], None] | None = None
        self._tell_at_tokens = max(1, self._burst // TELL_FRACTION)

    @property
    def step_s(self) -> float:
        """Seconds in which a bucket gains one token."""
        return 1.0 / self._rps

    def share(self, tell: Callable[[bool], None]) -> None:
        """From now on note what is taken. ``tell`` is called when there is something to collect, with True when it
        should be told at once."""
        self._tell = tell

    def collect(self) -> dict[str, Taken]:
        """What was taken and not collected yet, by caller."""
        collected, self._taken = self._taken, {}
        return collected

    def learn(self, debts_s: Mapping[str, float], asked: float) -> None:
        """Take over how far the shared buckets of callers were from full at ``asked`` (this node's clock).

        A bucket is never made fuller than it is known to be here: a Redis that lost its memory gives nobody a burst.
        """
        for caller, debt_s in debts_s.items():
            since_then = self._taken.get(caller)
            full_at = asked + debt_s + (since_then.tokens * self.step_s if since_then is not None else 0.0)
            self._full_at[caller] = max(full_at, self._full_at.get(caller, 0.0))

    @property
    def enabled(self) -> bool:
        return self._rps > 0

    def peek(self, caller: str, now: float) -> Allowance:
        """The caller's allowance, taking nothing."""
        if not self.enabled:
            return _NO_LIMIT
        return self._allowance(max(self._full_at.get(caller, 0.0), now), now)

    def take(self, caller: str, now: float) -> Allowance:
        """Take one token. Raises RateLimitedError, saying when the next one is there, when there is none."""
        if not self.enabled:
            return _NO_LIMIT
        step = self.step_s
        full_at = max(self._full_at.get(caller, 0.0), now) + step
        missing_s = (full_at - now) - self._burst * step
        if missing_s > 1e-9:
            raise RateLimitedError("Rate limit exceeded", retry_after_s=max(1, math.ceil(missing_s)))
        if self._tell is not None:
            self._note(caller, now, self._tell)
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        if len(self._full_at) > MAX_BUCKETS:
            self._full_at.popitem(last=False)
        return self._allowance(full_at, now)

    def _note(self, caller: str, now: float, tell: Callable[[bool], None]) -> None:
        taken = self._taken.get(caller)
        if taken is None:
            taken = self._taken[caller] = Taken(0, now)
        taken.tokens += 1
        tell(taken.tokens >= self._tell_at_tokens)

    def _allowance(self, full_at: float, now: float) -> Allowance:
        behind_s = full_at - now
        return Allowance(self._limit, max(0, int(self._burst - behind_s * self._rps + 1e-6)), behind_s)


class Admission:
    """Requests and body bytes in flight; over a bound the node refuses before it falls over."""

    def __init__(self, *, max_requests: int, max_body_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_body_bytes = max_body_bytes
        self.requests = 0
        self.body_bytes = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def enter(self) -> None:
        if self.requests >= self._max_requests:
            raise OverloadedError(
                f"{self.requests} requests are being worked on; retry shortly", retry_after_s=OVERLOAD_RETRY_S
            )
        self.requests += 1
        self.idle.clear()

    def leave(self) -> None:
        self.requests -= 1
        if self.requests == 0:
            self.idle.set()

    def reserve(self, count: int) -> None:
        """Account for ``count`` more bytes of a body; the caller releases what it reserved."""
        if self.body_bytes + count > self._max_body_bytes:
            raise OverloadedError("too many request bodies are held; retry shortly", retry_after_s=OVERLOAD_RETRY_S)
        self.body_bytes += count

    def release(self, count: int) -> None:
        self.body_bytes -= count
