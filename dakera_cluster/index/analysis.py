"""From text to terms: tokenise, fold, drop stop words, stem. The same for documents and queries, on every replica.

Parts come from Whoosh (Snowball English stemmer, English stop words, and the analyzer of highlight.py is a Whoosh
analyzer over these rules); the loop is ours, because analysis is the most frequent thing an index does: one ``findall``
and one dictionary look-up a token. Everything slow happens once per distinct token and is kept in a bounded cache that
all namespaces of the process share. On plain ASCII words the result equals Whoosh's ``StemmingAnalyzer`` with the same
stop words and stemmer (tested).

Rules. Words are runs of letters, digits and combining marks; anything else separates, so hyphens, dots, slashes and
underscores split (``2023-05-08`` is three terms, found by any of them). Apostrophes join, after the English clitics are
cut (``Caroline's`` -> carolin, ``don't`` -> nothing, ``O'Brien`` -> obrien). Thousands separators vanish. Unicode is
folded by NFKC and case; accents are dropped from Latin words. Scripts written without spaces give their characters and
pairs of neighbours. Tokens longer than MAX_TERM_CHARS are cut.

Called by fulltext.py, query.py, highlight.py and by retrieval.
"""

from __future__ import annotations

import re
import sys
import threading
import unicodedata
from functools import cache
from itertools import islice
from typing import TypeVar

from whoosh.lang.snowball.english import EnglishStemmer
from whoosh.lang.stopwords import stoplists

MAX_TERM_CHARS = 63
"""A term is at most 252 bytes of UTF-8, so that its length fits a byte of the index."""
CACHE_TOKENS = 50_000
"""Distinct tokens remembered by the process: about 8 MB when full."""

_FUNCTION_WORDS = """
a an the of to in on at for and or is are was were be been am do does did has have had it its this that these those i you
he she they we my your his her their our me him them us with as by from ca wo sha ain
"""
_QUESTION_WORDS = "what would could may might many much kind type types also yet"

STOP_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words no document is indexed under."""
QUERY_STOP_WORDS = STOP_WORDS | frozenset(stoplists["en"]) | frozenset(_QUESTION_WORDS.split())
"""Words a question is asked with rather than about; measured on question sets, dropping them is worth 6 points."""

_CLITICS = frozenset(("s", "m", "d", "ll", "re", "ve"))
_ASCII = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[a-z0-9]+(?:'[a-z0-9]+)*")
_ASCII_ANY_CASE = re.compile(_ASCII.pattern, re.IGNORECASE | re.ASCII)
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\uff07": "'"})
_INVISIBLE = dict.fromkeys((0x00AD, 0x200C, 0x200D))
_LATIN = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "þ": "th", "ð": "d", "ı": "i", "ħ": "h"})
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)

T = TypeVar("T")

_stemmer = EnglishStemmer()
_learned: dict[str, str | tuple[str, ...]] = {}
_asked: dict[str, tuple[str, ...]] = {}
"""What a question's tokens ask for: nothing for a word it is asked with."""
_learning = threading.Lock()


def terms(text: str) -> list[str]:
    """The terms of ``text`` in order, repeats included."""
    if text.isascii():
        tokens = _ASCII.findall(text.lower())
    else:
        tokens = _unicode_pattern().findall(text.replace("_", " "))
    known = _learned.get
    result: list[str] = []
    for token in tokens:
        term = known(token)
        if term is None:
            term = _learn(token)
        if isinstance(term, tuple):
            result.extend(term)
        elif term:
            result.append(term)
    return result


def query_terms(text: str) -> list[str]:
    """The terms of a question: without QUERY_STOP_WORDS, unless nothing else is left of it."""
    if text.isascii():
        tokens = _ASCII.findall(text.lower())
    else:
        tokens = [
            each.lower() if each.isascii() else each for each in _unicode_pattern().findall(text.replace("_", " "))
        ]
    known = _asked.get
    result: list[str] = []
    for key in tokens:
        found = known(key)
        if found is None:
            found = token_terms(key) if folded(key) not in QUERY_STOP_WORDS else ()
            _remember(_asked, key, found)
        result.extend(found)
    return result or terms(text)


