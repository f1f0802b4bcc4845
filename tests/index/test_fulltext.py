"""The full-text view against a naive BM25 over the same rows, under any history."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dakera_cluster.index import postings as module
from dakera_cluster.index.analysis import folded, query_terms, spans, stem, terms
from dakera_cluster.index.fulltext import FullTextIndex
from dakera_cluster.index.query import Phrase, Prefix, QuerySyntax, Words, parse
from dakera_cluster.index.segment import hashes_of
from dakera_cluster.model.errors import CorruptionError
from dakera_cluster.native import postings

TEXT = (
    "adopt adoption adopting dog dogs cat river Riverside run running runner happy happily happiness university "
    "universal paris 2023 42 blue bluebird the of und straße café"
)
VOCABULARY = TEXT.split()
K1, B = 1.2, 0.75

texts = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
words = st.sampled_from(VOCABULARY)
queries = st.lists(
    st.one_of(
        words,
        words.map(lambda word: f"+{word}"),
        words.map(lambda word: f"-{word}"),
        st.lists(words, min_size=1, max_size=3).map(lambda found: '"' + " ".join(found) + '"'),
        st.lists(words, min_size=2, max_size=2).map(lambda found: '+"' + " ".join(found) + '"'),
        st.lists(words, min_size=2, max_size=2).map(lambda found: '-"' + " ".join(found) + '"'),
        st.sampled_from(
            ["ad*", "run*", "happ*", "happin*", "universi*", "runne*", "blu*", "+riv*", "-do*", "zzz*", "stra*"]
        ),
    ),
    min_size=1,
    max_size=5,
).map(" ".join)


class Naive:
    """BM25 as the formula says, over a dictionary of texts."""

    def __init__(self, rows: dict[int, str]) -> None:
        self.rows = rows
        self.documents = {slot: terms(text) for slot, text in rows.items()}
        self.average = sum(map(len, self.documents.values())) / max(1, len(rows))

    def idf(self, holding: int) -> float:
        return math.log(1 + (len(self.rows) - holding + 0.5) / (holding + 0.5))

    def score(self, slot: int, frequency: float, idf: float) -> float:
        length = len(self.documents[slot])
        return idf * frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length / (self.average or 1)))

    def holding(self, term: str) -> int:
        return sum(term in document for document in self.documents.values())

    def clause(self, clause: Any) -> dict[int, float]:
        found: dict[int, float] = {}
        if isinstance(clause, Words):
            for term, count in Counter(clause.terms).items():
                idf = self.idf(self.holding(term)) * count
                for slot, document in self.documents.items():
                    if term in document:
                        found[slot] = found.get(slot, 0) + self.score(slot, document.count(term), idf)
            return found
        if isinstance(clause, Phrase):
            width = len(clause.terms)
            idf = sum(self.idf(self.holding(term)) for term in set(clause.terms))
            for slot, document in self.documents.items():
                times = sum(tuple(document[at : at + width]) == clause.terms for at in range(len(document)))
                if times:
                    found[slot] = self.score(slot, times, idf)
            return found
        times_by_slot = {slot: self.prefixed(slot, clause.text) for slot in self.rows}
        stems = {clause.text[:length] for length in range(max(3, len(clause.text) - 4), len(clause.text))}
        stems.add(stem(clause.text))
        holding = sum(
            any(term.startswith(clause.text) or term in stems for term in document)
            for document in self.documents.values()
        )
        return {slot: self.score(slot, n, self.idf(holding)) for slot, n in times_by_slot.items() if n}

    def prefixed(self, slot: int, prefix: str) -> int:
        """Words of the document that a prefix stands for: by their stem, else by their spelling."""
        stems = sum(term.startswith(prefix) for term in self.documents[slot])
        return stems or sum(folded(token).startswith(prefix) for token, _, _ in spans(self.rows[slot]))

    def search(self, text: str, allowed: set[int] | None) -> dict[int, float]:
        query = parse(text)
        optional = [self.clause(clause) for clause in query.optional]
        required = [self.clause(clause) for clause in query.required]
        excluded = [self.clause(clause) for clause in query.excluded]
        result = {}
        for slot in self.rows:
            if allowed is not None and slot not in allowed:
                continue
            if any(slot in hits for hits in excluded) or not all(slot in hits for hits in required):
                continue
            if required or any(slot in hits for hits in optional):
                result[slot] = sum(hits.get(slot, 0) for hits in (*required, *optional))
        return result


def check(index: FullTextIndex, rows: dict[int, str], query: str, k: int, allowed: np.ndarray | None) -> None:
    permitted = None if allowed is None else {slot for slot in rows if slot < len(allowed) and allowed[slot]}
    expected = Naive(rows).search(query, permitted)
    slots, scores = index.search(query, k, allowed)
    assert len(slots) == min(k, len(expected)), query
    np.testing.assert_allclose(scores, [expected[slot] for slot in slots.tolist()], rtol=1e-5)
    assert [(-score, slot) for slot, score in zip(slots, scores, strict=True)] == sorted(
        (-score, slot) for slot, score in zip(slots, scores, strict=True)
    )
    left_out = [score for slot, score in expected.items() if slot not in set(slots.tolist())]
    assert max(left_out, default=0) <= min(scores, default=np.inf) * (1 + 1e-5)


class FullTextMachine(RuleBasedStateMachine):
    """Random histories with a tail of a few documents, so that sealing and merging happen all the time."""

    @initialize()
    def start(self) -> None:
        self.rows: dict[int, str] = {}
        self.index = FullTextIndex(K1, B, self.rows.get)

    @rule(slot=st.integers(0, 40), text=texts)
    def add(self, slot: int, text: str) -> None:
        self.index.add(slot, text)
        self.rows[slot] = text

    @rule(pairs=st.lists(st.tuples(st.integers(0, 40), texts), max_size=20))
    def add_many(self, pairs: list[tuple[int, str]]) -> None:
        self.index.add_many([slot for slot, _ in pairs], [text for _, text in pairs])
        self.rows.update(pairs)

    @rule(slot=st.integers(0, 45))
    def remove(self, slot: int) -> None:
        assert self.index.remove(slot) is (self.rows.pop(slot, None) is not None)

    @rule()
    def maintain(self) -> None:
        self.index.maintenance()

    @rule()
    def compact(self) -> None:
        self.index.compact()

    @rule(
        late=st.lists(st.tuples(st.integers(0, 40), texts), max_size=12), gone=st.lists(st.integers(0, 40), max_size=5)
    )
    def compact_in_the_background(self, late: list[tuple[int, str]], gone: list[int]) -> None:
        plan = self.index.compaction()
        self.add_many(late)
        for slot in gone:
            self.remove(slot)
        if plan is not None:
            self.index.install(plan.run())

    @rule()
    def reload(self) -> None:
        self.index = FullTextIndex.load(self.index.dump(), K1, B, self.rows.get)

    @rule(query=queries, k=st.integers(1, 20), share=st.sampled_from([None, 0.0, 0.3, 0.8]), seed=st.integers(0, 99))
    def search(self, query: str, k: int, share: float | None, seed: int) -> None:
        allowed = None if share is None else np.random.default_rng(seed).random(35) < share
        check(self.index, self.rows, query, k, allowed)

    @rule(query=texts)
    def score(self, query: str) -> None:
        expected = Naive(self.rows).clause(Words(tuple(query_terms(query))))
        slots = np.array([*range(50), -1, 3, 3])
        scores = self.index.scores(query, slots)
        np.testing.assert_allclose(scores, [expected.get(slot, 0.0) for slot in slots.tolist()], rtol=1e-5)

    @invariant()
    def counts_are_exact(self) -> None:
        if not hasattr(self, "index"):
            return
        naive = Naive(self.rows)
        stats = self.index.stats()
        assert len(self.index) == stats.documents == len(self.rows)
        assert stats.unique_terms == len({term for document in naive.documents.values() for term in document})
        assert stats.average_length == pytest.approx(naive.average)
        assert [slot in self.index for slot in range(45)] == [slot in self.rows for slot in range(45)]
        lengths = self.index.doc_lengths
        assert all(lengths[slot] == len(document) for slot, document in naive.documents.items())
        terms = ("adopt", "run", "2023", "nothing")
        assert self.index.lists.lengths.tolist() == lengths.tolist()
        every, counts, ends = postings.of(self.index.lists, hashes_of(terms))
        assert (every.dtype, counts.dtype, ends.tolist()[-1]) == (np.int32, np.uint16, len(every))
        for place, term in enumerate(terms):
            part = slice(int(ends[place - 1]) if place else 0, int(ends[place]))
            slots, frequencies = every[part], counts[part]
            holding = {slot: document.count(term) for slot, document in naive.documents.items() if term in document}
            assert dict(zip(slots.tolist(), frequencies.tolist(), strict=True)) == holding


FullTextMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def small_bounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_TAIL_POSTINGS", 12)
        patch.setattr(module, "INLINE_MERGE_POSTINGS", 60)
        patch.setattr(module, "MAX_SEGMENTS", 6)
        yield


class TestFullTextMachine(FullTextMachine.TestCase):  # type: ignore[misc, name-defined]
    """The machine under the small bounds of the fixture."""


@given(st.dictionaries(st.integers(0, 20), texts, max_size=15), queries)
@settings(max_examples=150, deadline=None)
def test_query_language_means_what_the_naive_evaluator_says(rows: dict[int, str], query: str) -> None:
    index = FullTextIndex(K1, B, rows.get)
    index.add_many(rows.keys(), rows.values())
    check(index, rows, query, 30, None)


def test_document_is_found_as_soon_as_it_is_added_and_not_after_removal() -> None:
    index = FullTextIndex()
    for slot in range(300):
        index.add(slot, f"memory number{slot} about dogs")
        assert index.search(f"number{slot}", 1)[0].tolist() == [slot]
    index.remove(7)
    assert index.search("number7", 1)[0].tolist() == []
    index.add(8, "something else")
    assert index.search("number8", 1)[0].tolist() == []
    assert index.search("else", 5)[0].tolist() == [8]


def test_equal_documents_tie_and_come_in_slot_order() -> None:
    index = FullTextIndex()
    for slot in (9, 3, 200, 40, 5):
        index.add(slot, "the same words")
    slots, scores = index.search("same words", 3)
    assert slots.tolist() == [3, 5, 9] and len(set(scores.tolist())) == 1


def test_scores_do_not_depend_on_the_history() -> None:
    rows = {slot: " ".join(VOCABULARY[(slot * step) % len(VOCABULARY)] for step in range(1, 9)) for slot in range(80)}
    straight, twisted = FullTextIndex(), FullTextIndex()
    straight.add_many(rows.keys(), rows.values())
    straight.compact()
    for slot in range(200, 300):
        twisted.add(slot, "noise about dogs and adoption in paris")
    for slot in reversed(rows):
        twisted.add(slot, "a first version to be replaced")
        twisted.add(slot, rows[slot])
    for slot in range(200, 300):
        twisted.remove(slot)
    for query in ("dog adoption paris", "running universities 2023", "café blue"):
        for one, other in zip(straight.search(query, 50), twisted.search(query, 50), strict=True):
            np.testing.assert_array_equal(one, other)


def test_plain_syntax_reads_operators_as_text() -> None:
    index = FullTextIndex()
    index.add_many([0, 1], ["a dog ran", "a cat slept"])
    assert index.search("-dog cat", 5)[0].tolist() == [1]
    assert index.search("-dog cat", 5, syntax=QuerySyntax.PLAIN)[0].tolist() == [0, 1]


def test_phrase_without_texts_means_all_of_its_words() -> None:
    index = FullTextIndex()
    index.add_many([0, 1, 2], ["blue dog", "dog blue", "blue"])
    assert sorted(index.search('"blue dog"', 5)[0].tolist()) == [0, 1]


def test_phrase_reads_no_more_texts_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dakera_cluster.index.fulltext.MAX_VERIFIED_DOCUMENTS", 20)
    read: list[int] = []
    index = FullTextIndex(text_of=lambda slot: read.append(slot) or "blue dog")
    index.add_many(range(100), ["blue dog"] * 100)
    assert len(index.search('"blue dog"', 50)[0]) == 20
    assert read == list(range(20))


def test_frequencies_saturate_instead_of_wrapping() -> None:
    index = FullTextIndex()
    index.add(0, "dog " * 70_000)
    index.compact()
    assert postings.of(index.lists, hashes_of(["dog"]))[1].tolist() == [65_535]
    assert index.doc_lengths[0] == 70_000


def test_long_slots_and_terms_survive_sealing_and_loading() -> None:
    index = FullTextIndex()
    index.add_many([1, 70_000, 3_000_000], ["x" * 300, "学校 école dogs", "dogs " * 300])
    index.compact()
    loaded = FullTextIndex.load(index.dump())
    assert loaded.search("dogs", 5)[0].tolist() == index.search("dogs", 5)[0].tolist()
    assert sorted(loaded.search("dogs 学", 5)[0].tolist()) == [70_000, 3_000_000]
    assert loaded.search("x" * 300, 5)[0].tolist() == [1]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_dump_is_refused_or_harmless(data: st.DataObject) -> None:
    index = FullTextIndex()
    index.add_many(range(6), ["a dog ran", "cats and dogs", "", "blue river", "paris 2023", "dog dog"])
    blob = bytearray(index.dump())
    damage = data.draw(st.sampled_from(["cut", "longer", "flip"]))
    if damage == "cut":
        del blob[data.draw(st.integers(0, len(blob) - 1)) :]
    elif damage == "longer":
        blob += b"\0"
    else:
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        loaded = FullTextIndex.load(bytes(blob))
    except CorruptionError:
        return
    assert damage == "flip", "only a flip may pass: finding it is the business of the owner's checksum"
    loaded.search("dog river ca*", 10)


def test_a_dump_whose_terms_are_no_text_is_refused() -> None:
    index = FullTextIndex()
    index.add_many(range(6), ["a dog ran", "cats and dogs", "", "blue river", "paris 2023", "dog dog"])
    blob = bytearray(index.dump())
    blob[blob.index(b"blue")] = 0xFF
    with pytest.raises(CorruptionError):
        FullTextIndex.load(bytes(blob))


def test_parts_of_a_dump_do_not_follow_later_writes() -> None:
    index = FullTextIndex()
    index.add_many(range(20), ["a dog ran"] * 20)
    before = index.dump()
    parts = index.dump_parts()
    index.remove(3)
    index.add_many(range(10, 40), ["cats"] * 30)
    assert b"".join(parts) == before


def test_dump_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = FullTextIndex().dump()
    monkeypatch.setattr(module, "DUMP_VERSION", 99)
    with pytest.raises(CorruptionError, match="v99"):
        FullTextIndex.load(blob)


def test_prefix_takes_the_most_frequent_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dakera_cluster.index.fulltext.MAX_PREFIX_TERMS", 2)
    index = FullTextIndex()
    index.add_many(range(6), ["prea", "preb", "preb", "prec", "prec", "pred"])
    assert sorted(index.search("pre*", 10)[0].tolist()) == [1, 2, 3, 4]


def test_prefix_clause_is_parsed_folded() -> None:
    assert parse("CAFÉ*").optional == (Prefix("cafe"),)
