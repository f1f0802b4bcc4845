"""What a history must show, whatever was done to the cluster: the promises, as functions from records to violations.

* **origin**: a read shows only what some write of that memory wrote, and none that had certainly failed;
* **lost write**: no read of a majority shows a field older than one that was settled before the read began;
* **resurrection**: the same, where what was settled is a deletion;
* **torn memory**: the fields of one read fit together: none is older than the store beneath it;
* **one leader**: an epoch has one holder; epochs and map versions never go back at a node;
* **replicas**: after the end, every copy of an agent's memories is the same;
* **lists**: and it is what a majority reads.

A write whose end nobody heard may happen at any later time (as in Jepsen's model), so it excuses what it could have caused
and nothing else. A write is settled when it was acknowledged, or when a majority has shown it once. Called by the runs and
by tests, which feed them bad histories: a checker that catches nothing is not a checker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from chaos.live.history import FOREVER, WRITES, Kind, Operation, Outcome, Seen, seen_in
from chaos.live.watch import Sighting


class Violation(msgspec.Struct, frozen=True):
    """A broken promise. ``promise`` is a short name; ``evidence`` are the numbers of the operations it rests on."""

    promise: str
    text: str
    at_ms: float
    evidence: tuple[int, ...] = ()


class _Settled:
    """By when each write has certainly happened, field by field."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._at: dict[tuple[int, str], float] = {}
        for op in operations:
            if op.changes:
                for field in WRITES[op.kind]:
                    self._at[op.number, field] = op.settled_ms
            elif op.kind is Kind.STRONG_GET and op.outcome is Outcome.OK and op.seen is not None:
                for field, number in op.seen.by_field().items():
                    known = self._at.get((number, field), FOREVER)
                    self._at[number, field] = min(known, op.end_ms)

    def __call__(self, write: Operation, field: str) -> float:
        return self._at.get((write.number, field), FOREVER)


def check_history(history: Iterable[Operation]) -> list[Violation]:
    """Origin, lost writes, resurrections and torn memories, over every key."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    violations: list[Violation] = []
    for op in history:
        if op.kind is not Kind.RECALL:
            by_key[op.key].append(op)
    for op in history:
        if op.kind is Kind.RECALL and op.outcome is Outcome.OK:
            for key, seen in op.others.items():
                violations += _origin(op, seen, by_key.get(key, []), f"recall {op.number} of {key}")
    for key, operations in by_key.items():
        violations += check_key(key, operations)
    return sorted(violations, key=lambda violation: violation.at_ms)


def check_key(key: str, operations: Sequence[Operation]) -> list[Violation]:
    """One memory's operations."""
    violations: list[Violation] = []
    settled = _Settled(operations)
    writes = [op for op in operations if op.changes]
    for read in operations:
        if read.kind.is_write or read.outcome is not Outcome.OK:
            continue
        name = f"{read.kind.value} {read.number} of {key}"
        if read.seen is not None:
            wrong = _origin(read, read.seen, operations, name)
            violations += wrong or _torn(read, writes, name)
            if wrong:
                continue
        if read.kind is Kind.STRONG_GET:
            violations += _freshness(read, writes, settled, name)
    return violations


def _origin(read: Operation, seen: Seen, operations: Sequence[Operation], name: str) -> list[Violation]:
    by_number = {op.number: op for op in operations if op.kind.is_write}
    for field, number in seen.by_field().items():
        writer = by_number.get(number)
        told = f"{name} saw {field} of operation {number}"
        if writer is None or writer.kind is Kind.FORGET or field not in WRITES[writer.kind]:
            return [Violation("origin", f"{told}, which nobody wrote", read.end_ms, (read.number,))]
        if writer.start_ms > read.end_ms:
            return [Violation("origin", f"{told}, which began later", read.end_ms, (read.number, number))]
        if writer.outcome is Outcome.FAILED:
            code = writer.attempts[-1].code
            text = f"{told}, which had certainly failed ({code})"
            return [Violation("failed write seen", text, read.end_ms, (read.number, number))]
    return []


