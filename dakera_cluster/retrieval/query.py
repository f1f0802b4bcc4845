"""What the engine is told of a question. Made once by the coordinator (writing.py), sent to the replica that ranks."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray


class QueryFeatures(msgspec.Struct, frozen=True, gc=False):
    """``vector``: float32[d] of L2 norm 1, None when the node has no model. ``token_vectors``: float32 or float16[t, d], rows
    of norm 1, and ``token_ids``: int32[t], of the pieces that carry meaning; t may be 0. ``now_s``: Unix seconds, for
    relative dates and decay."""

    text: str
    vector: NDArray[np.float32] | None
    token_vectors: NDArray[np.floating]
    token_ids: NDArray[np.int32]
    now_s: float


class EmbeddedQuery(msgspec.Struct, frozen=True, gc=False):
    """A question as it is sent: ``vector``: float32[d], None without a model; ``token_ids`` and ``token_vectors``: float16[t, d],
    of the pieces that carry meaning. Little endian."""

    vector: bytes | None
    token_ids: list[int]
    token_vectors: bytes

    def features(self, text: str, now_s: float) -> QueryFeatures:
        """As the engine takes it."""
        vector = np.frombuffer(self.vector, "<f4") if self.vector is not None else None
        ids = np.array(self.token_ids, np.int32)
        width = len(vector) if vector is not None else 0
        tokens = np.frombuffer(self.token_vectors, "<f2").reshape(len(ids), width)
        return QueryFeatures(text, vector, tokens, ids, now_s)
