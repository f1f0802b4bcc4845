"""Cuts a long text into overlapping passages that each fit a model, at sentence ends where there are any.

Invariant: the passages cover every token of the text, in order; each has at most `max_tokens` tokens; the cut depends on
the arguments alone, so every replica and every rebuild finds the same passages.

Called when a text longer than the model's window is embedded, and to show which passage of a memory matched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[」』]*|\n+")

MIN_FILL = 0.5
"""A sentence end is taken only in the last part of a window: cutting earlier would multiply the passages."""


def passages(
    text: str, spans: Sequence[tuple[int, int]], max_tokens: int, overlap_tokens: int
) -> list[tuple[int, int]]:
    """Character ranges (start, end) of the passages of `text`.

    `spans` are the tokens' character ranges in order (`TextEncoder.token_spans`). A passage ends at the last sentence end
    in the second half of its window, else between words, else between tokens. The next one starts at most
    `overlap_tokens` tokens earlier, at a sentence start if there is one in that stretch, else between words. A text that fits
    is one passage, from its first token to its last; a text without tokens has none.

    Raises ValueError unless 0 <= overlap_tokens <= max_tokens / 2.
    """
    if not 0 <= overlap_tokens <= max_tokens // 2 or max_tokens < 1:
        raise ValueError(f"overlap_tokens {overlap_tokens} must be between 0 and half of max_tokens {max_tokens}")
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    sentence_starts = _first_tokens_after(spans, ends)
    word_starts = {
        index for index in range(1, len(spans)) if any(map(str.isspace, text[spans[index - 1][1] : spans[index][0]]))
    }
    ranges: list[tuple[int, int]] = []
    first = 0
    while first < len(spans):
        stop = first + max_tokens
        if stop >= len(spans):
            ranges.append((spans[first][0], spans[-1][1]))
            break
        # Whatever the overlap takes back, the next window must begin after this one did.
        lowest = first + max(1, int(max_tokens * MIN_FILL), overlap_tokens + 1)
        stop = _last(sentence_starts, lowest, stop) or _last(word_starts, lowest, stop) or stop
        ranges.append((spans[first][0], spans[stop - 1][1]))
        back = stop - overlap_tokens
        first = _first(sentence_starts, back, stop) or _first(word_starts, back, stop) or back
    return ranges


def _first_tokens_after(spans: Sequence[tuple[int, int]], ends: Sequence[int]) -> set[int]:
    """The index of the first token at or after each character position."""
    found: set[int] = set()
    index = 0
    for end in ends:
        while index < len(spans) and spans[index][0] < end:
            index += 1
        if 0 < index < len(spans):
            found.add(index)
    return found


def _last(starts: set[int], low: int, high: int) -> int | None:
    return next((index for index in range(high, low - 1, -1) if index in starts), None)


def _first(starts: set[int], low: int, high: int) -> int | None:
    return next((index for index in range(low, high + 1) if index in starts), None)
