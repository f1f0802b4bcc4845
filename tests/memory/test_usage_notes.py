"""When access counts are written, and that each access counts once whatever becomes of a write: three replicas in one process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.inference.models import resolve
from dakera_cluster.inference.service import UnavailableEmbedder
from dakera_cluster.memory import usage
from dakera_cluster.memory.core import Core, MemorySettings
from dakera_cluster.memory.events import EventBus
from dakera_cluster.memory.usage import UsageNotes
from dakera_cluster.model.errors import DakeraError, OverloadedError, ServiceUnavailableError
from dakera_cluster.model.ids import NodeId, agent_namespace, node_tag
from dakera_cluster.model.rows import Kind, decode_usage
from dakera_cluster.shard import ops
from tests.support.replicas import NAMESPACE, REQUEST, World, until

NODES = ("a", "b", "c")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield await made.born(*NODES)
    await made.close()


def notes_at(world: World, name: str) -> UsageNotes:
    node = world[name]
    embedder = UnavailableEmbedder(resolve("minilm"), "not installed")
    core = Core(
        node.router, node.replicator, world.catalog, embedder, world.now_ms, MemorySettings(), EventBus(world.now_ms)
    )
    return UsageNotes(core, node_tag(NodeId(name)))


def counted(world: World, name: str, row_id: str, namespace: str = NAMESPACE) -> int:
    """Accesses of a memory, as a node's own replica has them."""
    node = world[name]
    [body] = node.host.replica(node.shard_for(namespace, row_id)).read(namespace, Kind.USAGE, [row_id])
    return decode_usage(body).count if body is not None else 0


async def counts_of(world: World, *counts: int) -> None:
    """Wait until the memories m0, m1, ... have these counts on node a, which may hear of a write after the quorum."""
    await until(lambda: [counted(world, "a", f"m{i}") for i in range(len(counts))] == list(counts))


async def everywhere(world: World, row_id: str, count: int) -> None:
    await until(lambda: [counted(world, name, row_id) for name in NODES] == [count] * len(NODES))


def is_apply(payload: bytes) -> bool:
    return isinstance(ops.decode_request(payload), ops.Apply)


async def test_accesses_are_written_together_once_the_first_has_waited(world: World) -> None:
    notes = notes_at(world, "a")
    for _ in range(3):
        notes.note(NAMESPACE, ["m"])
        await notes.write_due()
    assert counted(world, "a", "m") == 0
    world.shift_ms += int(usage.PATIENCE_S * 1000)
    await notes.write_due()
    await everywhere(world, "m", 3)
    replica = world["a"].host.replica(world["a"].shard_for(NAMESPACE, "m"))
    await until(lambda: replica.sequence == 1)


async def test_while_many_memories_wait_they_wait_longer_and_the_first_go_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "BUSY_PENDING", 4)
    notes = notes_at(world, "a")
    notes.note(NAMESPACE, ["m0", "m1", "m2"])
    world.shift_ms += int(usage.PATIENCE_S * 1000)
    notes.note(NAMESPACE, ["m3", "m4", "m0"])
    await notes.write_due()
    assert counted(world, "a", "m0") == 0
    world.shift_ms += int((usage.BUSY_PATIENCE_S - usage.PATIENCE_S) * 1000)
    await notes.write_due()
    await counts_of(world, 2, 1, 1, 0, 0)


async def test_no_more_wait_than_there_is_room_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_PENDING", 8)
    notes = notes_at(world, "a")
    notes.note(NAMESPACE, [f"m{i}" for i in range(10)])
    await notes.write_due()
    await counts_of(world, *[1] * 4, *[0] * 6)
    await notes.close()
    await counts_of(world, *[1] * 8, *[0] * 2)


async def test_a_write_that_reached_nobody_loses_no_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(build: object) -> None:
        raise OverloadedError("not now")

    notes = notes_at(world, "a")
    with monkeypatch.context() as refusing:
        refusing.setattr(world["a"].replicator, "write", refused)
        for _ in range(2):
            notes.note(NAMESPACE, ["m"])
            with pytest.raises(OverloadedError):
                await notes.flush()
    notes.note(NAMESPACE, ["m"])
    await notes.flush()
    await everywhere(world, "m", 3)


async def test_a_write_whose_answers_were_lost_is_not_counted_twice(world: World) -> None:
    def lost(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if method == REQUEST and is_apply(payload):
            raise ServiceUnavailableError("the answer was lost", ambiguous=True)

    notes = notes_at(world, "a")
    notes.note(NAMESPACE, ["m"])
    await notes.flush()
    world.wire.after = lost
    for _ in range(3):
        notes.note(NAMESPACE, ["m"])
        with pytest.raises(DakeraError):
            await notes.flush()
    await until(lambda: counted(world, "a", "m") == 4)
    world.wire.after = None
    notes.note(NAMESPACE, ["m"])
    await notes.flush()
    await everywhere(world, "m", 5)


async def test_a_write_that_is_broken_off_by_the_end_is_not_counted_twice(world: World) -> None:
    sent, may_go = asyncio.Event(), asyncio.Event()

    async def held(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        if method == REQUEST and is_apply(payload):
            sent.set()
            await may_go.wait()

    notes = notes_at(world, "a")
    world.wire.before = held  # type: ignore[assignment]
    notes.note(NAMESPACE, ["m", "n"])
    writing = asyncio.create_task(notes.flush())
    await sent.wait()
    await until(lambda: counted(world, "a", "m"))
    notes.note(NAMESPACE, ["m"])
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    may_go.set()
    await notes.close()
    await everywhere(world, "m", 2)
    await everywhere(world, "n", 1)


async def test_what_cannot_be_written_keeps_nothing_else_from_it(world: World) -> None:
    other = next(
        name
        for name in (agent_namespace(f"agent-{i}") for i in range(100))
        if world["a"].shard_for(name, "m") != world["a"].shard_for(NAMESPACE, "m")
    )

    def refused(source: NodeId, target: NodeId, method: str, payload: bytes) -> None:
        request = ops.decode_request(payload) if method == REQUEST else None
        if isinstance(request, ops.Apply) and request.shard == world["a"].shard_for(NAMESPACE, "m"):
            raise ServiceUnavailableError("not now", ambiguous=False)

    world.wire.before = refused
    notes = notes_at(world, "a")
    notes.note(NAMESPACE, ["m"])
    notes.note(other, ["m"])
    with pytest.raises(DakeraError):
        await notes.flush()
    await until(lambda: counted(world, "b", "m", other) == 1)
    assert counted(world, "b", "m") == 0
    world.wire.before = None
    await notes.flush()
    await everywhere(world, "m", 1)
    assert counted(world, "b", "m", other) == 1
