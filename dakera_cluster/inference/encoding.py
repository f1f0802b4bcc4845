"""What a forward pass gives: pooled vectors and, when asked for, one vector a token.

Invariant: arrays are read-only once they are here, because cache and callers share them.

Made by the encoder, passed on by the service, stored in rows and read by late interaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """The token vectors of one text, special tokens left out; t is the number of word pieces (0 for an empty text).

    `ids`: int32[t], word-piece ids. `signs`: uint8[t, ceil(d / 8)], the sign bits of the last hidden state (1 where positive,
    the first dimension in the highest bit: `np.packbits`). `floats`: float32[t, d] with L2 norm 1 for queries, None for
    passages: late interaction compares a query's floats with a memory's sign bits.
    """

    ids: NDArray[np.int32]
    signs: NDArray[np.uint8]
    floats: NDArray[np.float32] | None = None

    def freeze(self) -> None:
        """Makes the arrays read-only."""
        for array in (self.ids, self.signs, self.floats):
            if array is not None:
                array.flags.writeable = False

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.signs.nbytes + (0 if self.floats is None else self.floats.nbytes)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Result for n texts, in their order. `vectors`: float32[n, d], L2 norm 1. `tokens`: n entries, or None if not asked."""

    vectors: NDArray[np.float32]
    tokens: list[TokenVectors] | None = None


@dataclass(frozen=True, slots=True)
class States:
    """What a pass over n texts leaves. `pooled`: float32[n, d], L2 norm 1. `tokens`: the last hidden states of all texts, one
    behind the other, float32[sum of lengths, d], special tokens included; None if not asked."""

    pooled: NDArray[np.float32]
    tokens: NDArray[np.float32] | None = None
