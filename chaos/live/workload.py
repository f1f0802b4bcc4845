"""The load of a live run, in a process of its own: clients that store, change, forget, read and recall, and record all of it.

Half of the memories belong to one client each, so that what a read must show is known exactly; the others are written by all
clients at once. A memory whose write ended unsure is written no more: every later write of it could be excused by that one.

The process is started with one JSON argument (`Load`), runs until SIGTERM or its time is over, finishes what is under way and
ends. Called by the runs; also a command: ``python -m chaos.live.workload '{...}'``.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from chaos.live.client import TIMEOUT_S, Answer, Client, Request, pause_until
from chaos.live.history import (
    Kind,
    Operation,
    Outcome,
    Seen,
    content_of,
    encode,
    importance_of,
    seen_in,
)

_WORDS = [
    "harbor",
    "lantern",
    "maple",
    "river",
    "copper",
    "violin",
    "granite",
    "meadow",
    "orbit",
    "saffron",
    "thunder",
    "willow",
    "amber",
    "canyon",
    "drift",
    "ember",
    "falcon",
    "glacier",
    "hollow",
    "island",
    "juniper",
    "kettle",
    "lagoon",
    "marble",
    "nectar",
    "opal",
    "prairie",
    "quartz",
    "raven",
    "summit",
    "timber",
    "umber",
    "velvet",
    "walnut",
]
_MIX: tuple[tuple[Kind, float], ...] = (
    (Kind.STORE, 0.30),
    (Kind.CONTENT, 0.06),
    (Kind.IMPORTANCE, 0.10),
    (Kind.FORGET, 0.08),
    (Kind.STRONG_GET, 0.22),
    (Kind.EVENTUAL_GET, 0.12),
    (Kind.RECALL, 0.12),
)
SHARED_KEYS = 12
OWN_KEYS = 6
"""Memories a client has in hand at once; it takes up new ones as it goes."""
RENEW_EVERY = 6
"""One write in so many takes up a new memory, so that old ones rest and are only read."""
STRONG = {"X-Read-Consistency": "strong"}
EVENTUAL = {"X-Read-Consistency": "eventual"}


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """``rate`` is operations a second over all clients; ``first`` the number of the first operation."""

    urls: dict[str, str]
    out: str
    seed: int = 0
    clients: int = 32
    agents: int = 6
    rate: float = 30.0
    duration_s: float = 60.0
    timeout_s: float = TIMEOUT_S
    first: int = 1
    tag: str = "m"


class _Memories:
    """Which memories a client writes, and which it leaves alone."""

    def __init__(self, rng: random.Random, agents: int, prefix: str, count: int) -> None:
        self._rng = rng
        self._agents = agents
        self._prefix = prefix
        self._made = 0
        self._count = count
        self._hand: list[str] = []
        self.known: list[str] = []

    def _fresh(self) -> str:
        key = f"agent-{self._rng.randrange(self._agents)}/{self._prefix}{self._made}"
        self._made += 1
        self.known.append(key)
        return key

    def to_write(self, kind: Kind) -> str:
        if kind is Kind.STORE and (len(self._hand) < self._count or self._rng.random() < 1 / RENEW_EVERY):
            if len(self._hand) >= self._count:
                self._hand.pop(self._rng.randrange(len(self._hand)))
            self._hand.append(self._fresh())
            return self._hand[-1]
        return self._rng.choice(self._hand) if self._hand else self.to_write(Kind.STORE)

    def to_read(self) -> str:
        return self._rng.choice(self.known) if self.known else self._fresh()

    def retire(self, key: str) -> None:
        if key in self._hand:
            self._hand.remove(key)


class _Runner:
    def __init__(self, load: Load, out: BinaryIO) -> None:
        self._load = load
        self._out = out
        self._numbers = itertools.count(load.first)
        self._client = Client(load.urls, load.timeout_s)
        self._stop = asyncio.Event()
        rng = random.Random(load.seed)
        self._shared = _Memories(rng, load.agents, f"{load.tag}-s", SHARED_KEYS)

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        self._client.watch_for_hangs()
        deadline = time.monotonic() + self._load.duration_s
        await asyncio.gather(*(self._one(client, deadline) for client in range(self._load.clients)))
        await self._client.close()

    async def _one(self, client: int, deadline: float) -> None:
        rng = random.Random(f"{self._load.seed}/{client}")
        own = _Memories(rng, self._load.agents, f"{self._load.tag}-{client}-", OWN_KEYS)
        step_s = self._load.clients / self._load.rate
        due = time.monotonic() + rng.uniform(0, step_s)
        kinds, weights = zip(*_MIX, strict=True)
        while not self._stop.is_set() and due < deadline:
            await pause_until(due)
            if self._stop.is_set():
                break
            # Behind time after a slow answer: the rate is kept from here, lost turns are not made up for.
            due = max(due + step_s * rng.uniform(0.6, 1.4), time.monotonic())
            kind: Kind = rng.choices(kinds, weights)[0]
            memories = own if rng.random() < 0.6 else self._shared
            key = memories.to_write(kind) if kind.is_write else memories.to_read()
            operation = await perform(self._client, kind, key, next(self._numbers), client, rng)
            if kind.is_write and operation.outcome.is_unsure:
                memories.retire(key)
            self._out.write(encode(operation))
            self._out.flush()


async def perform(
    client: Client, kind: Kind, key: str, number: int, name: int, rng: random.Random, node: str | None = None
) -> Operation:
    """One operation on one memory, with the client's retry."""
    agent, _, memory = key.partition("/")
    request = _request(kind, agent, memory, number, " ".join(rng.sample(_WORDS, 5)))
    return _recorded(kind, key, number, name, await client.ask(request, node=node))


