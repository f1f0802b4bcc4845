"""A simulated disk: tables of keys, batches that are atomic, group commit, and what a crash leaves of it.

Writes are visible to their own process at once and durable when the next fsync ends. A crash keeps what was synced and any
prefix of what was not, whole batches only: that is what a checksummed write-ahead log gives. ``destroy`` is a new, empty
disk with another identity. Used by the nodes; crashed and destroyed by the nemesis.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any

from chaos.sim.net import Timeline

Write = tuple[Hashable, Hashable, Any]
"""(table, key, value); value None deletes the key, key None the whole table."""
Table = dict[Hashable, Any]

SYNC_MIN_MS = 1.0
SYNC_MAX_MS = 6.0
SLOW_SYNC_MS = 120.0
SLOW_SYNC_SHARE = 0.01


class Disk:
    """One node's disk."""

    def __init__(self, timeline: Timeline, rng: Random) -> None:
        self._timeline = timeline
        self._rng = rng
        self._visible: dict[Hashable, Table] = {}
        self._durable: dict[Hashable, Table] = {}
        self._pending: list[tuple[Sequence[Write], Callable[[], None] | None]] = []
        self._syncing = 0
        self._life = 0
        self.identity = rng.getrandbits(31) + 1
        self.sync_max_ms = SYNC_MAX_MS

    def table(self, name: Hashable) -> Table:
        """The rows of a table as its process sees them. Never change it directly."""
        return self._visible.get(name, {})

    def get(self, name: Hashable, key: Hashable) -> Any:
        return self._visible.get(name, {}).get(key)

    def commit(self, writes: Sequence[Write], done: Callable[[], None] | None = None) -> None:
        """Apply one atomic batch; ``done`` is called when it is durable, and not at all after a crash."""
        _apply(self._visible, writes)
        self._pending.append((writes, done))
        self._sync()

    def barrier(self, done: Callable[[], None]) -> None:
        """Call ``done`` when everything that is visible now is durable."""
        if not self._pending:
            done()
        else:
            self.commit((), done)

    def crash(self) -> int:
        """Power is gone. Returns how many batches were lost."""
        survivors = self._rng.randint(0, len(self._pending))
        for writes, _ in self._pending[:survivors]:
            _apply(self._durable, writes)
        lost = len(self._pending) - survivors
        self._reset()
        return lost

    def destroy(self) -> None:
        """The disk is replaced by an empty one."""
        self._durable = {}
        self._reset()
        self.identity = self._rng.getrandbits(31) + 1

    def _reset(self) -> None:
        self._visible = {name: dict(table) for name, table in self._durable.items()}
        self._pending = []
        self._syncing = 0
        self._life += 1

    def _sync(self) -> None:
        if self._syncing or not self._pending:
            return
        self._syncing = len(self._pending)
        slow = self._rng.random() < SLOW_SYNC_SHARE
        delay_ms = SLOW_SYNC_MS if slow else self._rng.uniform(SYNC_MIN_MS, self.sync_max_ms)
        self._timeline.after(delay_ms, self._synced, self._life)

    def _synced(self, life: int) -> None:
        if life != self._life:
            return
        finished = self._pending[: self._syncing]
        del self._pending[: self._syncing]
        self._syncing = 0
        for writes, _ in finished:
            _apply(self._durable, writes)
        for _, done in finished:
            if done is not None and life == self._life:
                done()
        self._sync()


def _apply(tables: dict[Hashable, Table], writes: Sequence[Write]) -> None:
    for name, key, value in writes:
        if key is None:
            tables.pop(name, None)
        elif value is None:
            table = tables.get(name)
            if table is not None:
                table.pop(key, None)
        else:
            tables.setdefault(name, {})[key] = value
