"""The names in a question: proper nouns by their capitals. A heuristic, on purpose small: no model, no list of names.

Called by candidates.py for the entity pass and the name boost.
"""

from __future__ import annotations

import re

from dakera_cluster.index.analysis import QUERY_STOP_WORDS

MAX_NAMES = 8
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_ASCII_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_'-]*")
"""The same, found sooner, where there is nothing else."""
_NOT_NAMES = QUERY_STOP_WORDS | frozenset(
    [
        "who",
        "whom",
        "whose",
        "which",
        "tell",
        "show",
        "list",
        "summarize",
        "describe",
        "explain",
        "give",
        "find",
        "does",
        "did",
        "is",
        "are",
        "was",
        "were",
        "has",
        "have",
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ]
)


def proper_nouns(question: str) -> tuple[str, ...]:
    """The capitalised words of ``question`` that are neither its first word's habit nor dates, in order, without repeats.

    The first word counts only when the whole question is not capitalised and the word is no question word.
    """
    words = (_ASCII_WORD if question.isascii() else _WORD).findall(question)
    capitals = [word for word in words if word[0].isupper()]
    if len(capitals) == len(words):
        return ()
    names = [word.removesuffix("'s").removesuffix("’s") for word in capitals]
    kept = [name for name in names if name.lower() not in _NOT_NAMES and len(name) > 1]
    if kept and kept[0] == words[0].removesuffix("'s") and words[0].lower().endswith(("ize", "ise")):
        kept = kept[1:]
    return tuple(dict.fromkeys(kept))[:MAX_NAMES]