def _request(kind: Kind, agent: str, memory: str, number: int, text: str) -> Request:
    path = f"/v1/agents/{agent}/memories/{memory}"
    match kind:
        case Kind.STORE:
            body = {
                "agent_id": agent,
                "id": memory,
                "content": content_of(number, text),
                "importance": importance_of(number),
                "metadata": {"op": number},
            }
            return Request("POST", "/v1/memory/store", body, is_write=True)
        case Kind.CONTENT:
            return Request("PUT", path, {"content": content_of(number, text)}, is_write=True)
        case Kind.IMPORTANCE:
            return Request("PUT", path, {"importance": importance_of(number)}, is_write=True)
        case Kind.FORGET:
            return Request("POST", "/v1/memory/forget", {"agent_id": agent, "memory_ids": [memory]}, is_write=True)
        case Kind.STRONG_GET:
            return Request("GET", path, headers=STRONG)
        case Kind.EVENTUAL_GET:
            return Request("GET", path, headers=EVENTUAL)
        case _:
            return Request("POST", "/v1/memory/recall", {"agent_id": agent, "query": text, "top_k": 5})


def _recorded(kind: Kind, key: str, number: int, client: int, answer: Answer) -> Operation:
    operation = Operation(number, kind, key, client, answer.attempts, answer.outcome)
    if answer.outcome is not Outcome.OK or not isinstance(answer.body, dict):
        return operation
    if kind is Kind.FORGET:
        operation.found = answer.body.get("deleted_count", 0) > 0
    elif kind is Kind.RECALL:
        agent = key.partition("/")[0]
        found = {f"{agent}/{memory['id']}": seen_in(memory) for memory in answer.body.get("memories", [])}
        operation.others = {name: seen for name, seen in found.items() if seen is not None}
    elif not kind.is_write and answer.status == 200:
        operation.found, operation.seen = True, seen_in(answer.body)
        if operation.seen is None:
            operation.seen = Seen(-1, -1, -1)
    return operation


async def _run(load: Load, out: BinaryIO) -> None:
    runner = _Runner(load, out)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.stop)
    await runner.run()


def main(argument: str) -> None:
    load = msgspec.json.decode(argument, type=Load)
    with Path(load.out).open("ab") as out:
        asyncio.run(_run(load, out))


if __name__ == "__main__":
    main(sys.argv[1])
