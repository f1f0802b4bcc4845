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
