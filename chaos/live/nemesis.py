"""What is done to the cluster, by name, and when: a seeded schedule of one fault after the other.

Invariant: a nemesis undoes what it did before it returns, whatever happens, and records what it did as an `Event` with its
two times. One fault at a time leaves a majority whole (but for ``all``, which leaves nobody), so whatever is lost or refused
then is the cluster's fault. Called by the runs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from chaos.live.cluster import LiveCluster
from chaos.live.network import Cut, both_ways
from chaos.live.process import NodeFailedError
from chaos.live.watch import Watch

LEADER_WAIT_S = 15.0
HEAL_WAIT_S = 20.0
GAP_S = (3.0, 5.0)
HOLD_S = (5.0, 8.0)
SKEWS_MS = (-5_000.0, -400.0, -150.0, 150.0, 400.0, 5_000.0)
"""Steps of a clock: within the tolerated offset, and far beyond it."""


class Event(msgspec.Struct, frozen=True):
    """One strike: who was hit, from when to when, and in words."""

    nemesis: str
    targets: tuple[str, ...]
    start_ms: float
    end_ms: float
    text: str


class Arena:
    """What a nemesis works with."""

    def __init__(self, cluster: LiveCluster, watch: Watch, rng: random.Random, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.watch = watch
        self.rng = rng
        self.say = say
        self.events: list[Event] = []
        self.problems: list[str] = []

    def leader(self) -> str | None:
        """The leader that most of the nodes' last words name."""
        named = [s.leader for s in map(self.watch.newest, self.cluster.names) if s is not None and s.leader is not None]
        return max(set(named), key=named.count) if named else None

    def any_node(self) -> str:
        return self.rng.choice(self.cluster.names)

    def hold_s(self) -> float:
        return self.rng.uniform(*HOLD_S)

    async def restart(self, name: str) -> None:
        try:
            await self.cluster.restart(name)
        except NodeFailedError as error:
            self.problems.append(str(error))

    def note(self, nemesis: str, targets: Sequence[str], since: float, text: str) -> None:
        self.events.append(Event(nemesis, tuple(targets), since * 1e3, time.monotonic() * 1e3, text))


Nemesis = Callable[[Arena], Awaitable[None]]


async def kill(arena: Arena) -> None:
    await _kill(arena, "kill", arena.any_node())


async def leader(arena: Arena) -> None:
    target = arena.leader()
    if target is not None:
        await _kill(arena, "leader", target)


async def _kill(arena: Arena, nemesis: str, target: str) -> None:
    arena.say(f"{nemesis}: kill -9 {target}")
    since = time.monotonic()
    arena.cluster.nodes[target].kill()
    if nemesis == "leader":
        await arena.watch.wait_for(lambda: arena.leader() not in (None, target), LEADER_WAIT_S)
    await asyncio.sleep(arena.hold_s())
    await arena.restart(target)
    arena.note(nemesis, [target], since, f"kill -9 {target}")


async def wipe(arena: Arena) -> None:
    """A node comes back with an empty disk."""
    target = arena.any_node()
    arena.say(f"wipe: kill -9 {target} and delete its disk")
    since = time.monotonic()
    node = arena.cluster.nodes[target]
    node.kill()
    arena.cluster.empty_disk(target)
    await asyncio.sleep(arena.rng.uniform(1.0, 3.0))
    await arena.restart(target)
    arena.note("wipe", [target], since, f"{target} lost its disk")


async def pause(arena: Arena) -> None:
    target = arena.any_node()
    arena.say(f"pause: SIGSTOP {target}")
    since = time.monotonic()
    arena.cluster.nodes[target].pause()
    try:
        await asyncio.sleep(arena.hold_s() + arena.rng.choice((0.0, 0.0, 4.0)))
    finally:
        arena.cluster.nodes[target].resume()
    arena.note("pause", [target], since, f"SIGSTOP {target}")


