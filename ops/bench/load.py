"""The load generator: one process per engine, told what to do by lines of JSON, so that its own work and garbage are not the
server's, nor the other engine's.

    {"do": "recall", "group": ..., "questions": [...], "clients": 8, "seconds": 4, "top_k": 10}
    -> {"latencies_ms": [...], "wall_s": 4.01, "cpu_s": 1.2}

Clients are threads with a connection each; they wait for one another and then work until the time or the work is over.
Of several ports each client keeps to one, in turn. Used by `ops.bench.run` through `Generator`; `python -m ops.bench.load
ENGINE PORT[,PORT...]` is the process.
"""

from __future__ import annotations

import http.client
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from dakera_cluster.inference.models import TextKind
from ops.bench.engines import Connection, NodeConnection, Vectors, connect, new_encoder


class Pass(msgspec.Struct):
    """One timed pass. ``latencies_ms`` in order of completion; ``cpu_s`` is the generator's own processor time."""

    latencies_ms: list[float]
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return len(self.latencies_ms) / self.wall_s


class Mixed(msgspec.Struct):
    """A pass in which requests may fail: ``done`` counts those too."""

    done: Pass
    problems: list[str]


class Generator:
    """The other end of the pipe."""

    def __init__(self, engine: str, ports: Sequence[int], log: Path) -> None:
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ops.bench.load", engine, ",".join(map(str, ports))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._log = log

    def call(self, do: str, **arguments: Any) -> Any:
        """Raises RuntimeError with the generator's own words when the work failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended; see {self._log}")
        answer = msgspec.json.decode(line)
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def timed(self, do: str, **arguments: Any) -> Pass:
        return msgspec.convert(self.call(do, **arguments), Pass)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _Worker:
    def __init__(self, engine: str, ports: Sequence[int]) -> None:
        self._open: Callable[[int], Connection] = lambda index: connect(engine, ports[index % len(ports)])
        self._connections: list[Connection] = []

    def recall(self, group: str, questions: list[str], clients: int, seconds: float, top_k: int) -> Pass:
        def ask(connection: Connection, index: int) -> None:
            connection.recall(group, questions[index % len(questions)], top_k)

        return self._drive(ask, clients, seconds, None)

    def recall_each(self, groups: list[str], questions: list[str], clients: int, seconds: float, top_k: int) -> Pass:
        """The question at i goes to the group at i."""

        def ask(connection: Connection, index: int) -> None:
            index %= len(questions)
            connection.recall(groups[index], questions[index], top_k)

        return self._drive(ask, clients, seconds, None)

    def recall_all(self, groups: list[str], questions: list[str], clients: int, top_k: int) -> Pass:
        """Each group once, with the question at its place."""

        def ask(connection: Connection, index: int) -> None:
            connection.recall(groups[index], questions[index], top_k)

        return self._drive(ask, clients, None, len(groups))

    def store(self, group: str, keys: list[str], texts: list[str], clients: int, seconds: float) -> Pass:
        def put(connection: Connection, index: int) -> None:
            connection.store(group, keys[index], texts[index])

        return self._drive(put, clients, seconds, len(texts))

    def store_batches(
        self, group: str, keys: list[str], texts: list[str], vectors: str | None, size: int, clients: int
    ) -> Pass:
        """Batches of ``size`` texts; ``vectors`` is a .npy file with a row per text, or None to let the engine embed."""
        rows: Vectors | None = None if vectors is None else np.load(vectors)
        starts = range(0, len(texts), size)

        def put(connection: Connection, index: int) -> None:
            part = slice(starts[index], starts[index] + size)
            connection.store_batch(group, keys[part], texts[part], None if rows is None else rows[part])

        return self._drive(put, clients, None, len(starts))

    def fill_groups(self, groups: list[str], texts: list[str], vectors: str, each: int, clients: int) -> Pass:
        """``each`` texts for every group, taken in turn from ``texts`` and their ``vectors``, in one batch a group."""
        rows: Vectors = np.load(vectors)

        def put(connection: Connection, index: int) -> None:
            chosen = [(index * each + step) % len(texts) for step in range(each)]
            keys = [f"{groups[index]}-{step}" for step in range(each)]
            connection.store_batch(groups[index], keys, [texts[at] for at in chosen], rows[chosen])

        return self._drive(put, clients, None, len(groups))

    def mixed(
        self, groups: list[str], writers: list[str], questions: list[str], texts: list[str], clients: int, seconds: float,
        start: int, top_k: int,
    ) -> Mixed:  # fmt: skip
        """Recalls of ``groups`` and stores for ``writers`` in turn, from number ``start`` on. A request that fails is counted
        and the client goes on."""
        problems: list[str] = []

        def work(connection: Connection, index: int) -> None:
            number = start + index
            half = number // 2
            try:
                if number % 2:
                    connection.recall(groups[half % len(groups)], questions[half % len(questions)], top_k)
                else:
                    connection.store(writers[half % len(writers)], f"mixed-{number}", texts[half % len(texts)])
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                problems.append(f"{type(error).__name__}: {error}"[:200])

        return Mixed(self._drive(work, clients, seconds, None), problems)

    def found(self, group: str, questions: list[str], expected: list[str], top_k: int) -> float:
        """Share of questions whose memory is among the first ``top_k``."""
        connection = self._connection(0)
        pairs = zip(questions, expected, strict=True)
        return sum(text in connection.recall(group, question, top_k) for question, text in pairs) / len(questions)

    def explain(self, group: str, questions: list[str], top_k: int) -> list[dict[str, Any]]:
        connection = self._connection(0)
        assert isinstance(connection, NodeConnection)
        return [connection.explain(group, question, top_k) for question in questions]

    def embed(self, texts: list[str], size: int, to: str) -> Pass:
        """The bare model: batches of ``size``, vectors written to the .npy file ``to`` (not timed)."""
        encoder = new_encoder()
        encoder.encode(texts[:size], TextKind.PASSAGE)
        parts = []

        def encode(_: Connection | None, index: int) -> None:
            parts.append(encoder.encode(texts[index * size : (index + 1) * size], TextKind.PASSAGE).vectors)

        timed = _timed(encode, [None], None, -(-len(texts) // size))
        np.save(to, np.concatenate(parts))
        return timed

    def _connection(self, index: int) -> Connection:
        while len(self._connections) <= index:
            self._connections.append(self._open(len(self._connections)))
        return self._connections[index]

    def _drive(
        self, work: Callable[[Connection, int], None], clients: int, seconds: float | None, count: int | None
    ) -> Pass:
        return _timed(work, [self._connection(index) for index in range(clients)], seconds, count)


def _timed(
    work: Callable[[Any, int], None], connections: Sequence[Any], seconds: float | None, count: int | None
) -> Pass:
    """``work(connection, i)`` for i = 0, 1, ... over all connections at once, until ``count`` or ``seconds`` is reached."""
    numbers = itertools.count()
    latencies: list[float] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(connections) + 1)
    deadline = [0.0]

    def client(connection: Any) -> None:
        barrier.wait()
        try:
            while not errors:
                index = next(numbers)
                began = time.perf_counter()
                if (count is not None and index >= count) or (seconds is not None and began >= deadline[0]):
                    return
                work(connection, index)
                latencies.append((time.perf_counter() - began) * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    began, cpu_before = time.perf_counter(), time.process_time()
    deadline[0] = began + (seconds or 0.0)
    barrier.wait()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Pass(latencies, time.perf_counter() - began, time.process_time() - cpu_before)


def main() -> int:
    engine, ports = sys.argv[1], [int(port) for port in sys.argv[2].split(",")]
    worker = _Worker(engine, ports)
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
