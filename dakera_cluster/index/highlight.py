"""Fragments of a text with the words a query matched marked in them.

Whoosh cuts and scores the fragments; the analyzer it runs on yields this package's terms, so a word is marked exactly
when the index would have found it (stems, folded accents, single characters of unspaced scripts). Words that the query
excludes are never marked. Works on the text alone: the caller passes the few documents it is about to return.

Called by the shard when a full-text answer asks for highlights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from whoosh.analysis import Token
from whoosh.highlight import BasicFragmentScorer, ContextFragmenter, Formatter, get_text

from dakera_cluster.index.analysis import folded, spans, token_terms
from dakera_cluster.index.query import Prefix, QuerySyntax, parse

FRAGMENT_CHARS = 200
CONTEXT_CHARS = 40
MAX_SCANNED_CHARS = 32_768
"""Only the beginning of a longer text is searched for fragments."""
DEFAULT_FRAGMENTS = 3


def highlights(
    text: str,
    query: str,
    max_fragments: int = DEFAULT_FRAGMENTS,
    *,
    syntax: QuerySyntax = QuerySyntax.OPERATORS,
    marks: tuple[str, str] = ("<em>", "</em>"),
) -> list[str]:
    """At most ``max_fragments`` extracts in the order of the text, the best ones; empty when no word matches.

    The text is not escaped: a caller that renders HTML must escape it first.
    """
    parsed = parse(query, syntax)
    wanted: set[str] = set()
    prefixes: list[str] = []
    for clause in (*parsed.optional, *parsed.required):
        if isinstance(clause, Prefix):
            prefixes.append(clause.text)
        else:
            wanted.update(clause.terms)
    tokens = _tokens(text[:MAX_SCANNED_CHARS], wanted, tuple(prefixes))
    fragmenter = ContextFragmenter(FRAGMENT_CHARS, CONTEXT_CHARS, charlimit=None)
    fragments = [fragment for fragment in fragmenter.fragment_tokens(text, tokens) if fragment.matches]
    score = BasicFragmentScorer()
    fragments.sort(key=lambda fragment: (-score(fragment), fragment.startchar))
    formatter = _Marker(*marks)
    chosen = sorted(fragments[:max_fragments], key=lambda fragment: fragment.startchar)
    return [formatter.format_fragment(fragment) for fragment in chosen]


def _tokens(text: str, wanted: set[str], prefixes: tuple[str, ...]) -> Iterator[Token]:
    """Whoosh tokens of ``text``; Whoosh reuses one object and copies what it keeps, so do we."""
    token = Token(positions=True, chars=True, boost=1.0)
    for position, (raw, start, end) in enumerate(spans(text)):
        found = token_terms(raw)
        hits = wanted.intersection(found)
        matched = bool(hits) or (bool(prefixes) and folded(raw).startswith(prefixes))
        token.pos = position
        if len(found) > 1 and hits and len(raw) == _width(found):
            # A run of an unspaced script: mark the characters asked for, not the whole run.
            for offset, char in enumerate(raw):
                around = {char, raw[offset : offset + 2], raw[max(0, offset - 1) : offset + 1]}
                yield _set(token, char, start + offset, start + offset + 1, not wanted.isdisjoint(around))
        else:
            yield _set(token, min(hits, default=raw), start, end, matched)


def _set(token: Token, text: str, start: int, end: int, matched: bool) -> Token:
    token.text, token.startchar, token.endchar, token.matched = text, start, end, matched
    return token


def _width(grams: tuple[str, ...]) -> int:
    """Characters of the run that ``grams`` (its characters and pairs) came from."""
    return sum(len(gram) == 1 for gram in grams)


class _Marker(Formatter):  # type: ignore[misc]
    """Puts a mark before and after every matched token."""

    def __init__(self, before: str, after: str) -> None:
        self.before = before
        self.after = after

    def format_token(self, text: str, token: Any, replace: bool = False) -> str:
        return f"{self.before}{get_text(text, token, replace)}{self.after}"
