"""Per-slot attributes of the documents in a view: what recall conditions, recency and expiry read.

Numbers live in numpy arrays indexed by slot, strings (sessions, tags) are interned to codes, so a condition over 100,000
documents is a few vectorised comparisons and a document costs about 50 bytes. Called by `shard.view` and `shard.search`,
in the namespace's lane.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import msgspec
import numpy as np

from dakera_cluster.index.arrays import grown
from dakera_cluster.model.memories import DEFAULT_IMPORTANCE, Field, MemoryType
from dakera_cluster.shard.ops import Conditions

TYPES: tuple[str, ...] = tuple(MemoryType)
NO_SESSION = -1
NO_TYPE = 255

_NUMBERS = {
    "alive": (np.bool_, False),
    "created": (np.int64, 0),
    "event": (np.float64, np.nan),
    "importance": (np.float32, DEFAULT_IMPORTANCE),
    "type": (np.uint8, NO_TYPE),
    "session": (np.int32, NO_SESSION),
    "expires": (np.int64, 0),
    "sequence": (np.int64, 0),
    "accesses": (np.int64, 0),
    "accessed_ms": (np.int64, 0),
}


Column = np.ndarray[Any, Any]


class Attributes:
    """Columns over slots 0 .. size-1. Slots are appended, marked dead, and never reused."""

    alive: Column
    created: Column
    event: Column
    importance: Column
    type: Column
    session: Column
    expires: Column
    sequence: Column
    accesses: Column
    accessed_ms: Column

    __slots__ = (*_NUMBERS, "_session_codes", "_tag_codes", "_tagged", "_tags", "expiring", "live", "sessions", "size")

    def __init__(self) -> None:
        self.size = 0
        self.live = 0
        self.expiring = 0
        """Slots, dead ones included, whose document expires some day."""
        for name, (dtype, _) in _NUMBERS.items():
            setattr(self, name, np.zeros(0, dtype=dtype))
        self.sessions: list[str] = []
        self._session_codes: dict[str, int] = {}
        self._tag_codes: dict[str, int] = {}
        self._tags: dict[int, tuple[int, ...]] = {}
        self._tagged: dict[int, array[int]] = {}

    def grow(self, size: int) -> None:
        """Make room for slots below ``size``."""
        if size <= self.size:
            return
        if size > len(self.alive):
            for name, (_, fill) in _NUMBERS.items():
                setattr(self, name, grown(getattr(self, name), size, fill))
        self.size = size

    def set(self, slot: int, fields: dict[str, Any]) -> None:
        """Read the attributes of a live document."""
        if not self.alive[slot]:
            self.alive[slot] = True
            self.live += 1
        self.created[slot] = int(fields.get(Field.CREATED) or 0)
        event = fields.get(Field.EVENT_TIME)
        self.event[slot] = np.nan if event is None else float(event)
        self.importance[slot] = float(fields.get(Field.IMPORTANCE, DEFAULT_IMPORTANCE))
        kind = fields.get(Field.TYPE)
        self.type[slot] = TYPES.index(kind) if kind in TYPES else NO_TYPE
        self.session[slot] = self._session_code(fields.get(Field.SESSION))
        expires = int(fields.get(Field.EXPIRES) or 0)
        self.expiring += (expires != 0) - int(self.expires[slot] != 0)
        self.expires[slot] = expires
        self._set_tags(slot, fields.get(Field.TAGS) or ())

    def kill(self, slot: int) -> None:
        """The document of ``slot`` is gone."""
        if self.alive[slot]:
            self.alive[slot] = False
            self.live -= 1
            # The slot stays in the tags' lists, which are searched under a mask of live slots: removing it from each
            # would make the delete of n documents with one tag quadratic.
            self._tags.pop(slot, None)

    def _session_code(self, name: str | None) -> int:
        if name is None:
            return NO_SESSION
        code = self._session_codes.setdefault(name, len(self.sessions))
        if code == len(self.sessions):
            self.sessions.append(name)
        return code

    def _set_tags(self, slot: int, names: Any) -> None:
        codes = tuple(sorted({self._tag_codes.setdefault(name, len(self._tag_codes)) for name in names}))
        before = self._tags.get(slot, ())
        if codes == before:
            return
        for code in set(before) - set(codes):
            self._tagged[code].remove(slot)
        for code in set(codes) - set(before):
            self._tagged.setdefault(code, array("i")).append(slot)
        if codes:
            self._tags[slot] = codes
        else:
            del self._tags[slot]

    def with_tags(self, names: list[str]) -> np.ndarray[Any, Any]:
        """Mask over slots of the documents, dead ones included, that carry every tag."""
        mask = np.zeros(self.size, dtype=bool)
        found: set[int] | None = None
        for name in names:
            code = self._tag_codes.get(name)
            slots = set(self._tagged.get(code, ())) if code is not None else set()
            found = slots if found is None else found & slots
            if not found:
                return mask
        mask[np.fromiter(found or (), dtype=np.int64)] = True
        return mask

    def tag_counts(self) -> dict[str, int]:
        """Tag -> live documents that carry it."""
        names = list(self._tag_codes)
        counts = Counter(code for codes in self._tags.values() for code in codes)
        return {names[code]: count for code, count in counts.items()}

    def visible(self, now_ms: int) -> np.ndarray[Any, Any]:
        """Mask over slots of the documents that live and have not expired."""
        alive: np.ndarray[Any, Any] = self.alive[: self.size]
        expires = self.expires[: self.size]
        if not self.expiring:
            return alive
        return np.asarray(alive & ((expires == 0) | (expires > now_ms // 1000)))

    def matching(self, conditions: Conditions, slot_of: dict[str, int]) -> np.ndarray[Any, Any]:
        """Mask over slots of the documents, dead ones included, that meet the conditions."""
        size = self.size
        mask = np.ones(size, dtype=bool)
        if conditions.memory_type is not None:
            known = conditions.memory_type in TYPES
            mask &= self.type[:size] == (TYPES.index(conditions.memory_type) if known else -1)
        # Importance is kept as float32: compare in that precision, or 0.7 would not be >= 0.7.
        if conditions.min_importance is not None:
            mask &= self.importance[:size] >= np.float32(conditions.min_importance)
        if conditions.max_importance is not None:
            mask &= self.importance[:size] <= np.float32(conditions.max_importance)
        if conditions.session_id is not None:
            mask &= self.session[:size] == self._session_codes.get(conditions.session_id, -2)
        if conditions.created_after is not None:
            mask &= self.created[:size] >= conditions.created_after
        if conditions.created_before is not None:
            mask &= self.created[:size] <= conditions.created_before
        if conditions.event_after is not None or conditions.event_before is not None:
            when = self.when()
            if conditions.event_after is not None:
                mask &= when >= conditions.event_after
            if conditions.event_before is not None:
                mask &= when <= conditions.event_before
        if conditions.tags:
            mask &= self.with_tags(conditions.tags)
        if conditions.ids is not None:
            chosen = np.zeros(size, dtype=bool)
            chosen[[slot_of[row_id] for row_id in conditions.ids if row_id in slot_of]] = True
            mask &= chosen
        return mask

    def when(self) -> np.ndarray[Any, Any]:
        """Seconds: a document's own time, its event time where it has one, else its creation."""
        event = self.event[: self.size]
        return np.asarray(np.where(np.isnan(event), self.created[: self.size], event))

    @property
    def memory_bytes(self) -> int:
        numbers = sum(getattr(self, name).nbytes for name in _NUMBERS)
        tags = sum(len(slots) for slots in self._tagged.values()) * 4 + len(self._tags) * 120
        return int(numbers + tags + len(self.sessions) * 160)

    def dump(self) -> tuple[dict[str, np.ndarray[Any, Any]], bytes]:
        """Number columns, and the interned strings as msgpack."""
        numbers = {name: getattr(self, name)[: self.size] for name in _NUMBERS}
        flat = {slot: list(codes) for slot, codes in self._tags.items()}
        return numbers, msgspec.msgpack.encode([self.sessions, list(self._tag_codes), flat])

    @classmethod
    def load(cls, numbers: dict[str, np.ndarray[Any, Any]], strings: bytes) -> Attributes:
        """The attributes ``dump`` wrote. Raises msgspec.ValidationError or KeyError when they are not whole."""
        self = cls()
        self.sessions, tags, flat = msgspec.msgpack.decode(
            strings, type=tuple[list[str], list[str], dict[int, list[int]]]
        )
        self._session_codes = {name: code for code, name in enumerate(self.sessions)}
        self._tag_codes = {name: code for code, name in enumerate(tags)}
        for slot, codes in flat.items():
            self._tags[slot] = tuple(codes)
            for code in codes:
                self._tagged.setdefault(code, array("i")).append(slot)
        for name, (dtype, _) in _NUMBERS.items():
            setattr(self, name, np.array(numbers[name], dtype=dtype))
        self.size = len(self.alive)
        self.live = int(self.alive.sum())
        self.expiring = int(np.count_nonzero(self.expires))
        return self
