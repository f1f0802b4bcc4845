"""Engines taking turns at the same work: what every comparison is made of.

The first of one round is the last of the next, so that a busy moment of the machine hits all of them. A question is asked
once in the whole run (per engine and round), so that no cache of query embeddings shortens the work of either side. Used by
the measurements.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ops.bench.load import Generator, Pass
from ops.bench.plan import Timing, timing
from ops.bench.servers import Server
from ops.bench.texts import facts

QUESTIONS_A_SECOND = 1500
"""Questions prepared for a pass; an engine that is faster begins again, and gains by it."""
QUESTIONS_A_SEED = 20_000


class Engine:
    """A server with its load generator; ``name`` tells engines of one server apart (see engines.connect)."""

    def __init__(self, server: Server, out: Path, name: str | None = None) -> None:
        self.server = server
        self.name = name or server.name
        self._clients = name or server.engine
        self._log = out / f"{self.name.replace(', ', '-').replace(' ', '-')}-load.log"
        self._generator: Generator | None = None

    @property
    def load(self) -> Generator:
        if self._generator is None:
            self._generator = Generator(self._clients, self.server.ports, self._log)
        return self._generator

    def close(self) -> None:
        if self._generator is not None:
            self._generator.close()
            self._generator = None


def turns(engines: Sequence[Engine], rounds: int) -> Iterator[Sequence[Engine]]:
    """The engines of each round."""
    for number in range(rounds):
        yield engines if number % 2 == 0 else engines[::-1]


def measure(
    engines: Sequence[Engine], rounds: int, what: str, size: int, clients: int, one: Callable[[Engine, int], Pass]
) -> list[Timing]:
    """``one(engine, round)`` for all of them, pooled by engine."""
    passes: dict[str, list[Pass]] = {engine.name: [] for engine in engines}
    cpu_s: dict[str, float] = dict.fromkeys(passes, 0.0)
    for number, turn in enumerate(turns(engines, rounds)):
        for engine in turn:
            before = engine.server.cpu_s()
            passes[engine.name].append(one(engine, number))
            cpu_s[engine.name] += engine.server.cpu_s() - before
    return [timing(name, what, size, clients, measured, cpu_s[name]) for name, measured in passes.items()]


class Questions:
    """An endless stream of questions, none twice."""

    def __init__(self, seed: int) -> None:
        self._stream = self._endless(seed)

    def take(self, count: int) -> list[str]:
        return [next(self._stream) for _ in range(count)]

    def slices(self, rounds: int, seconds: float) -> list[list[str]]:
        """The questions of each round of one measurement."""
        return [self.take(int(QUESTIONS_A_SECOND * seconds)) for _ in range(rounds)]

    def _endless(self, seed: int) -> Iterator[str]:
        while True:
            yield from (fact.question for fact in facts(QUESTIONS_A_SEED, seed))
            seed += 1


def recall_steps(engine: Engine, group: str, questions: list[str], top_k: int) -> dict[str, float]:
    """Where a recall's time goes, by the node's own account: step -> median ms."""
    samples: dict[str, list[float]] = {}
    for answer in engine.load.call("explain", group=group, questions=questions, top_k=top_k):
        for step, ms in _step_times(answer):
            samples.setdefault(step, []).append(ms)
    return {step: statistics.median(times) for step, times in samples.items()}


def _step_times(answer: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every time that an answer tells outside its memories: numbers under a key in `_ms`, tables of steps under one in `_us`."""
    if not isinstance(answer, dict):
        return
    for key, value in answer.items():
        name = f"{path}.{key}" if path else key
        if key.endswith("_ms") and isinstance(value, int | float):
            yield name.removesuffix("_ms"), float(value)
        elif key.endswith("_us") and isinstance(value, dict):
            yield from ((step, us / 1000) for step, us in value.items())
        elif key != "memories":
            yield from _step_times(value, name)
