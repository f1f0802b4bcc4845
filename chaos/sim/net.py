"""A seeded discrete-event network: virtual time, and datagrams that are delayed, reordered, lost, doubled and cut off.

Invariant: all randomness comes from the one injected generator and all order from (time, sequence number), so the same
seed gives the same run, event by event. Endpoints are any hashable names; payloads are passed by reference, so they must
be immutable. Used by the simulated worlds of ``chaos/sim``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable
from random import Random
from typing import Any, Generic, TypeVar

import msgspec

Endpoint = TypeVar("Endpoint", bound=Hashable)


class Timeline:
    """Virtual time in milliseconds, and what happens when."""

    __slots__ = ("_heap", "_seq", "now_ms")

    def __init__(self) -> None:
        self.now_ms = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._seq = 0

    def at(self, when_ms: float, act: Callable[..., None], *args: Any) -> None:
        """Run ``act(*args)`` at ``when_ms``, or now if that has passed."""
        self._seq += 1
        heapq.heappush(self._heap, (max(when_ms, self.now_ms), self._seq, act, args))

    def after(self, delay_ms: float, act: Callable[..., None], *args: Any) -> None:
        self.at(self.now_ms + delay_ms, act, *args)

    def run_until(self, until_ms: float, stop: Callable[[], bool] | None = None) -> bool:
        """Run everything due up to ``until_ms``; end early, and return True, once ``stop()`` holds."""
        heap = self._heap
        while heap and heap[0][0] <= until_ms:
            when_ms, _, act, args = heapq.heappop(heap)
            self.now_ms = when_ms
            act(*args)
            if stop is not None and stop():
                return True
        self.now_ms = until_ms
        return False


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """How a datagram fares. Delay is uniform between its bounds, which also reorders."""

    delay_min_ms: float = 0.5
    delay_max_ms: float = 2.0
    loss: float = 0.0
    """Probability that a datagram is lost, each way."""
    duplicate: float = 0.0
    """Probability that a datagram arrives twice."""

    def survives(self, rng: Random, datagrams: int) -> bool:
        """Whether so many datagrams in a row all get through."""
        return self.loss == 0.0 or rng.random() < (1.0 - self.loss) ** datagrams


class Network(Generic[Endpoint]):
    """Carries payloads between endpoints over a ``Timeline``."""

    def __init__(self, timeline: Timeline, rng: Random, profile: LinkProfile) -> None:
        self.profile = profile
        self.carried = 0
        self.lost = 0
        self._timeline = timeline
        self._rng = rng
        self._receivers: dict[Endpoint, Callable[[Endpoint, Any], None]] = {}
        self._blocked: set[tuple[Endpoint, Endpoint]] = set()
        self._side: dict[Endpoint, int] = {}

    def attach(self, endpoint: Endpoint, receive: Callable[[Endpoint, Any], None]) -> None:
        """``receive(source, payload)`` is called for what arrives; replaces who listened there before."""
        self._receivers[endpoint] = receive

    def detach(self, endpoint: Endpoint) -> None:
        """Nobody listens there any more; what is under way to it is lost."""
        self._receivers.pop(endpoint, None)

    def block(self, source: Endpoint, target: Endpoint) -> None:
        """Lose everything one way, from ``source`` to ``target``."""
        self._blocked.add((source, target))

    def partition(self, *sides: Iterable[Endpoint]) -> None:
        """Only endpoints of one side reach each other; endpoints in no side form one more."""
        self._side = {endpoint: number for number, side in enumerate(sides, start=1) for endpoint in side}

    def heal(self) -> None:
        """Undo every block and partition."""
        self._blocked.clear()
        self._side = {}

    def reaches(self, source: Endpoint, target: Endpoint) -> bool:
        """Whether a datagram that is not lost by chance would get through, were anybody listening."""
        if self._blocked and (source, target) in self._blocked:
            return False
        return not self._side or self._side.get(source, 0) == self._side.get(target, 0)

    def is_attached(self, endpoint: Endpoint) -> bool:
        return endpoint in self._receivers

    def send(self, source: Endpoint, target: Endpoint, payload: Any) -> None:
        profile, rng = self.profile, self._rng
        self.carried += 1
        if not self.reaches(source, target) or (profile.loss > 0.0 and rng.random() < profile.loss):
            self.lost += 1
            return
        self._deliver_later(source, target, payload)
        if profile.duplicate > 0.0 and rng.random() < profile.duplicate:
            self._deliver_later(source, target, payload)

    def delay_ms(self) -> float:
        """One random one-way delay."""
        profile = self.profile
        return profile.delay_min_ms + self._rng.random() * (profile.delay_max_ms - profile.delay_min_ms)

    def _deliver_later(self, source: Endpoint, target: Endpoint, payload: Any) -> None:
        self._timeline.after(self.delay_ms(), self._deliver, source, target, payload)

    def _deliver(self, source: Endpoint, target: Endpoint, payload: Any) -> None:
        receive = self._receivers.get(target)
        if receive is not None and self.reaches(source, target):
            receive(source, payload)
