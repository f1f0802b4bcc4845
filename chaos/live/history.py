"""What clients did and were told: the only witness of a live run. Operations are written as JSON lines while it goes on.

Invariant: every value written is used once, so what a read shows names the write it came from. A memory has three fields that
are followed: ``content`` and ``importance``, which updates change one by one, and ``base``, the store that made it. All times
are milliseconds of the system's monotonic clock, which all processes of the machine share.

Called by the workload (writes), the checkers, the report and the picture (read).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

FOREVER = float("inf")
IMPORTANCE_STEPS = 1_000_000
"""Importance lies in [0, 1] with six decimals: so many writes can be told apart."""
_NUMBER = re.compile(r"#(\d+)$")


class Kind(enum.Enum):
    STORE = "store"
    CONTENT = "content"
    """An update of the content alone."""
    IMPORTANCE = "importance"
    FORGET = "forget"
    STRONG_GET = "strong get"
    EVENTUAL_GET = "eventual get"
    RECALL = "recall"

    @property
    def is_write(self) -> bool:
        return self in (Kind.STORE, Kind.CONTENT, Kind.IMPORTANCE, Kind.FORGET)

    @property
    def is_whole(self) -> bool:
        """Whether it writes every field."""
        return self in (Kind.STORE, Kind.FORGET)


class Outcome(enum.Enum):
    OK = "ok"
    FAILED = "failed"
    """Certainly without effect (a write), or without an answer (a read)."""
    AMBIGUOUS = "ambiguous"
    """The cluster said, or a broken connection says, that a write may or may not have happened."""
    TIMEOUT = "timeout"
    """The client gave up waiting: as ambiguous."""

    @property
    def is_unsure(self) -> bool:
        return self in (Outcome.AMBIGUOUS, Outcome.TIMEOUT)


class Attempt(msgspec.Struct, frozen=True):
    """One request to one node."""

    node: str
    start_ms: float
    end_ms: float
    outcome: Outcome
    status: int = 0
    """HTTP status; 0 without an answer."""
    code: str = ""
    """The cluster's error code, or the name of the connection's error."""


class Seen(msgspec.Struct, frozen=True):
    """A memory as a read showed it: the numbers of the operations that wrote its fields."""

    base: int
    content: int
    importance: int

    def by_field(self) -> dict[str, int]:
        return {"base": self.base, "content": self.content, "importance": self.importance}


FIELDS = ("base", "content", "importance")
WRITES: dict[Kind, tuple[str, ...]] = {
    Kind.STORE: FIELDS,
    Kind.FORGET: FIELDS,
    Kind.CONTENT: ("content",),
    Kind.IMPORTANCE: ("importance",),
}
"""Which fields a write of each kind decides."""


class Operation(msgspec.Struct):
    """One thing a client wanted, with all its attempts. ``key`` is (agent, memory id) joined by a slash."""

    number: int
    kind: Kind
    key: str
    client: int
    attempts: list[Attempt]
    outcome: Outcome
    found: bool = False
    """Reads: whether the memory was there. Forgets: whether anything was deleted."""
    seen: Seen | None = None
    others: dict[str, Seen] = {}
    """Recalls: every memory that came back, by key."""

    @property
    def start_ms(self) -> float:
        return self.attempts[0].start_ms

    @property
    def end_ms(self) -> float:
        return self.attempts[-1].end_ms

    @property
    def latency_ms(self) -> float:
        return self.end_ms - self.start_ms

    @property
    def settled_ms(self) -> float:
        """By when the write has certainly happened. A forget that found nothing did nothing."""
        idle = self.kind is Kind.FORGET and not self.found
        return self.end_ms if self.outcome is Outcome.OK and not idle else FOREVER

    @property
    def effect_until_ms(self) -> float:
        """Until when the write may still happen: an attempt nobody heard the end of may be carried out at any later time,
        also when the next attempt was acknowledged."""
        return FOREVER if self.is_loose or self.outcome is not Outcome.OK else self.end_ms

    @property
    def is_loose(self) -> bool:
        """Whether the end of an attempt is not known, whatever became of the others."""
        return any(attempt.outcome.is_unsure for attempt in self.attempts)

    @property
    def changes(self) -> bool:
        """A write that may have had an effect."""
        if not self.kind.is_write or self.outcome is Outcome.FAILED:
            return False
        # A forget that found nothing did nothing, unless an attempt before it had deleted the memory without saying so.
        return self.kind is not Kind.FORGET or self.outcome is not Outcome.OK or self.found or self.is_loose


def overall(attempts: Iterable[Attempt]) -> Outcome:
    """The outcome of an operation from those of its attempts: one success is enough, one doubt is a doubt."""
    outcomes = [attempt.outcome for attempt in attempts]
    for outcome in (Outcome.OK, Outcome.TIMEOUT, Outcome.AMBIGUOUS):
        if outcome in outcomes:
            return outcome
    return Outcome.FAILED


def content_of(number: int, text: str) -> str:
    """The content that operation ``number`` writes."""
    return f"{text} #{number}"


def importance_of(number: int) -> float:
    """The importance that operation ``number`` writes."""
    return (number % IMPORTANCE_STEPS) / IMPORTANCE_STEPS


def seen_in(memory: dict[str, Any]) -> Seen | None:
    """Who wrote what a memory shows, or None when it is no memory of ours."""
    text = _NUMBER.search(memory.get("content") or "")
    base = (memory.get("metadata") or {}).get("op")
    importance = memory.get("importance")
    if text is None or not isinstance(base, int) or not isinstance(importance, int | float):
        return None
    return Seen(base, int(text[1]), round(importance * IMPORTANCE_STEPS))


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Operation)


def encode(operation: Operation) -> bytes:
    """One line of a history."""
    return _encoder.encode(operation) + b"\n"


def read_history(path: Path) -> list[Operation]:
    """All operations of a file, in order of their start. A torn last line is left out: the writer was stopped in it."""
    return sorted(_lines(path), key=lambda operation: operation.start_ms)


def _lines(path: Path) -> Iterator[Operation]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _decoder.decode(line)
