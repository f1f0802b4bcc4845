"""What the words of a memory say about it: who speaks, how long, a question or a statement, about oneself, with a date.

Derived from the row alone (content and metadata), so every replica finds the same. Speaker and date come from metadata and
``event_time``; the head of the content (``[1:56 pm on 8 May, 2023] Ann: ...``) is only the fallback, and is taken off before
the text is embedded: a head that repeats metadata says nothing and blurs the vector of a short text.

Called by writing.py (what to embed) and evidence.py (what to keep beside a memory).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

SPEAKER_KEYS = ("speaker", "author", "sender", "role")
"""Metadata that names who said something, the most telling first."""
MAX_SPEAKER_CHARS = 60
SELF_SCAN_CHARS = 600
"""First-person words are counted at the beginning only: a long text mentions everything somewhere."""
MAX_SELF = 3

_HEAD = re.compile(r"\s*\[(?P<date>[^\]\n]{4,60})\]\s*(?:(?P<speaker>[^:\n\[\]]{1,40}):\s+)?")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_APOSTROPHE = re.compile(r"['’]")
_SELF = frozenset(("i", "my", "me", "mine", "myself"))
_NUMBER_WORDS = """
one two three four five six seven eight nine ten dozen twice once both couple few several
"""
_NUMBERS = frozenset(_NUMBER_WORDS.split())
_CURRENCY_OR_SHARE = re.compile(r"[$€£%]")
_TIMES = """
yesterday today tonight tomorrow last next ago week weekend month year years recently just since
monday tuesday wednesday thursday friday saturday sunday
january february march april may june july august september october november december
"""
_TIME_WORDS = frozenset(_TIMES.split())
_TIME_PHRASES = re.compile(r"\b(?:few days|this morning)\b")
TELLING_WORDS = 40
LENGTH_SCORES: NDArray[np.float64] = np.log1p(np.arange(TELLING_WORDS + 1)) / np.log1p(TELLING_WORDS)
"""By words, the last for all that have more: below 40, longer says more; beyond it, longer is only longer."""


class Role(IntEnum):
    """Who speaks in a log of a person and a machine; PERSON is also everybody with a name of his own."""

    PERSON = 0
    USER = 1
    ASSISTANT = 2


_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "client"), Role.USER),
    **dict.fromkeys(("assistant", "ai", "bot", "agent", "model", "system", "tool", "chatbot"), Role.ASSISTANT),
}


class Traits(msgspec.Struct, frozen=True):
    """Of one memory. ``words`` counts the body, ``about_self`` is 0 to 1, ``speaker`` is lower case or None."""

    speaker: str | None
    role: Role
    words: int
    has_time: bool
    has_number: bool
    about_self: float
    asks: bool


class Spoken(msgspec.Struct, frozen=True):
    """A content taken apart: ``head_date`` is the text in the brackets of its head, None without one."""

    speaker: str | None
    head_date: str | None
    body: str


def spoken(content: str, metadata: Mapping[str, Any] | None) -> Spoken:
    """Speaker and body of a content."""
    named = _named(metadata)
    head = _HEAD.match(content)
    if head is not None and any(char.isdigit() for char in head["date"]):
        return Spoken(named or (head["speaker"] or "").strip() or None, head["date"], content[head.end() :])
    body = content
    if named is not None and content[: len(named) + 1].lower() == f"{named.lower()}:":
        body = content[len(named) + 1 :].lstrip()
    return Spoken(named, None, body)


def role_of(speaker: str | None) -> Role:
    """The role a speaker's name stands for."""
    return _ROLES.get(speaker.strip().lower(), Role.PERSON) if speaker else Role.PERSON


def canonical_text(content: str, metadata: Mapping[str, Any] | None) -> str:
    """The text to embed: ``Ann: ...`` for a named speaker, the body alone for a role or nobody."""
    parts = spoken(content, metadata)
    if not parts.body.strip():
        return content
    if parts.speaker is None or role_of(parts.speaker) is not Role.PERSON:
        return parts.body
    return f"{parts.speaker}: {parts.body}"


def traits_of(parts: Spoken) -> Traits:
    """The traits of a memory."""
    body = parts.body.lower()
    words = _WORD.findall(body)
    # Every test below is one of sets: a memory is written once, but a node that starts reads all of them.
    pieces = {*words, *(piece for word in words if not word.isalnum() for piece in _APOSTROPHE.split(word))}
    return Traits(
        speaker=parts.speaker.lower() if parts.speaker else None,
        role=role_of(parts.speaker),
        words=len(words),
        has_time=not _TIME_WORDS.isdisjoint(pieces) or _names_time(pieces, body),
        has_number=not _NUMBERS.isdisjoint(pieces)
        or any(piece.isdecimal() for piece in pieces)
        or _CURRENCY_OR_SHARE.search(body) is not None,
        about_self=min(MAX_SELF, _self_words(body[:SELF_SCAN_CHARS])) / MAX_SELF,
        asks="?" in body,
    )


def _names_time(pieces: set[str], body: str) -> bool:
    """A year of this or the last century, or a phrase."""
    if any(len(piece) == 4 and piece[:2] in ("19", "20") and piece.isdecimal() for piece in pieces):
        return True
    return not pieces.isdisjoint(("days", "morning")) and _TIME_PHRASES.search(body) is not None


def _self_words(text: str) -> int:
    return sum(piece in _SELF for word in _WORD.findall(text) for piece in _APOSTROPHE.split(word))


def _named(metadata: Mapping[str, Any] | None) -> str | None:
    for key in SPEAKER_KEYS:
        value = (metadata or {}).get(key)
        if isinstance(value, str) and 0 < len(value.strip()) <= MAX_SPEAKER_CHARS:
            return value.strip()
    return None
