"""The query language of full-text search: words, ``"a phrase"``, ``+required``, ``-excluded``, ``prefix*``.

Whoosh's parser reads it, restricted to these operators: field names, brackets, ranges and AND/OR/NOT mean nothing here,
because queries are mostly sentences people or agents wrote. A sign counts only at the start of a word (``well-known`` is
two words), a quote that is never closed is ignored. Words alone are optional: a document matches when it holds any of
them, unless something is required. A query of exclusions only matches nothing.

Called by fulltext.py and highlight.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

import msgspec
from whoosh import query as whoosh_query
from whoosh.qparser import OrGroup, QueryParser, plugins

from dakera_cluster.index.analysis import folded, query_terms, spans, terms

MAX_QUERY_CHARS = 16_384
"""Longer queries are cut: nothing after this many characters changes what is meant."""
MAX_QUERY_TERMS = 1_024
"""Distinct terms a query may ask for; the first ones count."""

_OPERATORS = re.compile(r'"|(?<!\S)[+-](?=[^\s+-])|\w\*(?!\S)')
_SIGN = r"(?<!\S)\{}(?=[^\s+-])"
_QUOTES = str.maketrans("\u201c\u201d\u201e\u00ab\u00bb", '"""""')


class QuerySyntax(Enum):
    """PLAIN reads every character as text; OPERATORS understands the query language."""

    PLAIN = "plain"
    OPERATORS = "operators"


class Words(msgspec.Struct, frozen=True):
    """Any of these terms, each for its own score; repeats count."""

    terms: tuple[str, ...]


class Phrase(msgspec.Struct, frozen=True):
    """These terms, next to each other and in this order."""

    terms: tuple[str, ...]


class Prefix(msgspec.Struct, frozen=True):
    """Any word that begins with ``text`` (folded, not stemmed)."""

    text: str


Clause = Words | Phrase | Prefix


class Query(msgspec.Struct, frozen=True):
    """A document matches when it meets every required clause and no excluded one, and, where nothing is required, at
    least one optional clause. Required and optional clauses add up to the score."""

    optional: tuple[Clause, ...] = ()
    required: tuple[Clause, ...] = ()
    excluded: tuple[Clause, ...] = ()

    @property
    def words_only(self) -> bool:
        """Whether the query is nothing but optional words."""
        return not self.required and not self.excluded and all(isinstance(clause, Words) for clause in self.optional)

    @property
    def words(self) -> list[str]:
        """The terms of the optional words."""
        return [term for clause in self.optional if isinstance(clause, Words) for term in clause.terms]


class _Role(Enum):
    OPTIONAL = "optional"
    REQUIRED = "required"
    EXCLUDED = "excluded"


def parse(text: str, syntax: QuerySyntax = QuerySyntax.OPERATORS) -> Query:
    """Read ``text``; never raises: whatever is not an operator is a word."""
    text = text[:MAX_QUERY_CHARS].translate(_QUOTES)
    if syntax is QuerySyntax.PLAIN or not _OPERATORS.search(text):
        return Query(optional=_words(query_terms(text)))
    clauses: dict[_Role, list[Clause]] = {role: [] for role in _Role}
    loose: list[str] = []
    for leaf, role in _leaves(_parser().parse(text, normalize=False), _Role.OPTIONAL):
        if isinstance(leaf, whoosh_query.Phrase):
            clauses[role].extend(_phrase(" ".join(leaf.words)))
        elif isinstance(leaf, whoosh_query.Prefix):
            clauses[role].extend(_prefix(leaf.text))
        elif role is _Role.OPTIONAL:
            loose.append(leaf.text)
        else:
            # One word to the user may be several terms (+state-of-the-art): they are meant together.
            clauses[role].extend(_phrase(leaf.text))
    optional = (*_words(query_terms(" ".join(loose))), *clauses[_Role.OPTIONAL])
    return Query(optional, tuple(clauses[_Role.REQUIRED]), tuple(clauses[_Role.EXCLUDED]))


def _leaves(node: Any, role: _Role) -> Iterator[tuple[Any, _Role]]:
    """The terms, phrases and prefixes of Whoosh's tree, with the role their place in it gives them."""
    if isinstance(node, whoosh_query.AndNot):
        yield from _leaves(node.a, role)
        yield from _leaves(node.b, _Role.EXCLUDED)
    elif isinstance(node, whoosh_query.AndMaybe):
        yield from _leaves(node.a, _Role.REQUIRED)
        yield from _leaves(node.b, role)
    elif isinstance(node, (whoosh_query.Or, whoosh_query.And)):
        for child in node:
            yield from _leaves(child, role)
    elif isinstance(node, (whoosh_query.Term, whoosh_query.Phrase, whoosh_query.Prefix)):
        yield node, role


def _words(found: list[str]) -> tuple[Clause, ...]:
    if not found:
        return ()
    distinct = frozenset(list(dict.fromkeys(found))[:MAX_QUERY_TERMS])
    return (Words(tuple(term for term in found if term in distinct)),)


def _phrase(text: str) -> tuple[Clause, ...]:
    found = tuple(terms(text))[:MAX_QUERY_TERMS]
    if len(found) > 1:
        return (Phrase(found),)
    return (Words(found),) if found else ()


def _prefix(text: str) -> tuple[Clause, ...]:
    tokens = [token for token, _, _ in spans(text)]
    if not tokens:
        return ()
    return (*_phrase(" ".join(tokens[:-1])), Prefix(folded(tokens[-1])))


class _WordPrefixPlugin(plugins.PrefixPlugin):  # type: ignore[misc]
    """Whoosh's own expression would swallow the sign of ``+pre*``."""

    expr = r"(?P<text>(?![+-])[^\s*]+)[*](?=\s|$)"


@cache
def _parser() -> QueryParser:
    operators = [
        plugins.WhitespacePlugin(),
        plugins.PhrasePlugin(),
        _WordPrefixPlugin(),
        plugins.PlusMinusPlugin(_SIGN.format("+"), _SIGN.format("-")),
    ]
    return QueryParser("text", None, plugins=operators, group=OrGroup)