def _torn(read: Operation, writes: Sequence[Operation], name: str) -> list[Violation]:
    assert read.seen is not None
    by_number = {op.number: op for op in writes}
    base = by_number[read.seen.base]
    for field in ("content", "importance"):
        writer = by_number[read.seen.by_field()[field]]
        if writer is not base and writer.effect_until_ms < base.start_ms:
            text = f"{name} saw {field} of {writer.number} under the later store {base.number}"
            return [Violation("torn memory", text, read.end_ms, (read.number, writer.number, base.number))]
    return []


def _freshness(read: Operation, writes: Sequence[Operation], settled: _Settled, name: str) -> list[Violation]:
    if read.seen is None:
        return _absence(read, writes, settled, name)
    by_number = {op.number: op for op in writes}
    for field, number in read.seen.by_field().items():
        writer = by_number[number]
        later = _overwriters(writer, field, read, writes, settled)
        if later:
            promise = "resurrection" if any(op.kind is Kind.FORGET for op in later) else "lost write"
            what = ", ".join(f"{op.kind.value} {op.number}" for op in later[:4])
            text = f"{name} saw {field} of {writer.kind.value} {writer.number} after {what} was settled"
            evidence = (read.number, writer.number, *(op.number for op in later))
            return [Violation(promise, text, read.end_ms, evidence)]
    return []


def _overwriters(
    write: Operation, field: str, read: Operation, writes: Sequence[Operation], settled: _Settled
) -> list[Operation]:
    """Writes of the field that began after ``write`` had happened for certain, and were settled before the read began."""
    return [
        op
        for op in writes
        if field in WRITES[op.kind] and op.start_ms > write.effect_until_ms and settled(op, field) < read.start_ms
    ]


def _absence(read: Operation, writes: Sequence[Operation], settled: _Settled, name: str) -> list[Violation]:
    stores = [op for op in writes if op.kind is Kind.STORE and settled(op, "base") < read.start_ms]
    if not stores:
        return []
    forgets = [op for op in writes if op.kind is Kind.FORGET and op.start_ms < read.end_ms]
    if any(all(store.start_ms <= forget.effect_until_ms for store in stores) for forget in forgets):
        return []
    last = max(stores, key=lambda op: settled(op, "base"))
    text = f"{name} saw no memory after store {last.number} was settled"
    return [Violation("lost write", text, read.end_ms, (read.number, last.number))]


def check_forgets(history: Iterable[Operation]) -> list[Violation]:
    """A forget of a memory whose store was acknowledged before must delete it: answering "nothing there" is a stale read that
    leaves the memory alive for ever."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    violations = []
    for op in history:
        if op.kind.is_write:
            by_key[op.key].append(op)
    for key, writes in by_key.items():
        for forget in writes:
            if forget.kind is not Kind.FORGET or forget.outcome is not Outcome.OK or forget.found:
                continue
            if len(forget.attempts) > 1:
                continue  # the first attempt may have deleted it
            stores = [op for op in writes if op.kind is Kind.STORE and op.settled_ms < forget.start_ms]
            others = [op for op in writes if op.kind is Kind.FORGET and op.changes and op.start_ms < forget.end_ms]
            if stores and not any(all(s.start_ms <= f.effect_until_ms for s in stores) for f in others):
                text = f"forget {forget.number} of {key} found nothing after store {stores[-1].number} was acknowledged"
                violations.append(Violation("missed forget", text, forget.end_ms, (forget.number, stores[-1].number)))
    return violations


def check_leaders(sightings: Iterable[Sighting]) -> list[Violation]:
    """At most one holder an epoch over all nodes; a node's epochs and map versions never go back; and nobody says that he may
    act once a newer epoch's leader has acted."""
    violations: list[Violation] = []
    holders: dict[int, tuple[str, str]] = {}
    newest: dict[str, Sighting] = {}
    acted: Sighting | None = None
    for sight in sorted(sightings, key=lambda s: s.end_ms):
        if sight.leader is not None:
            holder, teller = holders.setdefault(sight.epoch, (sight.leader, sight.node))
            if holder != sight.leader:
                text = f"epoch {sight.epoch} is held by {holder} ({teller} says) and {sight.leader} ({sight.node} says)"
                violations.append(Violation("one leader", text, sight.end_ms))
        before = newest.get(sight.node)
        if before is not None:
            violations += _backwards(before, sight)
        newest[sight.node] = sight
        if sight.acting and acted is not None and sight.epoch < acted.epoch and sight.start_ms > acted.end_ms:
            text = f"{sight.node} may act in epoch {sight.epoch} after {acted.node} acted in epoch {acted.epoch}"
            violations.append(Violation("one leader", text, sight.end_ms))
        if sight.acting and (acted is None or sight.epoch >= acted.epoch):
            acted = sight
    return violations


