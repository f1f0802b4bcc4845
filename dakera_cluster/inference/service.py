"""The embedding service of a node: async in front, one inference thread behind, micro-batching between them.

How it runs. `embed` puts a request's texts on one of two queues and waits. The inference thread takes a slice of passages
(texts of all waiting requests, in turn), cuts it into forward passes, and before every pass serves the queries that have come
meanwhile, all in one batch. So a query waits for one pass at most, however many texts are being stored, and passages get
every second pass at least, however many queries come. Requests that arrive during a pass are joined in the next.
Several queries in one pass cost less than a pass each, because the model's weights come from memory once. So when most
askers (`asking`) are busy with what they got before, the first query that comes waits for others, `gather_ms` at most.
The thread takes its own work and needs no turn of the event loop between passes: a busy loop does not idle the model.
A query that has to wait also asks what other nodes have computed (`shared`); the first answer counts.

Invariants: a request is answered once, with all its texts or an error; a cancelled or timed-out request costs no further
pass; the queues are bounded, and over the bound a request is refused at once with OverloadedError.

Created by the node's wiring; used by memory (store, recall) and the text routes. Confined to one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from dakera_cluster.inference import store
from dakera_cluster.inference.batching import Job, JobQueue
from dakera_cluster.inference.cache import EmbeddingCache
from dakera_cluster.inference.embedder import MAX_TEXT_CHARS_PER_TOKEN, TextEncoder
from dakera_cluster.inference.encoding import Encoded, EncodedText
from dakera_cluster.inference.models import ModelFormatError, ModelSpec, Precision, TextKind, resolve
from dakera_cluster.inference.onnx_pass import Device
from dakera_cluster.inference.passages import passages
from dakera_cluster.inference.shared import SharedEmbeddings
from dakera_cluster.inference.sources import HashMismatchError
from dakera_cluster.model.errors import (
    DakeraError,
    InternalError,
    ModelUnavailableError,
    NotReadyError,
    OverloadedError,
    QueryTimeoutError,
)

MAX_RETRY_AFTER_S = 30


class EmbedderSettings(msgspec.Struct, frozen=True):
    """Bounds of the service. Texts beyond `max_queued_*` are refused, but a request is never refused by an empty queue."""

    threads: int = 1
    slice_tokens: int = 2048
    """Passages taken at a time: enough to sort by length, few enough that a small store joins soon."""
    query_batch_tokens: int = 256
    gather_ms: float = 1.0
    """Longest wait of a query for others while most askers still work on their last answer; 0: never wait."""
    max_queued_queries: int = 1024
    max_queued_passages: int = 16_384
    max_queued_chars: int = 32 << 20
    query_cache_bytes: int = 8 << 20
    passage_cache_bytes: int = 8 << 20


class EmbedderStats(msgspec.Struct, frozen=True):
    """Counters since the start, and levels (`queued_*`, `cache_bytes`) now."""

    queries: int
    passages: int
    cache_hits: int
    cache_misses: int
    forward_passes: int
    encoded_texts: int
    encoded_tokens: int
    busy_s: float
    rejected_requests: int
    dropped_requests: int
    failed_passes: int
    queued_queries: int
    queued_passages: int
    cache_bytes: int


class _Askers(contextlib.AbstractContextManager[None]):
    """Counts who asks. One for all: a generator for each would cost more than the counting. ``left`` is called whenever one
    has left."""

    def __init__(self, left: Callable[[], None]) -> None:
        self.count = 0
        self._left = left

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        self._left()


class Embedder:
    """A model that is there. See the module's docstring for how it runs."""

    available = True
    reason = ""

    def __init__(self, encoder: TextEncoder, settings: EmbedderSettings = EmbedderSettings()) -> None:  # noqa: B008
        self._encoder = encoder
        self._settings = settings
        self.name = encoder.spec.name
        """As the official clients spell it."""
        self.dimension = encoder.dimension
        self.fingerprint = encoder.fingerprint
        """Names model, precision and files; rows carry it, so that vectors of different models never meet."""
        self._max_chars = encoder.spec.max_tokens * MAX_TEXT_CHARS_PER_TOKEN
        """Of a text that go to the model."""
        self._reserved_tokens = len(encoder.tokenize([""], TextKind.PASSAGE)[0])
        self._queues = {
            TextKind.QUERY: JobQueue(settings.max_queued_queries, settings.max_queued_chars),
            TextKind.PASSAGE: JobQueue(settings.max_queued_passages, settings.max_queued_chars),
        }
        self._caches = {
            TextKind.QUERY: EmbeddingCache(settings.query_cache_bytes),
            TextKind.PASSAGE: EmbeddingCache(settings.passage_cache_bytes),
        }
        self._shared: SharedEmbeddings | None = None
        self._looking: set[asyncio.Task[None]] = set()
        self._encoding = False
        self._gathering = False
        self._askers = _Askers(self._asker_left)
        """Of the event loop; the inference thread only looks at it."""
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._closing = False
        self._asked = {TextKind.QUERY: 0, TextKind.PASSAGE: 0}
        self._hits = self._misses = self._rejected = self._dropped = 0
        self._passes = self._texts = self._tokens = self._failed = 0
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    async def embed(
        self, texts: Sequence[str], kind: TextKind, tokens: bool = False, timeout_ms: float | None = None
    ) -> Encoded:
        """Vectors (and token vectors, when asked for) of `texts`, in order. Cancelling the wait drops the work.

        Raises OverloadedError (queue full), QueryTimeoutError (`timeout_ms` passed), NotReadyError (closing) and
        InternalError (the model failed on these texts).
        """
        self._asked[kind] += len(texts)
        cache = self._caches[kind]
        keys = [cache.key(text) for text in texts]
        known = [cache.get(key, tokens) for key in keys]
        missing = {
            key: text[: self._max_chars] for key, text, one in zip(keys, texts, known, strict=True) if one is None
        }
        self._hits += len(texts) - len(missing)
        self._misses += len(missing)
        if not missing:
            return Encoded([text for text in known if text is not None], self.dimension)
        job = Job(list(missing.values()), kind, tokens)
        shared = self._shared if kind is TextKind.QUERY else None
        if shared is not None and self._is_busy:
            self._start_looking(shared, job, list(missing))
        await self._compute(job, timeout_ms)
        found: dict[bytes, EncodedText] = {}
        for key, text in zip(missing, job.found, strict=True):
            assert text is not None, "a job that is done has all its texts"
            found[key] = text
            cache.put(key, text)
            if shared is not None and not job.given:
                shared.put(key, text)
        return Encoded([one or found[key] for key, one in zip(keys, known, strict=True)], self.dimension)

    def asking(self) -> contextlib.AbstractContextManager[None]:
        """To be held by whoever embeds a query and works on with it, from before the one until after the other."""
        return self._askers

    def _asker_left(self) -> None:
        if self._gathering and self._gathered:
            with self._work:
                self._work.notify()

    def share(self, shared: SharedEmbeddings) -> None:
        """Use what other nodes have computed, from now on."""
        self._shared = shared

    def passages(self, text: str, overlap_tokens: int, max_tokens: int | None = None) -> list[tuple[int, int]]:
        """Character ranges that cut `text` to what the model reads at once (`max_tokens` at most, special tokens and
        prefix included); see `passages.passages`. Takes time in proportion to the text: not for the event loop."""
        spec = self._encoder.spec
        budget = min(max_tokens or spec.max_tokens, spec.max_tokens) - self._reserved_tokens
        return passages(text, self._encoder.token_spans(text), budget, overlap_tokens)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The word pieces of token ids; continuations begin with `##`."""
        return self._encoder.pieces(ids)

    def piece_id(self, piece: str) -> int | None:
        """The token id of a word piece, None when the vocabulary lacks it."""
        return self._encoder.piece_id(piece)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Word pieces the model reads of `texts` as passages, special tokens included. Not for the event loop."""
        return sum(len(ids) for ids in self._encoder.tokenize(texts, TextKind.PASSAGE))

    def stats(self) -> EmbedderStats:
        return EmbedderStats(
            queries=self._asked[TextKind.QUERY],
            passages=self._asked[TextKind.PASSAGE],
            cache_hits=self._hits,
            cache_misses=self._misses,
            forward_passes=self._passes,
            encoded_texts=self._texts,
            encoded_tokens=self._tokens,
            busy_s=self._busy_s,
            rejected_requests=self._rejected,
            dropped_requests=self._dropped,
            failed_passes=self._failed,
            queued_queries=self._queues[TextKind.QUERY].texts,
            queued_passages=self._queues[TextKind.PASSAGE].texts,
            cache_bytes=sum(cache.nbytes for cache in self._caches.values()),
        )

    async def close(self) -> None:
        """Refuses what waits, lets the running slice end, and joins the thread. May be called twice."""
        with self._work:
            self._closing = True
            refused = [job for queue in self._queues.values() for job in queue.clear()]
            self._work.notify()
        for job in refused:
            job.dropped = True
            job.settle(NotReadyError("the node is shutting down"))
        await asyncio.to_thread(self._thread.join)

    # -- on the event loop --------------------------------------------------------------------------------------------

    async def _compute(self, job: Job, timeout_ms: float | None) -> None:
        queue = self._queues[job.kind]
        with self._work:
            if self._closing:
                raise NotReadyError("the node is shutting down")
            accepted = queue.offer(job)
            waiting = queue.texts
            # A thread that gathers is not woken before it has what it waits for: each wake-up takes the interpreter twice.
            if accepted and (not self._gathering or self._gathered):
                self._work.notify()
        if not accepted:
            self._rejected += 1
            raise OverloadedError(
                f"{waiting} texts already wait for the embedding model", retry_after_s=self._retry_after_s(waiting)
            )
        try:
            if timeout_ms is None:
                await job.done
            else:
                async with asyncio.timeout(timeout_ms / 1000):
                    await job.done
        except BaseException as error:
            job.dropped = True
            with self._lock:
                queue.drop(job)
            if isinstance(error, TimeoutError):
                self._dropped += 1
                raise QueryTimeoutError(f"no embedding within {timeout_ms:g} ms") from error
            if isinstance(error, asyncio.CancelledError):
                self._dropped += 1
            raise

    @property
    def _gathered(self) -> bool:
        """Whether nothing is won by waiting for more queries: half of the askers wait for the model, or passages do."""
        queries, stored = self._queues[TextKind.QUERY], self._queues[TextKind.PASSAGE]
        return 2 * queries.texts >= self._askers.count or stored.texts > 0

    @property
    def _is_busy(self) -> bool:
        """Whether a query that comes now has to wait for the model."""
        return self._encoding or any(queue.texts for queue in self._queues.values())

    def _start_looking(self, shared: SharedEmbeddings, job: Job, keys: list[bytes]) -> None:
        task = asyncio.create_task(self._look_up(shared, job, keys))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look_up(self, shared: SharedEmbeddings, job: Job, keys: list[bytes]) -> None:
        """Answer a job that still waits for the model with what other nodes have computed, if they have all of it."""
        entries = await shared.get(keys, job.tokens)
        if entries is None:
            return
        with self._lock:
            if job.done.done() or len(job.pending) < len(job.texts):
                return
            self._queues[job.kind].drop(job)
        job.found[:] = entries
        job.given = True
        job.settle()

    def _retry_after_s(self, waiting: int) -> int:
        rate = self._texts / self._busy_s if self._busy_s else math.inf
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(waiting / rate)))

    # -- on the inference thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        queries, stored = self._queues[TextKind.QUERY], self._queues[TextKind.PASSAGE]
        while True:
            with self._work:
                self._encoding = False
                while not (queries.texts or stored.texts or self._closing):
                    self._work.wait()
                self._gather()
                if self._closing:
                    return
                self._encoding = True
                asked = queries.take(self._settings.query_batch_tokens)
            if asked:
                self._encode(asked, TextKind.QUERY)
            # Looked at without the lock: what comes just now is seen in the next turn.
            if stored.texts:
                with self._lock:
                    work = stored.take(self._settings.slice_tokens)
                if work:
                    self._encode(work, TextKind.PASSAGE)

    def _gather(self) -> None:
        """Wait until half of the askers wait for the model, or nothing is won by it any more. Holds the lock."""
        until = time.monotonic() + self._settings.gather_ms / 1000
        # Set before it is looked at who asks: whoever leaves after the look sees it, and wakes this thread.
        self._gathering = True
        while not (self._gathered or self._closing):
            left = until - time.monotonic()
            if left <= 0:
                break
            self._work.wait(left)
        self._gathering = False

    def _serve_queries(self) -> None:
        queries = self._queues[TextKind.QUERY]
        if queries.texts:
            with self._lock:
                work = queries.take(self._settings.query_batch_tokens)
            if work:
                self._encode(work, TextKind.QUERY)

    def _encode(self, work: list[tuple[Job, int]], kind: TextKind) -> None:
        """Computes a slice pass by pass, and lets queries in between passes over passages."""
        try:
            ids = self._encoder.tokenize([job.texts[index] for job, index in work], kind)
            batches = self._encoder.batches(ids)
        except Exception as error:
            self._fail(work, error)
            return
        for number, batch in enumerate(batches):
            if number and kind is TextKind.PASSAGE:
                self._serve_queries()
            batch = [place for place in batch if not work[place][0].dropped]
            if not batch:
                continue
            part = [work[place] for place in batch]
            began = time.perf_counter()
            try:
                found = self._encoder.forward([ids[place] for place in batch], kind, any(job.tokens for job, _ in part))
            except Exception as error:
                self._fail(part, error)
                continue
            self._passes += 1
            self._texts += len(batch)
            self._tokens += sum(len(ids[place]) for place in batch)
            self._busy_s += time.perf_counter() - began
            self._deliver(part, found)

    def _deliver(self, part: list[tuple[Job, int]], found: list[EncodedText]) -> None:
        finished: list[Job] = []
        for (job, index), text in zip(part, found, strict=True):
            job.found[index] = text
            job.left -= 1
            if not job.left:
                finished.append(job)
        self._settle(finished, None)

    def _fail(self, part: list[tuple[Job, int]], error: Exception) -> None:
        if not part:
            return
        if not isinstance(error, DakeraError):
            self._failed += 1
            error = InternalError(f"the embedding model failed: {error}")
        self._settle(list({id(job): job for job, _ in part}.values()), error)

    @staticmethod
    def _settle(jobs: list[Job], error: Exception | None) -> None:
        if jobs:
            # Together: their loop is one, and need not be woken for each. When it is closed, nobody waits.
            with contextlib.suppress(RuntimeError):
                jobs[0].loop.call_soon_threadsafe(_settle_all, jobs, error)


