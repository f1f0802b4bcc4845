"""Rows for tests of retrieval without a model: a word has one random vector, a text the mean of its words'.

Words of the same text share a little of each other, as contextual vectors do; everything is a function of the text.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dakera_cluster.inference.encoding import Encoded, EncodedText, TokenVectors
from dakera_cluster.model.memories import Field
from dakera_cluster.retrieval import writing
from dakera_cluster.retrieval.query import QueryFeatures

DIMENSION = 64
_NAMES: dict[int, str] = {}


def pieces(ids: Sequence[int]) -> list[str]:
    return [_NAMES[piece_id] for piece_id in ids]


RULES = writing.PieceRules(pieces)


def encoded(texts: Sequence[str], *, is_query: bool = False) -> Encoded:
    found = []
    for text in texts:
        words = "".join(char if char.isalnum() else " " for char in text.lower()).split() or ["-"]
        ids = tuple([zlib.crc32(word.encode()) & 0x7FFF for word in words])
        _NAMES.update(zip(ids, words, strict=True))
        rows = np.stack([np.random.default_rng(piece_id).normal(size=DIMENSION) for piece_id in ids])
        mean = rows.mean(axis=0)
        states = rows + 0.2 * mean
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        vector = (mean / np.linalg.norm(mean)).astype("<f4").tobytes()
        halves = states.astype("<f2").tobytes() if is_query else None
        found.append(EncodedText(vector, TokenVectors(ids, np.packbits(states > 0, axis=1).tobytes(), halves)))
    return Encoded(found, DIMENSION)


def row(content: str, *, passages: Sequence[str] | None = None, **fields: Any) -> dict[str, Any]:
    """The fields of a memory's row. ``fields`` are named as in `Field`, in lower case."""
    texts = passages or [content]
    return {
        Field.TEXT: content,
        Field.IMPORTANCE: 0.5,
        Field.CREATED: 1_700_000_000,
        **{getattr(Field, name.upper()): value for name, value in fields.items()},
        **writing.row_fields(encoded(texts), RULES),
    }


def question(text: str, now_s: float = 1_700_000_000) -> QueryFeatures:
    return writing.embedded_query(encoded([text], is_query=True), RULES).features(text, now_s)
