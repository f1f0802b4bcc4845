"""Who stands beside whom: the memories of each session in the order (time, id), as links between slots.

The order comes from the rows alone, so every replica finds the same neighbours whatever the order of arrival. A session is
a list of slots kept sorted by bisection; ``previous`` and ``next`` are arrays by slot, so that a window around many
memories is a few gathers. Memories without a session have no neighbours.

Owned by evidence.py, read by context.py.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.arrays import grown

NOBODY = -1


class SessionOrder:
    """See the module. ``previous`` and ``next``: int32 by slot, NOBODY where there is none; slots past their end stand alone."""

    def __init__(self) -> None:
        self.previous: NDArray[np.int32] = np.zeros(0, np.int32)
        self.next: NDArray[np.int32] = np.zeros(0, np.int32)
        self._codes: NDArray[np.int32] = np.zeros(0, np.int32)
        self._code_of: dict[str, int] = {}
        self._given_codes = 0
        self._sessions: dict[str, list[int]] = {}
        self._keys: dict[int, tuple[str, float, str]] = {}

    @property
    def nbytes(self) -> int:
        """Estimate: two links, a code, a list cell and a key a memory."""
        arrays = self.previous.nbytes + self.next.nbytes + self._codes.nbytes
        return int(arrays + 200 * len(self._keys) + 300 * len(self._sessions))

    @property
    def is_empty(self) -> bool:
        """Whether no memory has a session: then nobody has a neighbour."""
        return not self._keys

    def put(self, slot: int, session: str | None, when: float, row_id: str) -> None:
        """Place ``slot`` in its session; a slot that was elsewhere is moved."""
        key = None if session is None else (session, when, row_id)
        if self._keys.get(slot) == key:
            return
        self.remove(slot)
        if key is None or session is None:
            return
        self._grow(slot + 1)
        self._keys[slot] = key
        members = self._sessions.setdefault(session, [])
        if not members:
            self._code_of[session] = self._given_codes
            self._given_codes += 1
        self._codes[slot] = self._code_of[session]
        place = bisect_left(members, key, key=self._key)
        before = members[place - 1] if place else NOBODY
        after = members[place] if place < len(members) else NOBODY
        members.insert(place, slot)
        self._link(before, slot)
        self._link(slot, after)

    def remove(self, slot: int) -> None:
        """Take ``slot`` out of its session."""
        key = self._keys.get(slot)
        if key is None:
            return
        members = self._sessions[key[0]]
        members.pop(bisect_left(members, key, key=self._key))
        if not members:
            del self._sessions[key[0]], self._code_of[key[0]]
        del self._keys[slot]
        self._codes[slot] = NOBODY
        before, after = int(self.previous[slot]), int(self.next[slot])
        self.previous[slot] = self.next[slot] = NOBODY
        self._link(before, after)

    def keys(self) -> dict[int, tuple[str, float, str]]:
        """(session, time, id) of every placed slot, for a dump."""
        return self._keys

    def codes(self, slots: NDArray[np.int64]) -> NDArray[np.int32]:
        """A number for the session of each of ``slots``, NOBODY without one. It says nothing but same or other."""
        inside = slots < len(self._codes)
        if inside.all():
            return self._codes[slots]
        return np.where(inside, self._codes[np.where(inside, slots, 0)] if len(self._codes) else NOBODY, NOBODY).astype(
            np.int32
        )

    def _key(self, slot: int) -> Any:
        return self._keys[slot]

    def _link(self, left: int, right: int) -> None:
        if left != NOBODY:
            self.next[left] = right
        if right != NOBODY:
            self.previous[right] = left

    def _grow(self, size: int) -> None:
        if size > len(self.previous):
            self.previous = grown(self.previous, size, NOBODY)
            self.next = grown(self.next, size, NOBODY)
            self._codes = grown(self._codes, size, NOBODY)
