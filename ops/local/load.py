"""Steady traffic through the balancer, and a ledger of everything that was acknowledged.

Open loop: requests are sent when they are due, not when earlier ones are answered, and a latency counts from the moment a
request was due, so a stall is seen in full. Half of the requests store a memory under an id of its own, the other half recall
what was acknowledged. The client itself repeats nothing: an answer other than 200 is a failed request. Called by the failover
demo and by tests.
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections import Counter, deque
from collections.abc import Iterator

import aiohttp
import msgspec

REQUEST_TIMEOUT_S = 15.0
MAX_IN_FLIGHT = 512
AGENTS = 100
RECENT_S = 5.0
VERIFY_AT_ONCE = 8
_TOPICS = (
    "trains to Vienna",
    "the blue bicycle",
    "a dentist's bill",
    "chess with Maria",
    "tomato seeds",
    "jazz records",
)


class Stores(enum.Enum):
    """What a store says to the balancer. ``REPEATABLE``: its id as Idempotency-Key, so it may be repeated after it was sent.
    ``PLAIN``: nothing, as the official clients do; only a store that reached nobody is repeated."""

    REPEATABLE = enum.auto()
    PLAIN = enum.auto()


class Memory(msgspec.Struct, frozen=True):
    """What was stored. ``content`` holds a word that no other memory has."""

    id: str
    agent: str
    content: str


class Done(msgspec.Struct, frozen=True):
    """One finished request: monotonic time, milliseconds since it was due, what went wrong (empty: nothing)."""

    at: float
    latency_ms: float
    kind: str
    problem: str


class Load:
    """``await run()`` until ``stop`` is set; figures may be read at any time."""

    def __init__(
        self, url: str, key: str | None, rate: float, stores: Stores = Stores.REPEATABLE, seed: int = 1
    ) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._rate = rate
        self._stores = stores
        self._rng = random.Random(seed)
        self._run = f"{time.time_ns():x}"
        self._number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.stop = asyncio.Event()
        self.done: list[Done] = []
        self.acknowledged: list[Memory] = []
        self.problems: Counter[str] = Counter()
        self._recent: deque[Done] = deque()

    async def run(self) -> None:
        """Send until ``stop``; then wait for what is in flight."""
        async with self._session() as session:
            start, sent = time.monotonic(), 0
            while not self.stop.is_set():
                due = start + sent / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                sent += 1
                if len(self._tasks) >= MAX_IN_FLIGHT:
                    self._note(due, "store", "not sent: too many requests unanswered")
                    continue
                task = asyncio.create_task(self._one(session, due, sent))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks)

    @property
    def ok(self) -> int:
        return len(self.done) - self.failed

    @property
    def failed(self) -> int:
        return sum(self.problems.values())

    @property
    def in_flight(self) -> int:
        return len(self._tasks)

    def latencies_ms(self, since: float, until: float = float("inf")) -> list[float]:
        """Sorted latencies of requests that ended in a span of monotonic time."""
        return sorted(done.latency_ms for done in self.done if since <= done.at < until)

    def recent(self) -> list[Done]:
        """What ended in the last seconds."""
        oldest = time.monotonic() - RECENT_S
        while self._recent and self._recent[0].at < oldest:
            self._recent.popleft()
        return list(self._recent)

    async def missing(self, memories: list[Memory]) -> list[Memory]:
        """Those of ``memories`` that a recall of their content does not bring back."""
        gate = asyncio.Semaphore(VERIFY_AT_ONCE)
        async with self._session() as session:

            async def found(memory: Memory) -> bool:
                async with gate:
                    return await self._recalls(session, memory)

            results = await asyncio.gather(*(found(memory) for memory in memories))
        return [memory for memory, there in zip(memories, results, strict=True) if not there]

    # -- one request

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=MAX_IN_FLIGHT)
        return aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector)

    async def _one(self, session: aiohttp.ClientSession, due: float, number: int) -> None:
        known = self.acknowledged
        if number % 2 and known:
            memory = known[self._rng.randrange(len(known))]
            problem, _ = await self._post(session, "/v1/memory/recall", _recall_body(memory), {})
            self._note(due, "recall", problem)
            return
        memory = self._next()
        body: dict[str, object] = {"agent_id": memory.agent, "id": memory.id, "content": memory.content}
        headers = {"Idempotency-Key": memory.id} if self._stores is Stores.REPEATABLE else {}
        problem, _ = await self._post(session, "/v1/memory/store", body, headers)
        if not problem:
            self.acknowledged.append(memory)
        self._note(due, "store", problem)

    def _next(self) -> Memory:
        self._number += 1
        word = f"w{self._run}x{self._number}"
        topic = _TOPICS[self._number % len(_TOPICS)]
        return Memory(f"mem_{word}", f"agent-{self._number % AGENTS}", f"{word} is about {topic}")

    async def _recalls(self, session: aiohttp.ClientSession, memory: Memory) -> bool:
        _, answer = await self._post(session, "/v1/memory/recall", _recall_body(memory), {})
        return any(found.get("id") == memory.id for found in answer.get("memories", []))

    async def _post(
        self, session: aiohttp.ClientSession, path: str, body: dict[str, object], headers: dict[str, str]
    ) -> tuple[str, dict[str, list[dict[str, object]]]]:
        """What went wrong (empty: nothing), and the answer."""
        try:
            async with session.post(self._url + path, json=body, headers=headers) as response:
                if response.status == 200:
                    return "", await response.json()
                text = " ".join((await response.text()).split())
                return f"{response.status} {text[:120]}", {}
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"{type(error).__name__} {error}"[:120].strip(), {}

    def _note(self, due: float, kind: str, problem: str) -> None:
        now = time.monotonic()
        done = Done(now, 1000.0 * (now - due), kind, problem)
        self.done.append(done)
        self._recent.append(done)
        if problem:
            self.problems[problem] += 1


def _recall_body(memory: Memory) -> dict[str, object]:
    return {"agent_id": memory.agent, "query": memory.content, "top_k": 10}


def percentile(ordered: list[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def batches(memories: list[Memory], size: int) -> Iterator[list[Memory]]:
    for start in range(0, len(memories), size):
        yield memories[start : start + size]
