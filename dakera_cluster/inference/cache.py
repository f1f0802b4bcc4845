"""A least-recently-used cache of embeddings with a bound in bytes.

Invariant: the sum of what is held never exceeds the bound. Keys are digests of the text (BLAKE2b, 128 bits: texts come from
clients, who must not be able to make two collide), so the cache holds no content.

Used by the service, on the event loop only: no lock. One cache serves one model and one kind of text.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from dakera_cluster.inference.encoding import EncodedText

ENTRY_OVERHEAD_BYTES = 500
"""Key, ordered-dict slot and headers of one entry, about; counted so that many small entries keep to the bound."""


class EmbeddingCache:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[EncodedText, int]] = OrderedDict()
        """Each with its bytes: they are wanted again when it goes."""
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def key(text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def get(self, key: bytes, tokens: bool) -> EncodedText | None:
        """The entry, if it holds what is asked for: one made without token vectors does not answer for them."""
        found = self._entries.get(key)
        if found is None or (tokens and found[0].tokens is None):
            return None
        self._entries.move_to_end(key)
        return found[0]

    def put(self, key: bytes, entry: EncodedText) -> None:
        previous = self._entries.pop(key, None)
        if previous is not None:
            self.nbytes -= previous[1]
        size = ENTRY_OVERHEAD_BYTES + entry.nbytes
        self._entries[key] = (entry, size)
        self.nbytes += size
        while self.nbytes > self._max_bytes:
            _, (_, evicted) = self._entries.popitem(last=False)
            self.nbytes -= evicted