def spans(text: str) -> list[tuple[str, int, int]]:
    """The raw tokens of ``text`` with their character offsets."""
    pattern = _ASCII_ANY_CASE if text.isascii() else _unicode_pattern()
    # The replacement keeps every offset.
    return [(match.group(), match.start(), match.end()) for match in pattern.finditer(text.replace("_", " "))]


def token_terms(token: str) -> tuple[str, ...]:
    """The terms one raw token of ``spans`` stands for; empty for a stop word."""
    key = token.lower() if token.isascii() else token
    term = _learned.get(key)
    if term is None:
        term = _learn(key)
    if isinstance(term, tuple):
        return term
    return (term,) if term else ()


def folded(token: str) -> str:
    """``token`` as the index sees it before stop words and stemming (what a prefix is compared with)."""
    if not token.isascii():
        token = unicodedata.normalize("NFKC", token).casefold().translate(_APOSTROPHES).translate(_INVISIBLE)
        token = unicodedata.normalize("NFKC", token)
        bare = "".join(char for char in unicodedata.normalize("NFKD", token) if not unicodedata.combining(char))
        bare = bare.translate(_LATIN)
        # Accents carry meaning outside Latin: only words that become plain ASCII lose them.
        token = bare if bare.isascii() else token
    token = token.lower().replace(",", "")
    if "'" in token:
        head, _, tail = token.rpartition("'")
        if tail in _CLITICS:
            token = head
        elif token.endswith("n't"):
            token = token[:-3]
        token = token.replace("'", "")
    return token


def stem(word: str) -> str:
    """The stem of a folded word; words that are not plain ASCII letters are left alone."""
    return str(_stemmer.stem(word)) if word.isascii() and word.isalpha() else word


def _learn(token: str) -> str | tuple[str, ...]:
    term = _normalised(token)
    _remember(_learned, token, term)
    return term


def _remember(known: dict[str, T], token: str, value: T) -> None:
    with _learning:
        if len(known) >= CACHE_TOKENS:
            for old in list(islice(known, CACHE_TOKENS // 4)):
                del known[old]
        known[token] = value


def _normalised(token: str) -> str | tuple[str, ...]:
    word = folded(token)
    if word.isascii():
        if word.isalnum():
            return _term(word)
    elif _UNSPACED.search(word) is None and word.isalnum():
        return _term(word)
    pieces: list[str] = []
    # Compatibility forms may unfold to text with separators of its own (a fraction, a unit).
    for part in _unicode_pattern().findall(word.replace("_", " ")) if not word.isascii() else _ASCII.findall(word):
        start = 0
        for run in _UNSPACED.finditer(part):
            pieces.append(_term(part[start : run.start()]))
            pieces.extend(_grams(run.group()))
            start = run.end()
        pieces.append(_term(part[start:]))
    return tuple(piece for piece in pieces if piece)


def _term(word: str) -> str:
    # Interned: the same few thousand terms appear in every namespace.
    return "" if word in STOP_WORDS else sys.intern(stem(word[:MAX_TERM_CHARS])[:MAX_TERM_CHARS])


def _grams(run: str) -> list[str]:
    grams = []
    for index, char in enumerate(run):
        grams.append(char)
        if index + 1 < len(run):
            grams.append(run[index : index + 2])
    return grams


@cache
def _unicode_pattern() -> re.Pattern[str]:
    """Words with their combining marks: ``\\w`` alone would cut an Indic word at every vowel sign."""
    ranges: list[list[int]] = []
    for code in (*range(0x300, 0x1E950), *range(0xE0100, 0xE01F0)):
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    letter = f"[\\w\u00ad\u200c\u200d{marks}]"
    return re.compile(rf"[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9,])|\w{letter}*(?:['\u2019\u02bc\uff07]\w{letter}*)*")
