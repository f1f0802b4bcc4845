"""The inverted file of one namespace partition: a small writable tail and a few sealed segments.

An added document is appended to the tail and is visible at once. A full tail is sealed into a segment; small segments
are merged while writing, large ones by ``compaction`` (in the background). Nothing is rewritten on removal: ``_home``
says, per slot, which segment holds its live postings, so a posting is live exactly when the home of its slot is the
segment it stands in. That makes removal and replacement O(1), and every count exact at any time: document frequencies
never include the dead, so scores do not depend on the history of a replica.

Memory: about 3 bytes a posting and 20 a distinct term sealed, 22 a posting in the tail. Called by fulltext.py (and,
through it, by retrieval); the owner's lock covers every call. ``Compaction.run`` alone may run outside of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from dakera_cluster.index import dump
from dakera_cluster.index.arrays import grown
from dakera_cluster.index.segment import MAX_FREQUENCY, Segment, hashes_of, merged, sealed
from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.native import postings as native

ABSENT, TAIL, FIRST_SEGMENT = 0, 1, 2
MAX_SEGMENTS = 48
"""Segments a search may have to look into; writing merges before there are more. Far below the 254 that _home can name."""
FANOUT = 4
"""Neighbouring segments of a like size that are merged: each document is rewritten about log4(documents / 64) times."""
DOCUMENTS_AT_ONCE = 64
"""Documents appended together: past this many nothing is gained, and the tail must not outgrow its limit by far."""
MIN_TAIL_POSTINGS = 1_024
MAX_TAIL_POSTINGS = 32_768
TAIL_SHARE = 32
"""The tail is sealed at 1/32 of the postings, within the two bounds: scanning it stays cheap beside the segments."""
INLINE_MERGE_POSTINGS = 65_536
"""Largest merge a write does itself (a few milliseconds); larger ones wait for ``compaction``."""
MAX_DEAD_SHARE = 0.25
"""Share of dead documents in a segment at which ``compaction`` rewrites it."""
DUMP_KIND = "postings"
DUMP_VERSION = 1


class Compaction(msgspec.Struct):
    """A merge in three steps: planned under the owner's lock, ``run`` anywhere, ``Postings.install`` under the lock."""

    homes: tuple[int, ...]
    parts: list[tuple[Segment, np.ndarray | None]]
    documents: int
    result: Segment | None = None

    def run(self) -> Compaction:
        """The heavy part: pure, releases the GIL in numpy's sorts."""
        self.result = merged(self.documents, self.parts)
        return self


