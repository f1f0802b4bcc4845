"""The guard at every resource a leader acts on: the highest epoch seen, kept on disk, and no command from below it.

A lease alone cannot stop a leader that slept between looking at its clock and acting. The fence can: a command carries the
epoch it was given under, the receiver first makes the highest epoch it ever saw durable, and refuses what is older
(Kleppmann, "How to do distributed locking", 2016; Chubby's sequencers, 2006).

Invariant: once a command of epoch e was admitted, no command of a lower epoch is ever admitted again, restarts included. So a
higher epoch is persisted *before* its first command is admitted, and commands wait meanwhile.

Duties of the caller: carry out Persist with an fsync and answer with `persisted`; start with the epoch found on disk; run a
command only on Admit. Called by the receiver of leader commands and of shard maps, on every node.
"""

from __future__ import annotations

import msgspec

WAITING_MAX = 1_024
"""Commands that wait for an epoch to become durable; more are refused, the leader sends them again."""


class Persist(msgspec.Struct, frozen=True):
    """Make ``epoch`` durable, then call `Fence.persisted`."""

    epoch: int


class Admit(msgspec.Struct, frozen=True):
    """The command behind ``ticket`` may run now."""

    ticket: int


class Refuse(msgspec.Struct, frozen=True):
    """The command behind ``ticket`` comes from a leader of the past, or too many wait; tell it ``highest``."""

    ticket: int
    highest: int


Effect = Persist | Admit | Refuse


class Fence:
    """One node's guard. ``epoch`` is what its disk holds."""

    __slots__ = ("_durable", "_highest", "_waiting")

    def __init__(self, epoch: int = 0) -> None:
        self._durable = epoch
        self._highest = epoch
        self._waiting: list[tuple[int, int]] = []

    @property
    def highest(self) -> int:
        """Highest epoch heard of, durable or about to be."""
        return self._highest

    def offer(self, epoch: int, ticket: int) -> list[Effect]:
        """Judge a command given under ``epoch``. ``ticket`` is the caller's name for it."""
        if epoch < self._highest:
            return [Refuse(ticket, self._highest)]
        if epoch == self._durable:
            return [Admit(ticket)]
        if len(self._waiting) >= WAITING_MAX:
            return [Refuse(ticket, self._highest)]
        self._waiting.append((epoch, ticket))
        if epoch == self._highest:
            return []
        self._highest = epoch
        return [Persist(epoch)]

    def persisted(self, epoch: int) -> list[Effect]:
        """``epoch`` is on disk. Commands that waited for it run, those a higher one has overtaken meanwhile do not."""
        self._durable = max(self._durable, epoch)
        out: list[Effect] = []
        still: list[tuple[int, int]] = []
        for wanted, ticket in self._waiting:
            if wanted < self._highest:
                out.append(Refuse(ticket, self._highest))
            elif wanted <= self._durable:
                out.append(Admit(ticket))
            else:
                still.append((wanted, ticket))
        self._waiting = still
        return out
