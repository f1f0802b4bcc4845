"""Figures of the failovers in a run: how soon a death was known, how soon there was a new leader, and what clients felt.

Everything is computed from the history, the sightings and the events; nothing is measured here. Called by the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from chaos.live.history import Kind, Operation, Outcome
from chaos.live.nemesis import Event
from chaos.live.watch import Sighting

WINDOW_MS = 10_000.0
"""What counts as "during the failover", from the fault on."""


class Failover(msgspec.Struct, frozen=True):
    """After one fault. Times in milliseconds from the fault; None: did not happen, or does not apply."""

    nemesis: str
    targets: tuple[str, ...]
    detected_ms: float | None
    new_leader_ms: float | None
    write_p99_ms: float | None
    """Of operations that did not go to a node that hung: what those felt is the client's own time-out."""
    recall_p99_ms: float | None
    operations: int
    retried: int
    failed: int
    """Operations that failed in spite of the one retry."""


def failovers(events: Sequence[Event], sightings: Sequence[Sighting], history: Sequence[Operation]) -> list[Failover]:
    """Figures of every strike that took nodes away."""
    wanted = ("kill", "leader", "pause", "wipe", "partition")
    return [_failover(event, sightings, history) for event in events if event.nemesis in wanted and event.targets]


def _failover(event: Event, sightings: Sequence[Sighting], history: Sequence[Operation]) -> Failover:
    until = event.start_ms + WINDOW_MS
    some = [op for op in history if event.start_ms <= op.start_ms < until]
    hung = set(event.targets) if event.nemesis in ("pause", "partition") else set()
    spared = [op for op in some if not any(attempt.node in hung for attempt in op.attempts)]
    return Failover(
        nemesis=event.nemesis,
        targets=event.targets,
        detected_ms=detection_ms(event, sightings),
        new_leader_ms=succession_ms(event, sightings),
        write_p99_ms=percentile([op.latency_ms for op in spared if op.kind.is_write], 0.99),
        recall_p99_ms=percentile([op.latency_ms for op in spared if op.kind is Kind.RECALL], 0.99),
        operations=len(some),
        retried=sum(len(op.attempts) > 1 for op in some),
        failed=sum(unserved(op) for op in some),
    )


def unserved(operation: Operation) -> bool:
    """Whether the client did not get what it asked for. A 404 or a refusal of the request itself is an answer."""
    if operation.outcome is Outcome.OK:
        return False
    status = operation.attempts[-1].status
    return not 400 <= status < 500 or status == 429


def detection_ms(event: Event, sightings: Sequence[Sighting]) -> float | None:
    """When the first of the others took the (one) target for dead."""
    target = event.targets[0]
    times = []
    for sight in sightings:
        state, age_ms = sight.states.get(target, ("", 0.0))
        if sight.node in event.targets or state != "dead" or not event.start_ms <= sight.start_ms <= event.end_ms:
            continue
        since = sight.start_ms - age_ms
        if since > event.start_ms:
            times.append(since - event.start_ms)
    return min(times, default=None)


def succession_ms(event: Event, sightings: Sequence[Sighting]) -> float | None:
    """When the first node named a new leader of a later epoch, if the target led."""
    before = [s for s in sightings if s.end_ms <= event.start_ms and s.leader is not None]
    if not before or before[-1].leader not in event.targets:
        return None
    epoch = before[-1].epoch
    until = event.end_ms + WINDOW_MS
    later = (s for s in sightings if event.start_ms < s.end_ms < until and s.epoch > epoch and s.leader is not None)
    return min((s.end_ms - event.start_ms for s in later if s.leader not in event.targets), default=None)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
