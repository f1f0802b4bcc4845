"""The byte cache is an LRU map that keeps its bound."""

from __future__ import annotations

import threading
from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.storage.cache import ENTRY_OVERHEAD_BYTES, ByteCache

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=400)),
        st.tuples(st.just("get"), KEYS, st.just(b"")),
        st.tuples(st.just("delete"), KEYS, st.just(b"")),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, limit=st.integers(0, 1500))
def test_the_byte_cache_is_an_lru_map_within_its_bound(steps: list[tuple[str, bytes, bytes]], limit: int) -> None:
    cache, model = ByteCache(limit), OrderedDict[bytes, bytes]()

    def cost(key: bytes) -> int:
        return len(key) + len(model[key]) + ENTRY_OVERHEAD_BYTES

    for step, key, value in steps:
        if step == "get":
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
            continue
        cache.delete(key) if step == "delete" else cache.put(key, value)
        model.pop(key, None)
        if step == "put":
            model[key] = value
            if cost(key) > limit:
                del model[key]
            while sum(map(cost, model)) > limit:
                model.popitem(last=False)
        stats = cache.stats()
        assert stats.size_bytes == sum(map(cost, model)) <= limit
        assert stats.entries == len(model)
    assert {key: cache.get(key) for key in model} == dict(model)
    cache.clear()
    assert cache.stats().size_bytes == 0


def test_the_byte_cache_counts_what_happens() -> None:
    cache = ByteCache(2 * (ENTRY_OVERHEAD_BYTES + 2))
    for key in (b"1", b"2", b"3"):
        cache.put(key, b"v")
    assert [cache.get(key) for key in (b"1", b"2", b"3")] == [None, b"v", b"v"]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.evictions) == (2, 1, 1)


def test_the_byte_cache_holds_its_bound_under_threads() -> None:
    cache = ByteCache(20_000)

    def work(seed: int) -> None:
        for n in range(2000):
            cache.put(b"%d" % (n * seed % 300), bytes(n % 500))
            cache.get(b"%d" % (n % 300))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [(key, cache.get(key)) for key in (b"%d" % n for n in range(300))]
    size = sum(len(key) + len(value) + ENTRY_OVERHEAD_BYTES for key, value in held if value is not None)
    assert cache.stats().size_bytes == size <= 20_000
