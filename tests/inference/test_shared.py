"""Embeddings that another node computed: exact, only when the model is busy, and never needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import pytest

from dakera_cluster.inference.cache import EmbeddingCache
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.encoding import EncodedText, TokenVectors
from dakera_cluster.inference.models import TextKind
from dakera_cluster.inference.service import Embedder
from dakera_cluster.inference.shared import MAX_WAITING, SharedEmbeddings

D = 24


class Store:
    """A dictionary that can be ill, slow or hold anything."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.healthy = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0

    async def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked += 1
        await self.gate.wait()
        return [self.values.get(key) for key in keys]

    async def multi_put(self, entries: Mapping[bytes, bytes], *, ttl_s: int | None = None) -> bool:
        self.values.update(entries)
        return True


def entry(seed: int, tokens: int | None = 3) -> EncodedText:
    rng = np.random.default_rng(seed)
    vector = rng.standard_normal(D).astype("<f4").tobytes()
    if tokens is None:
        return EncodedText(vector)
    signs = rng.integers(0, 256, (tokens, D // 8), np.uint8).tobytes()
    halves = rng.standard_normal((tokens, D)).astype("<f2").tobytes()
    return EncodedText(vector, TokenVectors(tuple(range(tokens)), signs, halves))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_one_node_put_another_reads_to_the_bit() -> None:
    store = Store()
    first, second = (SharedEmbeddings(store, "model", D) for _ in range(2))
    keys = [EmbeddingCache.key(text) for text in ("a", "b", "empty")]
    entries = [entry(1), entry(2), entry(3, tokens=0)]
    for key, made in zip(keys, entries, strict=True):
        first.put(key, made)
    await until(lambda: first.stats().puts == 3)
    found = await second.get(keys, tokens=True)
    assert found == entries
    assert not any(b"empty" in key for key in store.values), "no text leaves the node"
    await first.close()


async def test_other_models_missing_parts_and_broken_values_are_misses() -> None:
    store = Store()
    shared = SharedEmbeddings(store, "model", D)
    key = EmbeddingCache.key("a")
    shared.put(key, entry(1, tokens=None))
    await until(lambda: shared.stats().puts == 1)
    assert await shared.get([key], tokens=False)
    assert await shared.get([key], tokens=True) is None
    assert await shared.get([key, EmbeddingCache.key("b")], tokens=False) is None
    assert await SharedEmbeddings(store, "another model", D).get([key], tokens=False) is None
    (stored,) = store.values
    good = store.values[stored]
    nan = np.full(D, np.nan, "<f4").tobytes()
    broken = [b"", b"\xc1", good[:-1], good[:40], msgspec.msgpack.encode([nan, None, None, None])]
    vector, ids, signs = b"\0" * 4 * D, b"\0" * 8, b"\0" * 2 * (D // 8)
    whole = [vector, ids, signs, b"\0" * 2 * 2 * D]
    store.values[stored] = msgspec.msgpack.encode(whole)
    assert await shared.get([key], tokens=True) is not None
    parts = [(vector, ids, b"\0", whole[3]), (vector, ids, signs, whole[3][:-2]), (vector, ids[:-1], signs, whole[3])]
    parts += [(vector, ids, signs, b"\0" * 4 * 2 * D), (vector, ids, signs, b"\xff" * 2 * 2 * D)]
    broken += [msgspec.msgpack.encode(part) for part in parts]
    for value in broken:
        store.values[stored] = value
        assert await shared.get([key], tokens=False) is None, value
    store.values[stored] = good
    store.healthy = False
    asked = store.asked
    assert await shared.get([key], tokens=False) is None and store.asked == asked
    for number in range(MAX_WAITING + 5):
        shared.put(EmbeddingCache.key(str(number)), entry(1))
    assert shared.stats().puts == 1


async def test_while_next_to_nothing_is_found_only_some_queries_are_asked_for() -> None:
    store = Store()
    shared = SharedEmbeddings(store, "model", D)
    known, unknown = EmbeddingCache.key("known"), EmbeddingCache.key("unknown")
    shared.put(known, entry(1))
    await until(lambda: shared.stats().puts == 1)
    for _ in range(1_000):
        await shared.get([unknown], tokens=True)
    asked = store.asked
    assert 64 < asked < 300, "it gives up after a while and not at once"
    for _ in range(160):
        await shared.get([unknown], tokens=True)
    assert store.asked == asked + 10
    for _ in range(1_000):
        await shared.get([known], tokens=True)
    asked = store.asked
    assert all([await shared.get([known], tokens=True) for _ in range(50)]) and store.asked == asked + 50


@pytest.fixture
async def embedder(tiny_encoder: TextEncoder) -> Embedder:
    return Embedder(tiny_encoder)


async def test_an_idle_model_is_not_raced_and_shares_what_it_computes(embedder: Embedder) -> None:
    store = Store()
    embedder.share(SharedEmbeddings(store, embedder.fingerprint, embedder.dimension))
    await embedder.embed(["what is there"], TextKind.QUERY, tokens=True)
    await embedder.embed(["a passage"], TextKind.PASSAGE, tokens=True)
    await until(lambda: len(store.values) == 1)
    assert store.asked == 0
    await embedder.close()


async def test_a_query_that_waits_takes_another_nodes_answer_and_leaves_the_queue(
    tiny_encoder: TextEncoder, embedder: Embedder
) -> None:
    store = Store()
    mate = Embedder(tiny_encoder)
    mate.share(SharedEmbeddings(store, mate.fingerprint, mate.dimension))
    computed = await mate.embed(["what is there"], TextKind.QUERY, tokens=True)
    await until(lambda: len(store.values) == 1)
    await mate.close()

    shared = SharedEmbeddings(store, embedder.fingerprint, embedder.dimension)
    embedder.share(shared)
    with Held(embedder) as held:
        waiting = asyncio.create_task(embedder.embed(["warm up"], TextKind.QUERY))
        await until(lambda: held.holds)
        found = await embedder.embed(["what is there"], TextKind.QUERY, tokens=True)
        assert np.array_equal(found.vectors, computed.vectors)
        assert found.tokens is not None and computed.tokens is not None
        assert np.array_equal(found.tokens[0].signs, computed.tokens[0].signs)
        assert shared.stats().hits == 1 and embedder.stats().queued_queries == 0
        assert not waiting.done()
    await waiting
    assert embedder.stats().encoded_texts == 1, "the model was spared"
    await embedder.close()


async def test_a_store_that_never_answers_holds_up_nothing(embedder: Embedder) -> None:
    store = Store()
    store.gate.clear()
    embedder.share(SharedEmbeddings(store, embedder.fingerprint, embedder.dimension))
    with Held(embedder) as held:
        waiting = [asyncio.create_task(embedder.embed(["warm up"], TextKind.QUERY))]
        await until(lambda: held.holds)
        waiting.append(asyncio.create_task(embedder.embed(["another"], TextKind.QUERY)))
        await until(lambda: store.asked == 1)
    async with asyncio.timeout(20):
        await asyncio.gather(*waiting)
    store.gate.set()
    await embedder.close()


class Held:
    """Within it, the model begins its next pass and does not finish it."""

    def __init__(self, embedder: Embedder) -> None:
        self._encoder = embedder._encoder
        self._forward = self._encoder.forward
        self._open = threading.Event()
        self.holds = False

    def __enter__(self) -> Held:
        def forward(*args: object, **kwargs: object) -> object:
            self.holds = True
            self._open.wait(20)
            return self._forward(*args, **kwargs)  # type: ignore[arg-type]

        self._encoder.forward = forward  # type: ignore[method-assign,assignment]
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.set()
        self._encoder.forward = self._forward  # type: ignore[method-assign]
