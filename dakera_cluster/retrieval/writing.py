"""What is made of a text before it is stored or asked: passages to embed, the fields of the row, the query's features.

Runs at the coordinator, once a memory and once a query; the fields travel in the row, so replicas never embed. One forward
pass gives both the vector and the token vectors. A memory's vector is the mean of its passages' vectors (of a short memory:
its one vector), so a long text is not cut off at the model's window.

Called by memory/ (store, update, recall) and by the tools that measure recall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.index.analysis import QUERY_STOP_WORDS, STOP_WORDS
from dakera_cluster.inference.encoding import Encoded, TokenVectors
from dakera_cluster.model.memories import Field
from dakera_cluster.retrieval.query import EmbeddedQuery
from dakera_cluster.retrieval.traits import canonical_text

PASSAGE_TOKENS = 126
"""Word pieces of a passage: with the two special ones a quarter of what the model was trained to read, and sharper for it."""
MAX_PASSAGES = 64
"""Passages of one memory that are embedded (about 6,000 words); what lies beyond is found by its words."""

Ranges = Callable[[str, int, int], Sequence[tuple[int, int]]]
"""``Embedder.passages``: (text, overlap_tokens, max_tokens) to character ranges."""


class PackedTokens(msgspec.Struct, frozen=True, array_like=True):
    """Token vectors of a memory as they lie in its row. ``counts``: tokens of each passage; ``ids``: uint16[t] little endian
    word-piece ids; ``signs``: uint8[t, d / 8] sign bits."""

    counts: list[int]
    ids: bytes
    signs: bytes


class PackedPassages(msgspec.Struct, frozen=True, array_like=True):
    """Vectors of the passages of a long memory: ``values`` int8[p, d], each row times its ``scales`` (float32[p])."""

    scales: bytes
    values: bytes


class PieceRules:
    """Which word pieces carry meaning: no punctuation, no stop words (for questions: no words one asks with)."""

    def __init__(self, pieces: Callable[[Sequence[int]], list[str]]) -> None:
        self._pieces = pieces
        self._known: set[int] = set()
        self._silent: set[int] = set()
        self._silent_in_queries: set[int] = set()

    def kept(self, ids: Sequence[int], *, is_query: bool) -> Sequence[int]:
        """Places in ``ids``; never empty unless ``ids`` is: a text of stop words alone keeps all its pieces."""
        if not self._known.issuperset(ids):
            self._learn(ids)
        silent = self._silent_in_queries if is_query else self._silent
        return [place for place, number in enumerate(ids) if number not in silent] or range(len(ids))

    def _learn(self, ids: Sequence[int]) -> None:
        unknown = [number for number in dict.fromkeys(ids) if number not in self._known]
        for number, piece in zip(unknown, self._pieces(unknown), strict=True):
            means = any(map(str.isalnum, piece.removeprefix("##")))
            if not means or piece in STOP_WORDS:
                self._silent.add(number)
            if not means or piece in QUERY_STOP_WORDS:
                self._silent_in_queries.add(number)
        # Last: who looks from another thread finds a piece known when it has been judged.
        self._known.update(unknown)


def passages(content: str, metadata: Mapping[str, Any] | None, ranges: Ranges) -> list[str]:
    """The texts to embed for a memory: one when it is short, else its passages in order."""
    text = canonical_text(content, metadata)
    found = ranges(text, 0, PASSAGE_TOKENS)[:MAX_PASSAGES]
    return [text[start:end] for start, end in found] if len(found) > 1 else [text]


def row_fields(encoded: Encoded, rules: PieceRules) -> dict[str, bytes | None]:
    """Row fields of the memory whose passages were ``encoded`` (with tokens): vector, tokens, passages (None for one)."""
    tokens = encoded.tokens
    packed = pack_tokens(tokens, rules) if tokens is not None else None
    if len(encoded.texts) == 1:
        return {Field.VECTOR: encoded.texts[0].vector, Field.TOKENS: packed, Field.PASSAGES: None}
    vectors = encoded.vectors
    vector = vectors.mean(axis=0)
    vector /= max(float(np.linalg.norm(vector)), np.finfo(np.float32).tiny)
    return {
        Field.VECTOR: vector.astype("<f4").tobytes(),
        Field.TOKENS: packed,
        Field.PASSAGES: pack_passages(vectors),
    }


def pack_tokens(tokens: Sequence[TokenVectors], rules: PieceRules) -> bytes:
    """The telling tokens of each passage. Ids that do not fit 16 bits are kept modulo 65,536: they only weigh a match."""
    kept = [rules.kept(part.ids, is_query=False) for part in tokens]
    ids = [part.ids[place] & 0xFFFF for part, places in zip(tokens, kept, strict=True) for place in places]
    signs = b"".join([_rows(part.signs, len(part.ids), places) for part, places in zip(tokens, kept, strict=True)])
    return msgspec.msgpack.encode(PackedTokens(list(map(len, kept)), np.array(ids, "<u2").tobytes(), signs))


def _rows(data: bytes, count: int, places: Sequence[int]) -> bytes:
    """The rows at ``places`` of ``count`` rows of equal size."""
    if len(places) == count:
        return data
    size = len(data) // count
    return b"".join([data[place * size : (place + 1) * size] for place in places])


def pack_passages(vectors: NDArray[np.float32]) -> bytes:
    """Passage vectors in a byte a component."""
    scales = np.maximum(np.abs(vectors).max(axis=1), np.finfo(np.float32).tiny) / 127
    values = np.rint(vectors / scales[:, None]).astype(np.int8)
    return msgspec.msgpack.encode(PackedPassages(scales.astype("<f4").tobytes(), values.tobytes()))


def unpack_tokens(data: bytes) -> tuple[list[int], NDArray[np.uint16], NDArray[np.uint8]]:
    """``(tokens of each passage, ids uint16[t], signs uint8[t, d / 8])``. Raises msgspec.DecodeError or ValueError."""
    packed = msgspec.msgpack.decode(data, type=PackedTokens)
    ids = np.frombuffer(packed.ids, dtype="<u2")
    signs = np.frombuffer(packed.signs, dtype=np.uint8)
    if sum(packed.counts) != len(ids):
        raise ValueError("token counts do not match the tokens")
    return packed.counts, ids, signs.reshape(len(ids), -1)


def unpack_passages(data: bytes) -> NDArray[np.float32]:
    """Passage vectors, float32[p, d]. Raises msgspec.DecodeError or ValueError."""
    packed = msgspec.msgpack.decode(data, type=PackedPassages)
    scales = np.frombuffer(packed.scales, dtype="<f4")
    values = np.frombuffer(packed.values, dtype=np.int8).reshape(len(scales), -1)
    return np.asarray(values.astype(np.float32) * scales[:, None])


def embedded_query(encoded: Encoded | None, rules: PieceRules) -> EmbeddedQuery:
    """A question from its encoding (one text, with tokens); None when the node has no model."""
    if encoded is None:
        return EmbeddedQuery(None, [], b"")
    text = encoded.texts[0]
    tokens = text.tokens
    if tokens is None or tokens.halves is None:
        return EmbeddedQuery(text.vector, [], b"")
    ids = tokens.ids
    kept = rules.kept(ids, is_query=True)
    return EmbeddedQuery(text.vector, [ids[place] for place in kept], _rows(tokens.halves, len(ids), kept))