class Postings:
    """See the module."""

    __slots__ = (
        "_home",
        "_lists",
        "_live",
        "_sealed",
        "_segments",
        "_tail_frequencies",
        "_tail_keys",
        "_tail_names",
        "_tail_size",
        "_tail_slots",
        "_wide_lengths",
        "documents",
        "lengths",
        "total_length",
    )

    def __init__(self) -> None:
        self.documents = 0
        self.total_length = 0
        self.lengths = np.zeros(0, dtype=np.int32)
        self._wide_lengths: np.ndarray | None = None
        self._lists: native.Lists | None = None
        """All of it as it is searched; None when anything has changed but the dead of the tail."""
        self._home = np.zeros(0, dtype=np.uint8)
        self._segments: dict[int, Segment] = {}
        self._sealed: native.Segments | None = None
        """The segments as they are searched; None when they have changed."""
        self._live: dict[int, int] = {}
        self._clear_tail()

    def _clear_tail(self) -> None:
        self._tail_size = 0
        self._tail_keys = np.zeros(0, dtype=np.uint64)
        self._tail_slots = np.zeros(0, dtype=np.int32)
        self._tail_frequencies = np.zeros(0, dtype=np.uint16)
        self._tail_names = bytearray()
        self._lists = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        tail = self._tail_keys.nbytes + self._tail_slots.nbytes + self._tail_frequencies.nbytes + len(self._tail_names)
        sealed_bytes = sum(segment.nbytes for segment in self._segments.values())
        wide = 0 if self._wide_lengths is None else self._wide_lengths.nbytes
        return sealed_bytes + tail + self.lengths.nbytes + wide + self._home.nbytes

    @property
    def segments(self) -> int:
        """Sealed segments."""
        return len(self._segments)

    def __contains__(self, slot: int) -> bool:
        return 0 <= slot < len(self._home) and bool(self._home[slot] != ABSENT)

    @property
    def wide_lengths(self) -> np.ndarray:
        """``lengths`` as float64, kept until they change: every recall reads them, few follow a write. Not to be changed."""
        if self._wide_lengths is None:
            self._wide_lengths = self.lengths.astype(np.float64)
        return self._wide_lengths

    @property
    def average_length(self) -> float:
        """Terms a document, 0 when there is none."""
        return self.total_length / max(1, self.documents)

    def present(self) -> np.ndarray:
        """bool by slot: the slots that hold a document."""
        return np.asarray(self._home != ABSENT)

    def add(self, slot: int, counts: Mapping[str, int], length: int) -> None:
        """Index a document of ``length`` terms with ``counts`` of each; a present slot is replaced."""
        self.add_many([slot], [counts], [length])

    def add_many(self, slots: Sequence[int], counts: Sequence[Mapping[str, int]], lengths: Sequence[int]) -> None:
        """``add`` for documents at distinct slots, at a third of the time for each."""
        for start in range(0, len(slots), DOCUMENTS_AT_ONCE):
            part = slice(start, start + DOCUMENTS_AT_ONCE)
            self._append(slots[part], counts[part], lengths[part])

    def _append(self, slots: Sequence[int], counts: Sequence[Mapping[str, int]], lengths: Sequence[int]) -> None:
        for slot in slots:
            if slot in self:
                self.remove(slot)
        highest = max(slots) + 1
        self._home = grown(self._home, highest, ABSENT)
        self.lengths = grown(self.lengths, highest, 0)
        terms = [term for each in counts for term in each]
        first, last = self._tail_size, self._tail_size + len(terms)
        if last > len(self._tail_keys):
            self._tail_keys = grown(self._tail_keys, last)
            self._tail_slots = grown(self._tail_slots, last)
            self._tail_frequencies = grown(self._tail_frequencies, last)
        if terms:
            self._tail_keys[first:last] = hashes_of(terms)
            self._tail_slots[first:last] = np.repeat(slots, [len(each) for each in counts])
            frequencies = [count for each in counts for count in each.values()]
            self._tail_frequencies[first:last] = np.minimum(frequencies, MAX_FREQUENCY)
            self._tail_names += " ".join(terms).encode() + b" "
        self._tail_size = last
        self._home[slots] = TAIL
        self.lengths[slots] = lengths
        self._wide_lengths = self._lists = None
        self.documents += len(slots)
        self.total_length += sum(lengths)
        if last >= MIN_TAIL_POSTINGS and last >= self._tail_limit():
            self.seal()

    def remove(self, slot: int) -> bool:
        """Forget the document at ``slot``; False when there is none."""
        if slot not in self:
            return False
        home = int(self._home[slot])
        if home == TAIL:
            part = self._tail_slots[: self._tail_size]
            part[part == slot] = -1
        else:
            self._live[home] -= 1
        self._home[slot] = ABSENT
        self.documents -= 1
        self.total_length -= int(self.lengths[slot])
        self.lengths[slot] = 0
        self._wide_lengths = self._lists = None
        return True

    def _tail_limit(self) -> int:
        held = sum(segment.postings for segment in self._segments.values())
        return min(MAX_TAIL_POSTINGS, max(MIN_TAIL_POSTINGS, held // TAIL_SHARE))

    def lookup(self, keys: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Live ``(slots int32[m], frequencies uint16[m])`` of each of ``keys`` (uint64[n], distinct), unsorted over segments."""
        slots, frequencies, ends = self.find(keys)
        stops = ends.tolist()
        return [(slots[first:last], frequencies[first:last]) for first, last in zip([0, *stops], stops, strict=False)]

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(slots int32[n], frequencies uint16[n], ends int64[t])``: what ``lookup`` finds, one key after another, each up to
        its end."""
        return native.of(self.lists, keys)

    @property
    def lists(self) -> native.Lists:
        """All of it, for kernels; good until the next change."""
        if self._lists is None:
            if self._sealed is None:
                segments = [segment.arrays() for segment in self._segments.values()]
                self._sealed = native.Segments(list(self._segments), segments)
            tail = self._tail_keys, self._tail_slots, self._tail_frequencies
            every = self.wide_lengths, self.documents, self.average_length
            self._lists = native.Lists(self._sealed, self._home, tail, self._tail_size, *every)
        return self._lists

    def terms_with_prefix(self, prefix: str, limit: int) -> list[str]:
        """At most ``limit`` live terms that begin with ``prefix``: the most frequent, ties in alphabetical order."""
        encoded = prefix.encode()
        names = {name for segment in self._segments.values() for name in segment.with_prefix(encoded)}
        names.update(name for name in bytes(self._tail_names).split() if name.startswith(encoded))
        candidates = sorted(name.decode() for name in names)
        counts = [len(slots) for slots, _ in self.lookup(hashes_of(candidates))] if candidates else []
        ranked = sorted((-count, term) for count, term in zip(counts, candidates, strict=True) if count)
        return [term for _, term in ranked[:limit]]

    def unique_terms(self) -> int:
        """Distinct terms of the live documents. Reads every posting of segments that hold dead ones."""
        keys = [segment.keys[_live_terms(segment, live)] for segment, live in self._parts(list(self._segments))]
        tail = slice(0, self._tail_size)
        keys.append(self._tail_keys[tail][self._tail_slots[tail] >= 0])
        return len(np.unique(np.concatenate(keys)))

    def seal(self) -> None:
        """Turn the tail into a segment, then do the small merges that are due."""
        slots = self._tail_slots[: self._tail_size]
        alive = np.flatnonzero(slots >= 0)
        if len(alive):
            names = bytes(self._tail_names).split()
            documents = np.unique(slots[alive])
            home = self._free_home()
            self._segments[home] = sealed(
                len(documents),
                self._tail_keys[alive],
                slots[alive],
                self._tail_frequencies[alive],
                [names[position] for position in alive.tolist()],
            )
            self._home[documents] = home
            self._live[home] = len(documents)
            self._sealed = self._lists = None
        self._clear_tail()
        while len(self._segments) > 1:
            homes = self._next_merge()
            size = sum(self._segments[home].postings for home in homes)
            if not homes or (size > INLINE_MERGE_POSTINGS and len(self._segments) <= MAX_SEGMENTS):
                break
            self.install(self._plan(homes).run())

    def _free_home(self) -> int:
        return next(home for home in range(FIRST_SEGMENT, 256) if home not in self._segments)

    def _level(self, home: int) -> int:
        level, size = 0, self._segments[home].postings
        while size > MIN_TAIL_POSTINGS * FANOUT:
            level, size = level + 1, size // FANOUT
        return level

    def _next_merge(self) -> list[int]:
        """Homes of FANOUT segments of one size class, the smallest class first; empty when none is that crowded."""
        classes: dict[int, list[int]] = {}
        for home in self._segments:
            classes.setdefault(self._level(home), []).append(home)
        for level in sorted(classes):
            if len(classes[level]) >= FANOUT:
                return classes[level]
        return sorted(self._segments, key=self._level)[:FANOUT] if len(self._segments) > MAX_SEGMENTS else []

    def compaction(self) -> Compaction | None:
        """The merge most worth doing now, or None: crowded size classes first, then segments with many dead."""
        homes = self._next_merge()
        if not homes:
            homes = [
                home
                for home, segment in self._segments.items()
                if segment.documents - self._live[home] > MAX_DEAD_SHARE * segment.documents
            ][:1]
        return self._plan(homes) if homes else None

    def compact(self) -> None:
        """Seal and merge everything into one segment without dead postings."""
        self.seal()
        dead = any(segment.documents > self._live[home] for home, segment in self._segments.items())
        if len(self._segments) > 1 or dead:
            self.install(self._plan(list(self._segments)).run())

    def _plan(self, homes: list[int]) -> Compaction:
        return Compaction(tuple(homes), list(self._parts(homes)), sum(self._live[home] for home in homes))

    def _parts(self, homes: list[int]) -> Iterator[tuple[Segment, np.ndarray | None]]:
        for home in homes:
            segment = self._segments[home]
            whole = self._live[home] == segment.documents
            yield segment, None if whole else self._home[segment.slots] == home

    def install(self, compaction: Compaction) -> bool:
        """Put a finished compaction in place of its inputs; documents that changed meanwhile stay as they are now.

        False when an input was itself merged away since the plan: the result is then of no use.
        """
        result = compaction.result
        assert result is not None, "run the compaction first"
        planned = zip(compaction.homes, compaction.parts, strict=True)
        if any(self._segments.get(home) is not segment for home, (segment, _) in planned):
            return False
        moved = np.flatnonzero(np.isin(self._home, compaction.homes))
        for home in compaction.homes:
            del self._segments[home], self._live[home]
        self._sealed = self._lists = None
        if len(moved):
            home = self._free_home()
            self._segments[home] = result
            self._live[home] = len(moved)
            self._home[moved] = home
        return True

    def dump(self) -> list[bytes | memoryview]:
        """The postings as the parts of a dump (the tail is sealed first); later writes do not change them."""
        self.seal()
        arrays: dict[str, np.ndarray] = {"lengths": self.lengths.copy(), "home": self._home.copy()}
        for home, segment in self._segments.items():
            arrays |= {f"{home}.{name}": array for name, array in segment.arrays().items()}
        meta = {"segments": [[home, segment.documents] for home, segment in self._segments.items()]}
        return dump.pack(DUMP_KIND, DUMP_VERSION, meta, arrays)

    @classmethod
    def load(cls, data: bytes | memoryview) -> Postings:
        """What ``dump`` wrote. Raises CorruptionError when ``data`` is anything else."""
        meta, arrays = dump.unpack(DUMP_KIND, DUMP_VERSION, data)
        postings = cls()
        try:
            postings._home, postings.lengths = arrays["home"].copy(), arrays["lengths"].copy()
            if (
                len(postings._home) != len(postings.lengths)
                or postings._home.dtype != np.uint8
                or postings.lengths.dtype != np.int32
            ):
                raise ValueError("homes and lengths do not match")
            held = np.bincount(postings._home, minlength=256)
            for home, documents in meta["segments"]:
                prefix = f"{home}."
                part = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
                segment = Segment.restored(documents, part)
                if int(segment.slots.max(initial=0)) >= len(postings._home):
                    raise ValueError("a segment names a slot past the end")
                postings._segments[home], postings._live[home] = segment, int(held[home])
            # Documents without a single term have no segment: they stay at home in the tail.
            postings.documents = int(held.sum() - held[ABSENT])
            if postings.documents != sum(postings._live.values()) + int(held[TAIL]):
                raise ValueError("documents without a segment")
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise CorruptionError(f"the postings dump does not fit together: {error}") from error
        postings.total_length = int(postings.lengths.sum(dtype=np.int64))
        return postings


def _live_terms(segment: Segment, live: np.ndarray | None) -> np.ndarray:
    if live is None:
        return np.ones(len(segment.keys), dtype=bool)
    return np.logical_or.reduceat(live, segment.starts[:-1].astype(np.int64))
