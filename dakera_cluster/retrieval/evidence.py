"""What the engine keeps beside a namespace's text and vectors: tokens, passages, traits and neighbours of each memory.

A view derived from rows like the others: it may be dropped and rebuilt at any time, and says the same on every replica that
holds the same rows, whatever order they came in. Not thread-safe: it lives in the namespace's lane.

RAM of a short memory (13 telling tokens): 650 bytes of tokens, about 250 of order, 20 of traits; long ones add the vectors
of their passages. Owned by the shard's NamespaceView, read by the steps of the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from dakera_cluster.index import dump
from dakera_cluster.index.arrays import grown
from dakera_cluster.index.vectors import VectorIndex
from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.model.memories import Field
from dakera_cluster.native.features import Traits
from dakera_cluster.native.windows import Talk
from dakera_cluster.retrieval.order import SessionOrder
from dakera_cluster.retrieval.speakers import SpeakerNames
from dakera_cluster.retrieval.temporal import head_time
from dakera_cluster.retrieval.tokens import TokenStore
from dakera_cluster.retrieval.traits import Role, Spoken, spoken, traits_of
from dakera_cluster.retrieval.writing import unpack_passages, unpack_tokens

NO_SPEAKER = -1
NO_OWNER = -1
MAX_WORDS = 65_535
DUMP_KIND = "evidence"
DUMP_VERSION = 2

_COLUMNS: dict[str, tuple[Any, Any]] = {
    "when": (np.float64, 0.0),
    "key": (np.uint64, 0),
    "words": (np.uint16, 0),
    "speaker": (np.int32, NO_SPEAKER),
    "role": (np.uint8, Role.PERSON),
    "about_self": (np.float32, 0.0),
    "has_time": (np.bool_, False),
    "has_number": (np.bool_, False),
    "asks": (np.bool_, False),
    "dated": (np.bool_, False),
}


class Evidence:
    """See the module. Columns are arrays by slot, at least as long as the largest slot put; read them by ``column``.

    ``when``: Unix seconds, the event time, else the date in the content's head, else the creation; ``dated`` is False in the
    last case. ``speaker``: index into ``speakers`` or NO_SPEAKER."""

    def __init__(self) -> None:
        self.tokens = TokenStore()
        self.order = SessionOrder()
        self.passages: VectorIndex | None = None
        self.speakers: list[str] = []
        self._speaker_codes: dict[str, int] = {}
        self._spoken: dict[int, int] = {}
        self._names: SpeakerNames | None = None
        self._talk: Talk | None = None
        self._traits: Traits | None = None
        self._columns: dict[str, np.ndarray] = {name: np.zeros(0, dtype) for name, (dtype, _) in _COLUMNS.items()}
        self._passage_owner: NDArray[np.int32] = np.zeros(0, np.int32)
        self._passages_of: dict[int, range] = {}
        self._next_passage = 0

    @property
    def memory_bytes(self) -> int:
        """Estimate of the resident memory."""
        columns = sum(column.nbytes for column in self._columns.values())
        passages = self.passages.memory_bytes if self.passages is not None else 0
        own = self.tokens.nbytes + self.order.nbytes + passages + self._passage_owner.nbytes
        return int(columns + own + 200 * len(self._passages_of))

    def put(self, slot: int, row_id: str, fields: Mapping[str, Any]) -> None:
        """Take in the fields of a live document. Fields that cannot be read (of a release to come) count as absent."""
        content = fields.get(Field.TEXT) or ""
        metadata = fields.get(Field.METADATA)
        said = spoken(content, metadata)
        traits = traits_of(said)
        self._unsay(slot)
        # Their arrays may be others when this is done.
        self._talk = self._traits = None
        when, dated = _when(said, fields)
        columns = self._columns
        if slot >= len(columns["key"]):
            for name, (_, fill) in _COLUMNS.items():
                columns[name] = grown(columns[name], slot + 1, fill)
        columns["when"][slot], columns["dated"][slot] = when, dated
        columns["key"][slot] = xxhash.xxh3_64_intdigest(row_id)
        columns["words"][slot] = min(traits.words, MAX_WORDS)
        columns["speaker"][slot] = code = self._speaker_code(traits.speaker)
        if code != NO_SPEAKER:
            self._say(code)
        columns["role"][slot] = traits.role
        columns["about_self"][slot] = traits.about_self
        columns["has_time"][slot], columns["has_number"][slot] = traits.has_time, traits.has_number
        columns["asks"][slot] = traits.asks
        self.order.put(slot, fields.get(Field.SESSION), when, row_id)
        self._put_tokens(slot, fields.get(Field.TOKENS))
        self._put_passages(slot, fields.get(Field.PASSAGES))

    def remove(self, slot: int) -> None:
        """Forget ``slot``."""
        self._unsay(slot)
        self.order.remove(slot)
        self.tokens.remove(slot)
        self._drop_passages(slot)

    def speaker_names(self) -> SpeakerNames:
        """The names of everybody who says something in a live memory, by code."""
        if self._names is None:
            self._names = SpeakerNames({code: self.speakers[code] for code in self._spoken})
        return self._names

    def keys(self, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A hash of each row id: what tells memories of equal score apart, the same on every replica."""
        return self.column("key", slots)

    def column(self, name: str, slots: NDArray[np.int64]) -> np.ndarray:
        """A column at ``slots``, all of which have been put."""
        return self._columns[name][slots]

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """The columns by name, each by slot; not to be changed."""
        return self._columns

    def whole_column(self, name: str) -> np.ndarray:
        """A column by slot, as long as it is; not to be changed."""
        return self._columns[name]

    @property
    def talk(self) -> Talk:
        """Who stands beside whom, and by what equals are told apart; good until the next change."""
        if self._talk is None:
            order, columns = self.order, self._columns
            self._talk = Talk(order.previous, order.next, columns["words"], columns["speaker"], columns["key"])
        return self._talk

    @property
    def traits(self) -> Traits:
        """What the words of memories say about them; good until the next change."""
        if self._traits is None:
            self._traits = Traits(self._columns)
        return self._traits

    @property
    def has_passages(self) -> bool:
        """Whether any memory is long."""
        return bool(self._passages_of)

    def passage_hits(
        self, query: NDArray[np.float32], k: int, allowed: np.ndarray | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The long memories whose passages are nearest: ``(slots, score of the best passage)``, each memory once."""
        if self.passages is None or not len(self.passages) or self.passages.dimension != len(query):
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        mask = None
        if allowed is not None:
            owners = self._passage_owner[: self._next_passage]
            mask = (owners >= 0) & (owners < len(allowed)) & allowed[np.clip(owners, 0, max(0, len(allowed) - 1))]
        # Memories have several passages among the nearest, and those that tie with the last one must all be there.
        fetch = 2 * k
        while True:
            found, scores = self.passages.search(query, fetch, mask)
            if len(scores) < fetch or scores[-1] < scores[k - 1]:
                break
            fetch *= 2
        owners, first = np.unique(self._passage_owner[found], return_index=True)
        return owners.astype(np.int64), scores[first]

    def passage_scores(self, query: NDArray[np.float32], slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score of the best passage of each slot, float32[n]; NaN where a slot has no passages of its own."""
        result = np.full(len(slots), np.nan, np.float32)
        if self.passages is None or not self._passages_of or self.passages.dimension != len(query):
            return result
        known = self._passages_of
        rows = [row for row, slot in enumerate(slots.tolist()) if slot in known]
        if rows:
            spans = [known[slot] for slot in slots[rows].tolist()]
            firsts = np.array([span.start for span in spans])
            counts = np.array([len(span) for span in spans])
            ends = np.cumsum(counts)
            every = np.repeat(firsts - (ends - counts), counts) + np.arange(int(ends[-1]))
            result[rows] = np.maximum.reduceat(self.passages.scores(query, every), ends - counts)
        return result

    def maintenance(self) -> bool:
        """One bounded step of background work (the passages' index); False when there is nothing to do."""
        return self.passages is not None and self.passages.maintenance()

    def dump(self) -> bytes:
        """The view as bytes."""
        return b"".join(self.dump_parts())

    def dump_parts(self) -> list[bytes | memoryview]:
        """``dump`` in parts, to be written before the view changes."""
        spans = [[slot, span.start, span.stop] for slot, span in sorted(self._passages_of.items())]
        keys = [[slot, *key] for slot, key in sorted(self.order.keys().items())]
        meta = {"speakers": self.speakers, "spans": spans, "next_passage": self._next_passage, "order": keys}
        arrays = {**self._columns, **self.tokens.dump(), "passage_owner": self._passage_owner}
        if self.passages is not None:
            arrays["passage_vectors"] = np.frombuffer(self.passages.dump(), dtype=np.uint8)
        return dump.pack(DUMP_KIND, DUMP_VERSION, meta, arrays)

    @classmethod
    def load(cls, data: bytes | memoryview) -> Evidence:
        """The view ``dump`` wrote. Raises CorruptionError when it is not whole."""
        meta, arrays = dump.unpack(DUMP_KIND, DUMP_VERSION, data)
        self = cls()
        try:
            self.speakers = list(meta["speakers"])
            self._columns = {name: arrays[name].astype(dtype) for name, (dtype, _) in _COLUMNS.items()}
            self.tokens = TokenStore.load(arrays)
            self._passage_owner = arrays["passage_owner"].copy()
            self._next_passage = int(meta["next_passage"])
            self._passages_of = {slot: range(start, stop) for slot, start, stop in meta["spans"]}
            for slot, session, when, row_id in meta["order"]:
                self.order.put(int(slot), session, float(when), row_id)
            if "passage_vectors" in arrays:
                self.passages = VectorIndex.load(arrays["passage_vectors"].tobytes())
        except (KeyError, ValueError, TypeError) as error:
            raise CorruptionError(f"{DUMP_KIND} dump does not hold together: {error}") from error
        self._speaker_codes = {name: code for code, name in enumerate(self.speakers)}
        codes, counts = np.unique(self._columns["speaker"], return_counts=True)
        self._spoken = {int(code): int(n) for code, n in zip(codes, counts, strict=True) if code != NO_SPEAKER}
        return self

    def _speaker_code(self, name: str | None) -> int:
        if name is None:
            return NO_SPEAKER
        code = self._speaker_codes.setdefault(name, len(self.speakers))
        if code == len(self.speakers):
            self.speakers.append(name)
        return code

    def _unsay(self, slot: int) -> None:
        """A name nobody live bears must not count: replicas differ in who was there before."""
        column = self._columns["speaker"]
        code = int(column[slot]) if slot < len(column) else NO_SPEAKER
        if code == NO_SPEAKER:
            return
        column[slot] = NO_SPEAKER
        self._spoken[code] -= 1
        if not self._spoken[code]:
            del self._spoken[code]
            self._names = None

    def _say(self, code: int) -> None:
        if code not in self._spoken:
            self._names = None
        self._spoken[code] = self._spoken.get(code, 0) + 1

    def _put_tokens(self, slot: int, data: bytes | None) -> None:
        if not data:
            self.tokens.remove(slot)
            return
        try:
            counts, ids, signs = unpack_tokens(data)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError):
            self.tokens.remove(slot)
            return
        self.tokens.put(slot, counts, ids, signs)

    def _put_passages(self, slot: int, data: bytes | None) -> None:
        self._drop_passages(slot)
        if not data:
            return
        try:
            vectors = unpack_passages(data)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError):
            return
        if self.passages is None:
            self.passages = VectorIndex(vectors.shape[1])
        if vectors.shape[1] != self.passages.dimension:
            return
        span = range(self._next_passage, self._next_passage + len(vectors))
        self._next_passage = span.stop
        self._passage_owner = grown(self._passage_owner, span.stop, NO_OWNER)
        self._passage_owner[span.start : span.stop] = slot
        self._passages_of[slot] = span
        self.passages.add(np.arange(span.start, span.stop), vectors)

    def _drop_passages(self, slot: int) -> None:
        span = self._passages_of.pop(slot, None)
        if span is not None and self.passages is not None:
            self.passages.remove(np.arange(span.start, span.stop))
            self._passage_owner[span.start : span.stop] = NO_OWNER


def _when(said: Spoken, fields: Mapping[str, Any]) -> tuple[float, bool]:
    event = fields.get(Field.EVENT_TIME)
    if event is not None:
        return float(event), True
    seconds = head_time(said.head_date) if said.head_date is not None else None
    if seconds is not None:
        return seconds, True
    return float(fields.get(Field.CREATED) or 0), False
