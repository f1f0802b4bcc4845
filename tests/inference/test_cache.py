from __future__ import annotations

import numpy as np

from dakera_cluster.inference.cache import ENTRY_OVERHEAD_BYTES, EmbeddingCache
from dakera_cluster.inference.encoding import ID_BYTES, EncodedText, TokenVectors

VECTOR = b"\0" * 400
ENTRY_BYTES = len(VECTOR) + ENTRY_OVERHEAD_BYTES


def entry(count: int = 0) -> EncodedText:
    tokens = TokenVectors((1,) * count, b"\0" * 48 * count, b"\0" * 768 * count) if count else None
    return EncodedText(VECTOR, tokens)


def test_the_least_recently_used_entries_go_when_the_bytes_are_full() -> None:
    cache = EmbeddingCache(3 * ENTRY_BYTES)
    for key in (b"a", b"b", b"c"):
        cache.put(key, entry())
    assert cache.get(b"a", tokens=False) is not None
    cache.put(b"d", entry())
    assert [cache.get(key, tokens=False) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert cache.nbytes == 3 * ENTRY_BYTES and len(cache) == 3


def test_the_bound_holds_for_entries_of_any_size_and_for_replaced_ones() -> None:
    random = np.random.default_rng(5)
    cache = EmbeddingCache(20 * ENTRY_BYTES)
    sizes: dict[bytes, int] = {}
    for _ in range(500):
        key, value = bytes([random.integers(40)]), entry(int(random.integers(60)))
        cache.put(key, value)
        sizes[key] = ENTRY_OVERHEAD_BYTES + value.nbytes
        held = [kept for kept in sizes if cache.get(kept, tokens=False) is not None]
        assert cache.nbytes == sum(sizes[kept] for kept in held) <= 20 * ENTRY_BYTES


def test_an_entry_without_token_vectors_does_not_answer_for_them() -> None:
    cache = EmbeddingCache(10 * ENTRY_BYTES)
    cache.put(b"a", entry())
    assert cache.get(b"a", tokens=True) is None
    cache.put(b"a", entry(3))
    assert cache.get(b"a", tokens=True) is not None and cache.get(b"a", tokens=False) is not None


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    cache = EmbeddingCache(ENTRY_BYTES - 1)
    cache.put(b"a", entry())
    assert len(cache) == 0 and cache.nbytes == 0


def test_keys_tell_texts_apart_and_take_any_string() -> None:
    texts = ["", "a", "A", "a ", "\ud800", "\u00e9", "e\u0301"]
    assert len({EmbeddingCache.key(text) for text in texts}) == len(texts)


def test_an_entry_counts_all_that_it_holds() -> None:
    assert entry().nbytes == len(VECTOR)
    assert entry(5).nbytes == len(VECTOR) + 5 * (ID_BYTES + 48 + 768)