async def partition(arena: Arena) -> None:
    names = arena.cluster.names
    minority = arena.rng.sample(names, arena.rng.randint(1, (len(names) - 1) // 2))
    rest = [name for name in names if name not in minority]
    group = "+".join(minority)
    style = arena.rng.choice(("both ways", "deaf", "mute", "bridge", "loss"))
    cuts = both_ways(minority, rest)
    if style == "deaf":
        cuts = [cut for cut in cuts if cut.listener in minority]
    elif style == "mute":
        cuts = [cut for cut in cuts if cut.speaker in minority]
    elif style == "bridge":
        cuts = both_ways(minority[:1], rest[:1])
        group = f"{minority[0]} | {rest[0]}"
    elif style == "loss":
        percent = arena.rng.choice((10, 20, 40))
        cuts = [Cut(a, b, percent) for a in names for b in names if a != b]
        group, minority = f"{percent} % of all packets", []
    arena.say(f"partition: {style}, {group}")
    since = time.monotonic()
    try:
        await arena.cluster.cut(cuts)
        await asyncio.sleep(arena.hold_s() + arena.rng.choice((0.0, 4.0)))
    finally:
        await arena.cluster.cut([])
    arena.note("partition", minority, since, f"{style}: {group}")


async def bucket(arena: Arena) -> None:
    arena.say("bucket: nobody can reach it")
    since = time.monotonic()
    arena.cluster.bucket.take_away()
    try:
        await asyncio.sleep(arena.hold_s() + arena.rng.choice((0.0, 6.0)))
    finally:
        arena.cluster.bucket.give_back()
    arena.note("bucket", [], since, "bucket away")


async def redis(arena: Arena) -> None:
    server = arena.cluster.redis
    assert server is not None
    freeze = arena.rng.random() < 0.5
    arena.say(f"redis: {'frozen' if freeze else 'killed'}")
    since = time.monotonic()
    (server.freeze if freeze else server.kill)()
    try:
        await asyncio.sleep(arena.hold_s())
    finally:
        if freeze:
            server.thaw()
        else:
            await server.start()
    arena.note("redis", [], since, "frozen" if freeze else "killed")


async def clock(arena: Arena) -> None:
    clocks = arena.cluster.clocks
    assert clocks is not None
    target, skew_ms = arena.any_node(), arena.rng.choice(SKEWS_MS)
    arena.say(f"clock: {target} steps by {skew_ms:+.0f} ms")
    since = time.monotonic()
    clocks.set(target, skew_ms)
    try:
        await asyncio.sleep(arena.hold_s())
    finally:
        clocks.set(target, 0)
    arena.note("clock", [target], since, f"{target} {skew_ms:+.0f} ms")


async def disk(arena: Arena) -> None:
    target = arena.any_node()
    arena.say(f"disk: {target} has no space left")
    since = time.monotonic()
    node, space = arena.cluster.nodes[target], arena.cluster.disks[target]
    space.fill()
    try:
        await asyncio.sleep(arena.hold_s())
    finally:
        space.free()
    text = f"{target} full"
    try:
        if not node.is_running:
            text += ", it ended"
            raise NodeFailedError
        await node.ready(HEAL_WAIT_S)
    except NodeFailedError:
        # Ending on a full disk is a fair answer; not serving again once there is space, even after a restart, is not.
        node.kill()
        await arena.restart(target)
        text += ", restarted"
    arena.note("disk", [target], since, text)


async def rolling(arena: Arena) -> None:
    since = time.monotonic()
    for name in arena.rng.sample(arena.cluster.names, len(arena.cluster.names)):
        arena.say(f"rolling: restart {name}")
        try:
            await arena.cluster.nodes[name].stop()
        except NodeFailedError as error:
            arena.problems.append(str(error))
        await arena.restart(name)
    arena.note("rolling", arena.cluster.names, since, "rolling restart")


async def everyone(arena: Arena) -> None:
    arena.say("all: kill -9 of every node at the same instant")
    since = time.monotonic()
    for node in arena.cluster.nodes.values():
        node.signal_kill()
    for node in arena.cluster.nodes.values():
        node.kill()
    await asyncio.sleep(arena.rng.uniform(0.5, 2.0))
    await asyncio.gather(*(arena.restart(name) for name in arena.cluster.names))
    arena.note("all", arena.cluster.names, since, "kill -9 of all")


NEMESES: dict[str, Nemesis] = {
    "kill": kill,
    "leader": leader,
    "pause": pause,
    "partition": partition,
    "bucket": bucket,
    "redis": redis,
    "clock": clock,
    "disk": disk,
    "rolling": rolling,
    "all": everyone,
    "wipe": wipe,
}


def usable(names: Sequence[str], cluster: LiveCluster) -> tuple[list[str], dict[str, str]]:
    """Those of the named nemeses that can be had here, and why the others cannot."""
    skipped: dict[str, str] = {}
    if cluster.bucket.skipped is not None:
        skipped["bucket"] = cluster.bucket.skipped
    if cluster.redis is None or cluster.redis.skipped is not None:
        skipped["redis"] = "no Redis was asked for" if cluster.redis is None else str(cluster.redis.skipped)
    if cluster.clocks is None or cluster.clocks.skipped is not None:
        skipped["clock"] = "no clocks were asked for" if cluster.clocks is None else str(cluster.clocks.skipped)
    away = next((disk.skipped for disk in cluster.disks.values() if disk.skipped is not None), None)
    if not cluster.disks or away is not None:
        skipped["disk"] = away or "no disks were asked for"
    skipped = {name: why for name, why in skipped.items() if name in names}
    return [name for name in names if name not in skipped], skipped


async def torment(arena: Arena, names: Sequence[str], until: float, *, each_once: bool = False) -> None:
    """Strike again and again, each nemesis once before any comes twice, until that time of the monotonic clock; with
    ``each_once`` also past it, until every one has had its turn."""
    turn: list[str] = arena.rng.sample(names, len(names))
    while True:
        gap_s = arena.rng.uniform(*GAP_S)
        owed = each_once and len(arena.events) < len(names)
        if time.monotonic() + gap_s + HOLD_S[0] > until and not owed:
            return
        await asyncio.sleep(gap_s)
        if not turn:
            turn = arena.rng.sample(names, len(names))
        await NEMESES[turn.pop()](arena)
