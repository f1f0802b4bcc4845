"""The query language: what is an operator and, more often, what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.index.query import MAX_QUERY_TERMS, Phrase, Prefix, Query, QuerySyntax, Words, parse


def words(*terms: str) -> Words:
    return Words(terms)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adopting dogs", Query((words("adopt", "dog"),))),
        ("dog dog", Query((words("dog", "dog"),))),
        ("What did the dog do?", Query((words("dog"),))),
        ('"support group"', Query((Phrase(("support", "group")),))),
        ('say "the support group", please', Query((words("say", "pleas"), Phrase(("support", "group"))))),
        ('"dogs"', Query((words("dog"),))),
        ("\u201csupport group\u201d", Query((Phrase(("support", "group")),))),
        ('"unclosed quote', Query((words("unclos", "quot"),))),
        ('""', Query()),
        ('"the of"', Query()),
        ("+dog cat", Query((words("cat"),), (words("dog"),))),
        ("dog -cat", Query((words("dog"),), (), (words("cat"),))),
        ("-cat", Query((), (), (words("cat"),))),
        ('+dog -"blue cat" +blu*', Query((), (words("dog"), Prefix("blu")), (Phrase(("blue", "cat")),))),
        ("+state-of-the-art", Query((), (Phrase(("state", "art")),))),
        ("well-known state-of-the-art", Query((words("well", "known", "state", "art"),))),
        ("a - b + c", Query((words("b", "c"),))),
        ("- item one\n- item two", Query((words("item", "one", "item", "two"),))),
        ("--flag ++i c++ f-", Query((words("flag", "c", "f"),))),
        ("ado*", Query((Prefix("ado"),))),
        ("foo,ba*", Query((words("foo"), Prefix("ba")))),
        ("2 * 3 a*b *x", Query((words("2", "3", "b", "x"),))),
        (
            "field:value (dog OR cat) [x TO y] {z}^2 ~",
            Query((words("field", "valu", "dog", "cat", "x", "y", "z", "2"),)),
        ),
        ("+the dog", Query((words("dog"),))),
        ("", Query()),
    ],
)
def test_reading(text: str, expected: Query) -> None:
    assert parse(text) == expected


def test_plain_syntax_knows_no_operators() -> None:
    assert parse('+dog -cat "blue bird" ado*', QuerySyntax.PLAIN) == Query(
        (words("dog", "cat", "blue", "bird", "ado"),)
    )


@given(st.text('ab +-*"\u201c(){}[]:^~\\/&|!?<>\n\t é猫', max_size=40))
def test_nothing_raises(text: str) -> None:
    query = parse(text)
    for clause in (*query.optional, *query.required, *query.excluded):
        assert clause.text if isinstance(clause, Prefix) else clause.terms


def test_length_is_bounded() -> None:
    (clause,) = parse(" ".join(f"w{number}" for number in range(2_500))).optional
    assert isinstance(clause, Words) and len(clause.terms) == MAX_QUERY_TERMS
    (clause,) = parse('"' + " ".join(f"w{number}" for number in range(2_000)) + '"').optional
    assert isinstance(clause, Phrase) and len(clause.terms) == MAX_QUERY_TERMS