def _backwards(before: Sighting, after: Sighting) -> list[Violation]:
    found = []
    if (after.map_epoch, after.map_version) < (before.map_epoch, before.map_version) and after.map_epoch > 0:
        text = (
            f"{after.node} went from map {before.map_epoch}.{before.map_version} "
            f"to {after.map_epoch}.{after.map_version}"
        )
        found.append(Violation("epochs go up", text, after.end_ms))
    if after.boot == before.boot and 0 < after.epoch < before.epoch:
        text = f"{after.node} went from lease epoch {before.epoch} to {after.epoch}"
        found.append(Violation("epochs go up", text, after.end_ms))
    return found


Copy = Mapping[str, Mapping[str, Any]]
"""Memory id -> the memory's fields, as one replica holds them."""


def check_copies(copies: Mapping[str, Mapping[str, Copy]], expected: int, at_ms: float) -> list[Violation]:
    """``copies``: agent -> node -> that node's own copy. An agent's copies are the same, and there are enough."""
    violations = []
    for agent, by_node in sorted(copies.items()):
        if len(by_node) < expected:
            text = f"{agent} has {len(by_node)} copies ({', '.join(sorted(by_node))}), expected {expected}"
            violations.append(Violation("replicas", text, at_ms))
        nodes = sorted(by_node)
        for node in nodes[1:]:
            difference = _difference(by_node[nodes[0]], by_node[node])
            if difference:
                text = f"{agent} differs between {nodes[0]} and {node}: {difference}"
                violations.append(Violation("replicas", text, at_ms))
    return violations


def check_lists(finals: Iterable[Operation], copies: Mapping[str, Mapping[str, Copy]], at_ms: float) -> list[Violation]:
    """What the nodes list (and so recall from) is what a majority reads: rows and the views made of them agree."""
    violations = []
    for read in finals:
        agent, _, memory = read.key.partition("/")
        if read.outcome is not Outcome.OK:
            continue
        for node, copy in sorted(copies.get(agent, {}).items()):
            listed = seen_in(dict(copy[memory])) if memory in copy else None
            if listed != read.seen:
                text = f"{node} lists {read.key} as {_told(listed)}, a majority reads {_told(read.seen)}"
                violations.append(Violation("lists", text, at_ms, (read.number,)))
    return violations


def _told(seen: Seen | None) -> str:
    return "absent" if seen is None else ", ".join(f"{field} of {number}" for field, number in seen.by_field().items())


def _difference(one: Copy, other: Copy) -> str:
    parts = []
    for name in sorted({*one, *other}):
        if name not in one or name not in other:
            parts.append(f"{name} only on the {'first' if name in one else 'second'}")
        elif one[name] != other[name]:
            fields = [f for f in sorted({*one[name], *other[name]}) if one[name].get(f) != other[name].get(f)]
            parts.append(f"{name}: {', '.join(f'{f} {one[name].get(f)!r} / {other[name].get(f)!r}' for f in fields)}")
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return "; ".join(parts[:3]) + more
