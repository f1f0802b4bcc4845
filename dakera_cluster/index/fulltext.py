"""The full-text view of a namespace partition: BM25 over compact postings, visible as soon as it is written.

Score (Robertson and Zaragoza, 2009; the idf is Lucene's, always positive), summed over the query's terms::

    ln(1 + (N - df + 0.5) / (df + 0.5)) * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / average length))

Every quantity counts live documents only and is exact at any time, and the sum runs in the query's term order, so equal
rows score equally on every replica whatever happened before. Ties are broken by slot.

Phrases are verified against the text (``text_of``), best candidates first, instead of storing positions: phrases are
rare, positions would double the index. Without ``text_of`` a phrase means all of its terms. A prefix is matched
against the stemmed terms; where only the stem of a longer word could match, the text decides again.

Called by the shard (writes, search) and by retrieval (terms, postings, lengths). Not thread-safe: the owner locks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from dakera_cluster.index.analysis import folded, query_terms, spans, stem, terms
from dakera_cluster.index.arrays import allows, best
from dakera_cluster.index.postings import Compaction, Postings
from dakera_cluster.index.query import Clause, Phrase, Prefix, Query, QuerySyntax, Words, parse
from dakera_cluster.index.segment import hashes_of
from dakera_cluster.native.postings import Lists

DEFAULT_K1 = 1.2
DEFAULT_B = 0.75
MAX_PREFIX_TERMS = 128
"""Terms a prefix stands for: the most frequent ones."""
MIN_PREFIX_STEM_CHARS = 3
PREFIX_STEM_GAP_CHARS = 4
"""How many characters longer than an indexed stem a prefix may be (universi* against univers)."""
MAX_VERIFIED_DOCUMENTS = 10_000
"""Documents whose text one phrase or prefix may read."""


class FullTextStats(msgspec.Struct, frozen=True):
    """Counts of live documents; ``average_length`` in terms a document."""

    documents: int
    unique_terms: int
    average_length: float
    memory_bytes: int


class FullTextIndex:
    """BM25 over one namespace partition by slot; see the module."""

    __slots__ = ("_postings", "b", "k1", "text_of")

    def __init__(
        self,
        k1: float = DEFAULT_K1,
        b: float = DEFAULT_B,
        text_of: Callable[[int], str | None] | None = None,
    ) -> None:
        self.k1 = k1
        self.b = b
        self.text_of = text_of
        self._postings = Postings()

    def __len__(self) -> int:
        return self._postings.documents

    def __contains__(self, slot: int) -> bool:
        return slot in self._postings

    @property
    def average_length(self) -> float:
        """Terms a document, 0 when there is none."""
        return self._postings.average_length

    @property
    def doc_lengths(self) -> np.ndarray:
        """int32 by slot: terms of the document, 0 where there is none. A view: copy it to keep it."""
        return self._postings.lengths

    @property
    def memory_bytes(self) -> int:
        """Bytes this view holds."""
        return self._postings.nbytes

    @property
    def segments(self) -> int:
        """Sealed segments: each costs a lookup some microseconds."""
        return self._postings.segments

    def stats(self) -> FullTextStats:
        """Counts for the stats route; counting distinct terms reads the term lists."""
        return FullTextStats(len(self), self._postings.unique_terms(), self.average_length, self.memory_bytes)

    def add(self, slot: int, text: str) -> None:
        """Index ``text`` at ``slot``, replacing what was there."""
        self.add_many([slot], [text])

    def add_many(self, slots: Iterable[int], texts: Iterable[str]) -> None:
        """``add`` for every pair; of two at one slot the later stays."""
        found = {int(slot): terms(text) for slot, text in zip(slots, texts, strict=True)}
        counts = [Counter(words) for words in found.values()]
        self._postings.add_many(list(found), counts, [len(words) for words in found.values()])

    def remove(self, slot: int) -> bool:
        """Forget ``slot``; False when it holds nothing."""
        return self._postings.remove(slot)

    def terms(self, text: str) -> list[str]:
        """The terms ``text`` is indexed under, in order."""
        return terms(text)

    def query_terms(self, text: str) -> list[str]:
        """The terms a question asks for, in order."""
        return query_terms(text)

    @property
    def lists(self) -> Lists:
        """All postings, for kernels; good until the next change."""
        return self._postings.lists

    def idf(self, document_frequency: int) -> float:
        """The weight of a term found in that many of the live documents."""
        return math.log(1 + (len(self) - document_frequency + 0.5) / (document_frequency + 0.5))

    def search(
        self,
        query: str,
        k: int,
        allowed: np.ndarray | None = None,
        *,
        syntax: QuerySyntax = QuerySyntax.OPERATORS,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best documents: ``(slots int64[m], scores float32[m])``, by score, then slot.

        ``allowed`` is a bool mask by slot; slots past its end are not allowed.
        """
        parsed = parse(query, syntax)
        if k <= 0 or len(self) == 0:
            slots, scores = _nothing()
        elif parsed.words_only:
            slots, scores = self._words(parsed.words, allowed)
        else:
            slots, scores = self._combined(parsed, allowed)
        slots, scores = best(scores.astype(np.float32), slots, k)
        return slots, scores

    def scores(self, query: str, slots: np.ndarray) -> np.ndarray:
        """float32[n]: the plain-text score of ``query`` at each of ``slots``, 0 where no term matches."""
        wanted = np.asarray(slots, dtype=np.int64)
        result = np.zeros(len(wanted), dtype=np.float32)
        allowed = np.zeros(len(self.doc_lengths), dtype=bool)
        inside = (wanted >= 0) & (wanted < len(allowed))
        allowed[wanted[inside]] = True
        found, scores = self._words(query_terms(query), allowed)
        by_slot = np.zeros(len(allowed), dtype=np.float32)
        by_slot[found] = scores
        result[inside] = by_slot[wanted[inside]]
        return result

    def _words(self, words: Sequence[str], allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Slots that hold any of ``words``, ascending, with their float64 scores."""
        counts = Counter(words)
        found = self._postings.lookup(hashes_of(list(counts)))
        groups = [
            (slots, frequencies, count * self.idf(len(slots)))
            for (slots, frequencies), count in zip(found, counts.values(), strict=True)
            if len(slots)
        ]
        return self._summed(groups, allowed)

    def _summed(
        self, groups: Sequence[tuple[np.ndarray, np.ndarray, float]], allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """BM25 over groups of (slots, frequencies, idf): a slot stands at most once in a group."""
        if not groups:
            return _nothing()
        slots = np.concatenate([slots for slots, _, _ in groups])
        frequencies = np.concatenate([frequencies for _, frequencies, _ in groups])
        weights = np.repeat([idf * (self.k1 + 1) for _, _, idf in groups], [len(slots) for slots, _, _ in groups])
        if allowed is not None:
            keep = allows(allowed, slots)
            slots, frequencies, weights = slots[keep], frequencies[keep], weights[keep]
        lengths = self.doc_lengths[slots]
        norms = self.k1 * (1 - self.b) + (self.k1 * self.b / (self.average_length or 1.0)) * lengths
        totals = np.bincount(slots, weights * frequencies / (frequencies + norms))
        # On floats, nonzero is several times slower than on the booleans of a comparison.
        hits = np.flatnonzero(totals > 0)
        return hits, totals[hits]

    def _combined(self, query: Query, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """A query with operators, over dense arrays by slot."""
        size = len(self.doc_lengths)
        totals = np.zeros(size)
        matching = self._postings.present()
        if allowed is not None:
            matching = matching & allows(allowed, np.arange(size))
        for clause in query.excluded:
            matching[self._clause(clause, matching)[0]] = False
        any_optional = np.zeros(size, dtype=bool)
        for clause in query.required:
            slots, scores = self._clause(clause, matching)
            met = np.zeros(size, dtype=bool)
            met[slots] = True
            matching &= met
            totals[slots] += scores
        for clause in query.optional:
            slots, scores = self._clause(clause, matching)
            any_optional[slots] = True
            totals[slots] += scores
        if not query.required:
            matching &= any_optional
        hits = np.flatnonzero(matching)
        return hits, totals[hits]

    def _clause(self, clause: Clause, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        match clause:
            case Words():
                return self._words(clause.terms, allowed)
            case Phrase():
                return self._phrase(clause, allowed)
            case Prefix():
                return self._prefix(clause, allowed)

    def _phrase(self, phrase: Phrase, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Documents that hold the phrase: it scores as one term whose idf is the sum of its terms'."""
        found = self._postings.lookup(hashes_of(list(dict.fromkeys(phrase.terms))))
        weight = sum(self.idf(len(slots)) for slots, _ in found)
        fewest = np.full(len(self.doc_lengths), np.iinfo(np.int64).max)
        holding = np.zeros(len(fewest), dtype=np.int64)
        for slots, frequencies in found:
            holding[slots] += 1
            fewest[slots] = np.minimum(fewest[slots], frequencies)
        slots = np.flatnonzero((holding == len(found)) & allowed)
        frequencies = fewest[slots]
        if self.text_of is not None:
            slots, frequencies = self._verified(
                slots, frequencies, lambda text: _occurrences(terms(text), phrase.terms)
            )
        return self._summed([(slots, frequencies, weight)], None) if len(slots) else _nothing()

    def _prefix(self, prefix: Prefix, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Documents that hold a word beginning with the prefix: the words score as one term.

        The idf counts every document the terms point to, verified or not, so that a score does not depend on the filter.
        """
        words = self._postings.terms_with_prefix(prefix.text, MAX_PREFIX_TERMS)
        counts = np.zeros(len(self.doc_lengths), dtype=np.int64)
        for slots, frequencies in self._postings.lookup(hashes_of(words)):
            counts[slots] += frequencies
        doubtful = np.zeros(len(counts), dtype=bool)
        if self.text_of is not None:
            shortest = max(MIN_PREFIX_STEM_CHARS, len(prefix.text) - PREFIX_STEM_GAP_CHARS)
            stems = {prefix.text[:length] for length in range(shortest, len(prefix.text))} | {stem(prefix.text)}
            for slots, _ in self._postings.lookup(hashes_of(sorted(stems.difference(words)))):
                doubtful[slots] = True
            doubtful &= counts == 0
        idf = self.idf(int(np.count_nonzero(counts) + np.count_nonzero(doubtful)))
        unsure = np.flatnonzero(doubtful & allowed)
        if len(unsure):
            found = self._verified(unsure, np.ones(len(unsure)), lambda text: _prefixed(text, prefix.text))
            counts[found[0]] = found[1]
        slots = np.flatnonzero(counts)
        return self._summed([(slots, counts[slots], idf)], allowed)

    def _verified(
        self, slots: np.ndarray, frequencies: np.ndarray, count_in: Callable[[str], int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The slots whose text really matches, with its count; the likeliest MAX_VERIFIED_DOCUMENTS are read."""
        assert self.text_of is not None
        if len(slots) > MAX_VERIFIED_DOCUMENTS:
            order = np.lexsort((slots, -(frequencies / (1 + self.doc_lengths[slots]))))
            slots = np.sort(slots[order[:MAX_VERIFIED_DOCUMENTS]])
        counts = np.fromiter(
            (count_in(self.text_of(slot) or "") for slot in slots.tolist()), dtype=np.int64, count=len(slots)
        )
        return slots[counts > 0], counts[counts > 0]

    def maintenance(self) -> bool:
        """Do the compaction most worth doing; False when none is. To keep the owner's lock short, use ``compaction``."""
        plan = self.compaction()
        return plan is not None and self.install(plan.run())

    def compaction(self) -> Compaction | None:
        """Plan a merge (under the lock); ``run`` it anywhere, then ``install`` it (under the lock)."""
        return self._postings.compaction()

    def install(self, compaction: Compaction) -> bool:
        """Put a finished compaction in place; False when it came too late to be of use."""
        return self._postings.install(compaction)

    def compact(self) -> None:
        """Merge everything into its smallest form at once."""
        self._postings.compact()

    def dump(self) -> bytes:
        """The view as bytes."""
        return b"".join(self.dump_parts())

    def dump_parts(self) -> list[bytes | memoryview]:
        """``dump`` in parts to be written one after the other, at any time: half the memory of ``dump``."""
        return self._postings.dump()

    @classmethod
    def load(
        cls,
        data: bytes | memoryview,
        k1: float = DEFAULT_K1,
        b: float = DEFAULT_B,
        text_of: Callable[[int], str | None] | None = None,
    ) -> FullTextIndex:
        """The view that ``dump`` wrote. Raises CorruptionError when ``data`` is anything else."""
        index = cls(k1, b, text_of)
        index._postings = Postings.load(data)
        return index


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, dtype=np.int64), np.zeros(0)


def _occurrences(words: Sequence[str], phrase: Sequence[str]) -> int:
    width, first = len(phrase), phrase[0]
    wanted = list(phrase)
    return sum(word == first and words[at : at + width] == wanted for at, word in enumerate(words))


def _prefixed(text: str, prefix: str) -> int:
    return sum(folded(token).startswith(prefix) for token, _, _ in spans(text))
