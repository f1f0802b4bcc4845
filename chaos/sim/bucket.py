"""A simulated object store with compare-and-swap, and everything that goes wrong with one: 409, lost requests, lost replies,
writes that take effect long after their caller gave up, outages, and stores that ignore conditions.

Invariant: a conditional write is decided at one instant of the timeline, against the object as it is at that instant.
``watch`` sees every write that took effect: the checkers' view of the truth. Used by leaders; faulted by the nemesis.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from random import Random

from chaos.sim.net import Timeline

LATENCY_MIN_MS = 5.0
LATENCY_MAX_MS = 40.0
LATE_MAX_MS = 8_000.0
TIMEOUT_MS = 1_500.0


class Outcome(enum.Enum):
    """What a caller learns of a write or a read."""

    DONE = "done"
    CONFLICT = "409"
    REFUSED = "412"
    MISSING = "404"
    UNKNOWN = "unknown"


Found = tuple[bytes, str] | None
"""Content and etag of an object, or None when there is none."""


class Bucket:
    def __init__(self, timeline: Timeline, rng: Random) -> None:
        self._timeline = timeline
        self._rng = rng
        self._objects: dict[str, tuple[bytes, str]] = {}
        self._writes = 0
        self.is_out = False
        self.ignores_conditions = False
        self.fault_share = 0.0
        self.watch: Callable[[str, bytes], None] = lambda name, data: None

    def peek(self, name: str) -> bytes | None:
        """The truth, for checkers only."""
        found = self._objects.get(name)
        return found[0] if found else None

    def delete(self, name: str) -> None:
        """Somebody with a console."""
        self._objects.pop(name, None)

    def get(self, name: str, reply: Callable[[Outcome, Found], None]) -> None:
        """DONE with what is there, or UNKNOWN."""
        if self.is_out or self._rng.random() < self.fault_share:
            self._timeline.after(TIMEOUT_MS, reply, Outcome.UNKNOWN, None)
            return
        self._later(self._read, name, reply)

    def put(self, name: str, data: bytes, if_match: str | None, reply: Callable[[Outcome, str], None]) -> None:
        """If-Match, or If-None-Match: * when ``if_match`` is None."""
        if self.is_out:
            self._timeline.after(TIMEOUT_MS, reply, Outcome.UNKNOWN, "")
            return
        if self._rng.random() >= self.fault_share:
            self._later(self._write, name, data, if_match, reply)
            return
        fault = self._rng.choice(("conflict", "lost request", "lost reply", "late"))
        if fault == "conflict":
            self._later(reply, Outcome.CONFLICT, "")
            return
        if fault == "lost reply":
            self._later(self._write, name, data, if_match, None)
        elif fault == "late":
            delay_ms = self._rng.uniform(0, LATE_MAX_MS)
            self._timeline.after(delay_ms, self._write, name, data, if_match, None)
        self._timeline.after(TIMEOUT_MS, reply, Outcome.UNKNOWN, "")

    def _later(self, act: Callable[..., None], *args: object) -> None:
        self._timeline.after(self._rng.uniform(LATENCY_MIN_MS, LATENCY_MAX_MS), act, *args)

    def _read(self, name: str, reply: Callable[[Outcome, Found], None]) -> None:
        found = self._objects.get(name)
        self._later(reply, Outcome.DONE, found)

    def _write(
        self, name: str, data: bytes, if_match: str | None, reply: Callable[[Outcome, str], None] | None
    ) -> None:
        outcome = self._decide(name, if_match)
        etag = ""
        if outcome is Outcome.DONE:
            self._writes += 1
            etag = f"e{self._writes}"
            self._objects[name] = (data, etag)
            self.watch(name, data)
        if reply is not None:
            self._later(reply, outcome, etag)

    def _decide(self, name: str, if_match: str | None) -> Outcome:
        found = self._objects.get(name)
        if self.ignores_conditions:
            return Outcome.DONE
        if if_match is None:
            return Outcome.DONE if found is None else Outcome.REFUSED
        if found is None:
            return Outcome.MISSING
        return Outcome.DONE if found[1] == if_match else Outcome.REFUSED