def _settle_all(jobs: list[Job], error: Exception | None) -> None:
    for job in jobs:
        job.settle(error)


class UnavailableEmbedder:
    """A node without its model: it says what to run, and everything but vectors works."""

    available = False
    fingerprint = ""

    def __init__(self, spec: ModelSpec, reason: str) -> None:
        self.name = spec.name
        self.dimension = spec.dimension
        self.reason = reason

    async def embed(
        self, texts: Sequence[str], kind: TextKind, tokens: bool = False, timeout_ms: float | None = None
    ) -> Encoded:
        """Raises ModelUnavailableError; its message is the command that installs the model."""
        raise ModelUnavailableError(self.reason)

    def asking(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Raises ModelUnavailableError."""
        raise ModelUnavailableError(self.reason)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Raises ModelUnavailableError."""
        raise ModelUnavailableError(self.reason)

    def stats(self) -> None:
        return None

    async def close(self) -> None:
        return None


def open_embedder(
    model: str,
    cache_dir: Path | None = None,
    device: Device = Device.CPU,
    settings: EmbedderSettings = EmbedderSettings(),  # noqa: B008
) -> Embedder | UnavailableEmbedder:
    """The embedder of a node, loaded; unavailable when the model is not installed, damaged or cannot be read.

    Blocks for the load (about 0.2 s for MiniLM). Raises UnknownModelError for a name that is no model, and
    InvalidRequestError for a device that is not there: a node must not start on a mistyped setting. CUDA runs the FP32
    graph: ONNX Runtime has no int8 kernels for it.
    """
    spec = resolve(model)
    precision = Precision.FP32 if device is Device.CUDA else Precision.INT8
    try:
        installed = store.find_or_build(model, cache_dir or store.default_cache_dir(), precision)
        return Embedder(TextEncoder(installed, threads=settings.threads, device=device), settings)
    except (ModelUnavailableError, HashMismatchError, ModelFormatError) as error:
        return UnavailableEmbedder(spec, error.message)
