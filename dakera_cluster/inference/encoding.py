"""What is made of a text: its vector and, when asked for, one vector a token.

Invariant: nothing here can be written to, because cache and callers share it. Numbers are little endian.

Made by the passes, passed on by the service, stored in rows and read by late interaction.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

ID_BYTES = 36
"""What an id takes in a tuple of numbers."""


class TokenVectors(msgspec.Struct, frozen=True, gc=False):
    """The token vectors of one text, special tokens left out; t is the number of word pieces (0 for an empty text).

    `ids`: word-piece ids. `signs`: uint8[t, ceil(d / 8)], the sign bits of the last hidden state (1 where positive, the first
    dimension in the highest bit: `np.packbits`). `halves`: float16[t, d] with L2 norm 1 for queries, None for passages: late
    interaction compares a query's numbers with a memory's sign bits.
    """

    ids: tuple[int, ...]
    signs: bytes
    halves: bytes | None = None

    @property
    def nbytes(self) -> int:
        return ID_BYTES * len(self.ids) + len(self.signs) + len(self.halves or b"")


class EncodedText(msgspec.Struct, frozen=True, gc=False):
    """`vector`: float32[d], L2 norm 1. `tokens`: None where nobody asked for them."""

    vector: bytes
    tokens: TokenVectors | None = None

    @property
    def nbytes(self) -> int:
        return len(self.vector) + (0 if self.tokens is None else self.tokens.nbytes)


class Encoded(msgspec.Struct, frozen=True, gc=False):
    """Result for n texts, in their order."""

    texts: list[EncodedText]
    dimension: int

    @property
    def vectors(self) -> NDArray[np.float32]:
        """float32[n, d], L2 norm 1; made here."""
        joined = b"".join([text.vector for text in self.texts])
        return np.frombuffer(joined, "<f4").reshape(len(self.texts), self.dimension)

    @property
    def tokens(self) -> list[TokenVectors] | None:
        """n entries; None when a text has none."""
        found = [text.tokens for text in self.texts if text.tokens is not None]
        return found if len(found) == len(self.texts) else None
