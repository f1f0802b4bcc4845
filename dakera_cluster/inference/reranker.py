"""The reranker of a node: async in front, one thread of its own behind, a bounded number of texts and a bounded time.

How it runs. `score` gives a question and its candidates, best first, to the reranker's thread and waits. The thread scores
them in that order, pass by pass, and before each pass looks at the clock: what time leaves unscored is the tail, which keeps
its place behind what was scored. Waiting behind other requests counts as time, so that a busy node answers with
fewer scores and never late by more than one pass. It is a thread beside the embedder's: a question's pairs cost a
hundred times its embedding, and no other request may wait for them.

Invariants: scores are those of the first texts, in order; a cancelled request costs no further pass; not more than
`max_waiting` requests wait, what comes beyond is answered without a score at once.

Created by the node's wiring; used by memory/recall.py. Confined to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.inference import store
from dakera_cluster.inference.models import (
    DEFAULT_RERANKER,
    ModelFormatError,
    Precision,
    Task,
    UnknownModelError,
    resolve,
)
from dakera_cluster.inference.onnx_pass import Device
from dakera_cluster.inference.pairs import PairScorer
from dakera_cluster.inference.sources import HashMismatchError
from dakera_cluster.model.errors import ModelUnavailableError

log = logging.getLogger(__name__)

OUT_OF_TIME = "no time was left to score any candidate"
TOO_MANY_WAIT = "too many requests wait for the reranker"
SHUTTING_DOWN = "the node is shutting down"
TURNED_OFF = "reranking by a cross-encoder is turned off (DAKERA_RERANKER_ENABLED)"


class RerankerSettings(msgspec.Struct, frozen=True):
    """Bounds. ``candidates``: of a request, whatever its top_k, so that a short list is the head of a long one."""

    threads: int = 1
    candidates: int = 30
    budget_ms: float = 2000.0
    max_waiting: int = 32


class Scores(msgspec.Struct, frozen=True):
    """``logits``: float64[m], of the first m of the texts given. ``reason``: why m is 0 where it is."""

    logits: NDArray[np.float64]
    reason: str = ""


class Reranker:
    """A pair model that is there. See the module's docstring for how it runs."""

    available = True
    reason = ""

    def __init__(
        self,
        scorer: PairScorer,
        settings: RerankerSettings = RerankerSettings(),  # noqa: B008
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = scorer.spec.name
        self.candidates = settings.candidates
        self._scorer = scorer
        self._settings = settings
        self._clock_s = clock_s
        self._waiting = 0
        self._closing = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reranker")

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        """Logits of the first `candidates` texts at most, as many as the time allows. Never fails for want of time or room;
        a model that fails on its input scores nothing and says so."""
        if self._closing:
            return _none(SHUTTING_DOWN)
        if self._waiting >= self._settings.max_waiting:
            return _none(TOO_MANY_WAIT)
        request = _Request(query, list(texts[: self.candidates]), self._clock_s() + self._settings.budget_ms / 1000)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, request)
        finally:
            request.dropped = True
            self._waiting -= 1

    async def close(self) -> None:
        """Lets the running pass end, scores nothing more, and joins the thread. May be called twice."""
        self._closing = True
        await asyncio.to_thread(self._thread.shutdown)

    def _run(self, request: _Request) -> Scores:
        logits: list[NDArray[np.float64]] = []
        try:
            if self._is_over(request):
                return _none(SHUTTING_DOWN if self._closing else OUT_OF_TIME)
            pairs = self._scorer.pairs(request.query, request.texts)
            for group in self._scorer.batches(pairs):
                if self._is_over(request):
                    break
                logits.append(self._scorer.forward([pairs[place] for place in group]))
        except Exception as error:
            # The candidates are in a good order already: a failing second opinion must not take the answer away.
            log.exception("the reranker %s failed", self.name)
            return _none(f"the reranker failed: {error}")
        if request.texts and not logits:
            return _none(OUT_OF_TIME)
        return Scores(np.concatenate([np.zeros(0), *logits]))

    def _is_over(self, request: _Request) -> bool:
        return self._closing or request.dropped or self._clock_s() >= request.deadline_s


class _Request:
    """What waits for the thread. ``dropped`` is set by the loop, read by the thread."""

    __slots__ = ("deadline_s", "dropped", "query", "texts")

    def __init__(self, query: str, texts: list[str], deadline_s: float) -> None:
        self.query = query
        self.texts = texts
        self.deadline_s = deadline_s
        self.dropped = False


def _none(reason: str) -> Scores:
    return Scores(np.zeros(0), reason)


class UnavailableReranker:
    """A node without a pair model: its reason goes into the answers, and candidates keep their late order."""

    available = False
    candidates = 0

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason

    async def score(self, query: str, texts: Sequence[str]) -> Scores:
        return _none(self.reason)

    async def close(self) -> None:
        return None


def open_reranker(
    model: str = DEFAULT_RERANKER,
    cache_dir: Path | None = None,
    device: Device = Device.CPU,
    settings: RerankerSettings = RerankerSettings(),  # noqa: B008
    *,
    enabled: bool = True,
) -> Reranker | UnavailableReranker:
    """The reranker of a node, loaded; unavailable when it is turned off, not installed, damaged or no pair model.

    Blocks for the load. Raises UnknownModelError for a name that is no reranker's (a directory that is not there only makes
    it unavailable), and InvalidRequestError for a device that is not there. CUDA runs the FP32 graph, as for embeddings.
    """
    if "/" not in model:
        resolve(model, Task.RERANKER)
    if not enabled:
        return UnavailableReranker(model, TURNED_OFF)
    precision = Precision.FP32 if device is Device.CUDA else Precision.INT8
    try:
        installed = store.find_or_build(model, cache_dir or store.default_cache_dir(), precision, Task.RERANKER)
        return Reranker(PairScorer(installed, threads=settings.threads, device=device), settings)
    except (ModelUnavailableError, HashMismatchError, ModelFormatError, UnknownModelError) as error:
        return UnavailableReranker(model, error.message)
