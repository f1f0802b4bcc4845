"""Highlights mark exactly the words the index would have found."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.index.analysis import query_terms, terms
from dakera_cluster.index.highlight import FRAGMENT_CHARS, highlights

STORY = (
    "Caroline went to the support group yesterday. "
    + "It was a long walk. " * 30
    + "She adopted a dog & named it Rex. "
    "Adoption agencies helped Caroline, adopting is hard."
)


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("She adopted a dog", "adoption", ["She <em>adopted</em> a dog"]),
        ("café Olé", "CAFE", ["<em>café</em> Olé"]),
        ("黒い猫が寝る", "猫", ["黒い<em>猫</em>が寝る"]),
        ("O'Brien's dog", "obrien", ["<em>O'Brien's</em> dog"]),
        ("a < b & dogs", "dog", ["a < b & <em>dogs</em>"]),
        ("bluebird and blue sky", "blueb*", ["<em>bluebird</em> and blue sky"]),
        ("cat and dog", "+cat -dog", ["<em>cat</em> and dog"]),
        ("the blue bird", '"blue bird"', ["the <em>blue</em> <em>bird</em>"]),
        ("nothing here", "dog", []),
        ("", "dog", []),
        ("dog", "", []),
        ("dog", "-dog", []),
    ],
)
def test_marks(text: str, query: str, expected: list[str]) -> None:
    assert highlights(text, query) == expected


def test_best_fragments_come_in_the_order_of_the_text() -> None:
    found = highlights(STORY, "adopted Caroline")
    assert len(found) == 2
    assert "<em>Caroline</em> went" in found[0]
    assert "<em>adopted</em>" in found[1] and "<em>Adoption</em>" in found[1]
    assert highlights(STORY, "adopted Caroline", 1) == [found[1]]
    assert highlights(STORY, "adopted Caroline", 0) == []


def test_marks_can_be_chosen() -> None:
    assert highlights("a dog", "dog", marks=("[", "]")) == ["a [dog]"]


@given(st.text("dogs cat黒猫éD.,-'\n", max_size=200), st.sampled_from(["dog", "cats", "猫", "dog cat", "'"]))
def test_fragments_are_extracts_and_something_is_marked_when_a_term_matches(text: str, query: str) -> None:
    found = highlights(text, query)
    for fragment in found:
        assert "<em>" in fragment
        assert re.sub("</?em>", "", fragment) in text
        assert len(re.sub("</?em>", "", fragment)) <= 2 * FRAGMENT_CHARS
    longest = max((len(word) for word in text.split()), default=0)
    if longest < FRAGMENT_CHARS:
        assert bool(found) is bool(set(query_terms(query)) & set(terms(text)))


def test_same_input_gives_the_same_fragments() -> None:
    text = "dog one. " + "filler words here. " * 20
    assert len({tuple(highlights(text * 6, "dog", 2)) for _ in range(5)}) == 1
    assert highlights(text * 6, "dog", 2)[0].startswith("<em>dog</em>")
