from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from dakera_cluster.inference import store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.encoding import EncodedText
from dakera_cluster.inference.models import TextKind, UnknownModelError
from dakera_cluster.inference.service import Embedder, EmbedderSettings, UnavailableEmbedder, open_embedder
from dakera_cluster.model.errors import (
    InternalError,
    ModelUnavailableError,
    NotReadyError,
    OverloadedError,
    QueryTimeoutError,
)

from .conftest import write_tiny_model

PASSAGE, QUERY = TextKind.PASSAGE, TextKind.QUERY


class GatedEncoder(TextEncoder):
    """The real encoder, whose passes wait at a gate and leave a record: (kind, number of texts)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.gate = threading.Semaphore(0)
        self.waiting = threading.Event()
        self.open = False
        self.passes: list[tuple[TextKind, int]] = []
        self.fail: Callable[[], None] = lambda: None

    def forward(self, ids: Sequence[Sequence[int]], kind: TextKind, tokens: bool) -> list[EncodedText]:
        self.passes.append((kind, len(ids)))
        if not self.open:
            self.waiting.set()
            assert self.gate.acquire(timeout=20)
        self.fail()
        return super().forward(ids, kind, tokens)

    def let(self, passes: int) -> None:
        self.gate.release(passes)

    def let_all(self) -> None:
        self.open = True
        self.gate.release(1000)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> store.InstalledModel:
    folder = tmp_path_factory.mktemp("models")
    path = write_tiny_model(folder / "tiny")
    store.pull(str(path), folder / "cache")
    return store.find(str(path), folder / "cache")


SMALL = EmbedderSettings(slice_tokens=40, max_queued_queries=3, max_queued_passages=10, max_queued_chars=400)


@pytest.fixture
async def gated(model: store.InstalledModel) -> AsyncIterator[tuple[Embedder, GatedEncoder]]:
    """One text of ten tokens fills a pass, ten fill a slice."""
    encoder = GatedEncoder(model, max_batch_tokens=9)
    embedder = Embedder(encoder, SMALL)
    yield embedder, encoder
    encoder.let_all()
    await embedder.close()


@pytest.fixture
async def embedder(model: store.InstalledModel) -> AsyncIterator[Embedder]:
    embedder = Embedder(TextEncoder(model))
    yield embedder
    await embedder.close()


def words(count: int, start: int = 0) -> list[str]:
    """Different texts of about six tokens: no two share a pass of nine."""
    return [f"cat {'the ' * (number % 3)}dog sat {number}" for number in range(start, start + count)]


async def test_it_answers_what_the_encoder_answers(embedder: Embedder, model: store.InstalledModel) -> None:
    texts = ["the cat sat", "", "hello world .", "the cat sat"] * 30
    for kind in TextKind:
        expected = TextEncoder(model).encode(texts, kind, tokens=True)
        for _ in range(2):
            found = await embedder.embed(texts, kind, tokens=True)
            assert (found.vectors * expected.vectors).sum(1).min() >= 0.99999
            assert found.tokens is not None and expected.tokens is not None
            for one, other in zip(found.tokens, expected.tokens, strict=True):
                assert one.ids == other.ids
                assert (one.halves is None) == (kind is PASSAGE)
    assert (await embedder.embed(["a text that is new"], QUERY)).tokens is None
    assert (await embedder.embed([], QUERY)).vectors.shape == (0, embedder.dimension)
    assert embedder.available and embedder.reason == "" and embedder.name == "tiny"
    assert embedder.fingerprint == model.fingerprint


async def test_equal_texts_are_computed_once_and_remembered_by_kind(embedder: Embedder) -> None:
    await embedder.embed(["hello world"] * 5, QUERY)
    assert embedder.stats().encoded_texts == 1
    await embedder.embed(["hello world"], QUERY)
    assert embedder.stats().encoded_texts == 1
    await embedder.embed(["hello world"], PASSAGE)
    assert embedder.stats().encoded_texts == 2
    await embedder.embed(["hello world"], QUERY, tokens=True)
    await embedder.embed(["hello world"], QUERY, tokens=True)
    stats = embedder.stats()
    assert stats.encoded_texts == 3
    assert (stats.queries, stats.passages, stats.cache_hits, stats.cache_misses) == (8, 1, 6, 3)


async def test_requests_that_arrive_during_a_pass_share_the_next(model: store.InstalledModel) -> None:
    encoder = GatedEncoder(model)
    embedder = Embedder(encoder)
    first = asyncio.create_task(embedder.embed(["cat"], PASSAGE))
    await until(encoder.waiting.is_set)
    rest = [asyncio.create_task(embedder.embed([text], PASSAGE)) for text in words(20)]
    await until(lambda: embedder.stats().queued_passages == 20)
    encoder.let_all()
    await asyncio.gather(first, *rest)
    assert encoder.passes == [(PASSAGE, 1), (PASSAGE, 20)]
    await embedder.close()


async def test_a_query_waits_for_others_while_most_askers_work_on_their_last_answer(
    model: store.InstalledModel,
) -> None:
    encoder = GatedEncoder(model)
    encoder.let_all()
    embedder = Embedder(encoder, EmbedderSettings(gather_ms=60_000))

    async def ask(text: str) -> None:
        with embedder.asking():
            await embedder.embed([text], QUERY)

    with contextlib.ExitStack() as busy:
        leaving = contextlib.ExitStack()
        leaving.enter_context(embedder.asking())
        for _ in range(2):
            busy.enter_context(embedder.asking())
        first = asyncio.create_task(ask("cat"))
        await until(lambda: embedder.stats().queued_queries == 1)
        second = asyncio.create_task(ask("dog"))
        await until(lambda: embedder.stats().queued_queries == 2)
        await asyncio.sleep(0.05)
        assert encoder.passes == []
        leaving.close()
        await asyncio.gather(first, second)
        assert encoder.passes == [(QUERY, 2)]
    await ask("bird")
    assert encoder.passes == [(QUERY, 2), (QUERY, 1)]
    await embedder.close()


async def test_a_query_waits_no_longer_than_it_is_told_nor_beside_a_store(model: store.InstalledModel) -> None:
    encoder = GatedEncoder(model)
    encoder.let_all()
    for gather_ms, beside in ((20, None), (60_000, "the cat")):
        embedder = Embedder(encoder, EmbedderSettings(gather_ms=gather_ms))
        with embedder.asking(), embedder.asking(), embedder.asking():
            waits = [asyncio.create_task(embedder.embed(["cat"], QUERY))]
            if beside is not None:
                waits.append(asyncio.create_task(embedder.embed([beside], PASSAGE)))
            await asyncio.wait_for(asyncio.gather(*waits), 20)
        await embedder.close()


async def test_queries_go_before_waiting_passages_and_between_the_passes_of_a_slice(
    gated: tuple[Embedder, GatedEncoder],
) -> None:
    embedder, encoder = gated
    stored = asyncio.create_task(embedder.embed(words(8), PASSAGE))
    await until(encoder.waiting.is_set)
    assert encoder.passes == [(PASSAGE, 1)]
    queries = [asyncio.create_task(embedder.embed([text], QUERY)) for text in ("cat", "dog")]
    await until(lambda: embedder.stats().queued_queries == 2)
    encoder.let(3)
    await asyncio.gather(*queries)
    answered = [kind for kind, _ in encoder.passes]
    assert answered[0] is PASSAGE and answered[1] is QUERY
    assert answered.count(PASSAGE) <= 3 and not stored.done()
    encoder.let_all()
    await stored


async def test_passages_get_every_second_pass_under_a_stream_of_queries(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated
    stored = asyncio.create_task(embedder.embed(words(5), PASSAGE))
    await until(encoder.waiting.is_set)
    number = 0
    while not stored.done():
        number += 1
        query = asyncio.create_task(embedder.embed([f"hello {'cat ' * number}"], QUERY))
        await until(lambda: embedder.stats().queued_queries == 1)
        encoder.let(1)
        await until(lambda: embedder.stats().queued_queries == 0)
        encoder.let(1)
        await query
        assert number < 10
    assert [kind for kind, _ in encoder.passes[:9]] == [PASSAGE, QUERY] * 4 + [PASSAGE]


async def test_a_small_store_does_not_wait_for_a_large_one(model: store.InstalledModel) -> None:
    encoder = GatedEncoder(model, max_batch_tokens=9)
    embedder = Embedder(encoder, EmbedderSettings(slice_tokens=40))
    large = asyncio.create_task(embedder.embed(words(60), PASSAGE))
    await until(encoder.waiting.is_set)
    small = asyncio.create_task(embedder.embed(["hello world . cat"], PASSAGE))
    await until(lambda: embedder.stats().passages == 61)
    encoder.let(30)
    await small
    assert not large.done()
    encoder.let_all()
    await large
    await embedder.close()


async def test_a_full_queue_refuses_at_once_and_takes_work_again_when_drained(
    gated: tuple[Embedder, GatedEncoder],
) -> None:
    embedder, encoder = gated
    running = asyncio.create_task(embedder.embed(["cat"], PASSAGE))
    await until(encoder.waiting.is_set)
    # An empty queue takes a request of any size: it could never run otherwise.
    large = asyncio.create_task(embedder.embed(words(12), PASSAGE))
    await until(lambda: embedder.stats().queued_passages == 12)
    with pytest.raises(OverloadedError) as caught:
        await embedder.embed(["one more"], PASSAGE)
    assert caught.value.status == 503 and caught.value.retry_after_s is not None and caught.value.retry_after_s >= 1
    assert embedder.stats().rejected_requests == 1
    query = asyncio.create_task(embedder.embed(["queries have a bound of their own"], QUERY))
    encoder.let_all()
    await asyncio.gather(running, large, query)
    assert (await embedder.embed(["one more"], PASSAGE)).vectors.shape == (1, embedder.dimension)


async def test_the_queue_is_bounded_in_characters_too(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated
    running = asyncio.create_task(embedder.embed(["cat"], PASSAGE))
    await until(encoder.waiting.is_set)
    first = asyncio.create_task(embedder.embed(["a" * 350], PASSAGE))
    await until(lambda: embedder.stats().queued_passages == 1)
    with pytest.raises(OverloadedError):
        await embedder.embed(["b" * 60], PASSAGE)
    encoder.let_all()
    await asyncio.gather(running, first)


async def test_a_cancelled_request_costs_no_further_pass(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated
    first = asyncio.create_task(embedder.embed(words(9), PASSAGE))
    await until(encoder.waiting.is_set)
    second = asyncio.create_task(embedder.embed(words(9, start=50), PASSAGE))
    await until(lambda: embedder.stats().queued_passages >= 10)
    for task in (first, second):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert embedder.stats().queued_passages == 0 and embedder.stats().dropped_requests == 2
    encoder.let_all()
    await embedder.embed(["hello"], QUERY)
    assert encoder.passes == [(PASSAGE, 1), (QUERY, 1)]


async def test_a_request_past_its_time_is_answered_and_dropped(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated
    running = asyncio.create_task(embedder.embed(["cat"], PASSAGE))
    await until(encoder.waiting.is_set)
    with pytest.raises(QueryTimeoutError, match="20 ms"):
        await embedder.embed(["late"], QUERY, timeout_ms=20)
    assert embedder.stats().queued_queries == 0
    encoder.let_all()
    await running
    assert [kind for kind, _ in encoder.passes] == [PASSAGE]


async def test_a_failing_pass_fails_its_requests_and_no_others(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated

    def fail() -> None:
        raise RuntimeError("out of memory")

    encoder.fail = fail
    broken = asyncio.create_task(embedder.embed(words(3), PASSAGE))
    await until(encoder.waiting.is_set)
    encoder.let(1)
    with pytest.raises(InternalError, match="out of memory"):
        await broken
    encoder.fail = lambda: None
    encoder.let_all()
    assert (await embedder.embed(["hello"], PASSAGE)).vectors.shape == (1, embedder.dimension)
    assert embedder.stats().failed_passes >= 1


async def test_close_refuses_what_waits_and_what_comes(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated
    running = asyncio.create_task(embedder.embed(["cat"], PASSAGE))
    await until(encoder.waiting.is_set)
    waiting = asyncio.create_task(embedder.embed(["dog"], QUERY))
    await until(lambda: embedder.stats().queued_queries == 1)
    closing = asyncio.create_task(embedder.close())
    with pytest.raises(NotReadyError):
        await waiting
    encoder.let_all()
    await closing
    assert (await running).vectors.shape == (1, embedder.dimension)
    with pytest.raises(NotReadyError):
        await embedder.embed(["late"], QUERY)
    await embedder.close()


async def test_close_in_the_middle_of_a_large_request_answers_it(gated: tuple[Embedder, GatedEncoder]) -> None:
    embedder, encoder = gated
    large = asyncio.create_task(embedder.embed(words(40), PASSAGE))
    await until(encoder.waiting.is_set)
    closing = asyncio.create_task(embedder.close())
    with pytest.raises(NotReadyError):
        await large
    encoder.let_all()
    await closing
    assert len(encoder.passes) <= 2


async def test_without_the_model_it_says_what_to_run(tmp_path: Path) -> None:
    embedder = open_embedder("E5SmallV2", tmp_path)
    assert isinstance(embedder, UnavailableEmbedder)
    assert (embedder.available, embedder.name, embedder.dimension) == (False, "e5-small", 384)
    assert "dakera models pull e5-small" in embedder.reason
    with pytest.raises(ModelUnavailableError, match="dakera models pull e5-small"):
        await embedder.embed(["hello"], QUERY)
    await embedder.close()
    with pytest.raises(UnknownModelError):
        open_embedder("gpt-9", tmp_path)


async def test_a_directory_opens_as_a_model(tiny: Path, tmp_path: Path) -> None:
    embedder = open_embedder(str(tiny), tmp_path / "cache")
    assert embedder.available and embedder.name == "tiny"
    assert (await embedder.embed(["hello"], PASSAGE)).vectors.shape == (1, embedder.dimension)
    await embedder.close()


async def test_long_texts_are_cut_into_passages_the_model_reads_whole(tiny: Path, tmp_path: Path) -> None:
    embedder = open_embedder(str(tiny), tmp_path / "cache")
    assert isinstance(embedder, Embedder)
    text = "the cat sat on the mat . " * 30
    ranges = embedder.passages(text, overlap_tokens=7)
    assert ranges[0][0] == 0 and ranges[-1][1] == len(text.rstrip())
    assert all(len(text[start:end].split()) <= 46 for start, end in ranges)
    assert len(embedder.passages(text, overlap_tokens=2, max_tokens=16)) > len(ranges)
    await embedder.close()
