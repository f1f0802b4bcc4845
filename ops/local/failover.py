"""`make demo-failover`: the leader dies under load, and everybody may watch what that costs.

The demo drives the running stack through the balancer, kills the leader's process with SIGKILL, waits until the others have
noticed and elected another, starts the dead node again, and then recalls every memory that was acknowledged. It fails (exit
status 1) when a request failed, a memory is lost, no leader was elected or the node did not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from ops.local import balancer
from ops.local.load import Load, Memory, batches
from ops.local.stack import Stack, StackError
from ops.local.web import get

STEADY_S = 5.0
AFTERMATH_S = 3.0
ELECTION_WAIT_S = 30.0
REJOIN_WAIT_S = 60.0
REPAIR_WAIT_S = 30.0
LOOK_EVERY_S = 0.25
BATCH = 100


class Event(msgspec.Struct, frozen=True):
    """Something that happened, in seconds since the load began."""

    at_s: float
    text: str


class Member(msgspec.Struct, frozen=True):
    """One node as another sees it, and whether the balancer sends it requests."""

    name: str
    role: str
    state: str
    heard_s: float
    in_rotation: bool


class Scene:
    """Everything that is shown: the load, who leads, the members, what happened. Written by the demo, read by the screens."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.began = time.monotonic()
        self.phase = "steady load"
        self.leader: str | None = None
        self.epoch = 0
        self.seen_by = ""
        self.members: list[Member] = []
        self.retries = 0
        self.events: list[Event] = []
        self.killed_at: float | None = None
        self.restarted_at: float | None = None
        self.dead_after_s: float | None = None
        self.elected_after_s: float | None = None
        self.missing_at_first = 0
        self.lost: list[Memory] = []
        self.verified = 0
        self.rejoined = False

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def tell(self, text: str) -> None:
        self.events.append(Event(self.elapsed_s, text))

    @property
    def passed(self) -> bool:
        return (
            self.load.failed == 0
            and not self.lost
            and self.elected_after_s is not None
            and self.rejoined
            and bool(self.load.acknowledged)
            and self.verified == len(self.load.acknowledged)
        )


Show = Callable[[Scene], None]


def demo_failover(rate: float, plain: bool) -> int:
    """Run it on the stack that is up. Returns the exit status."""
    stack = Stack.running()
    if stack is None or stack.alone or len(stack.node_names) < 3:
        raise StackError("The demo needs three nodes: make up")
    for name in stack.node_names:
        if (problem := stack.unsettled(name)) is not None:
            raise StackError(f"{name} {problem}; wait, or start afresh: make down up")

    from ops.local.screen import live_screen, plain_screen, verdict

    screen = plain_screen if plain or not sys.stdout.isatty() else live_screen
    with screen() as show:
        scene = asyncio.run(perform(stack, rate, show))
    print(verdict(scene))
    return 0 if scene.passed else 1


async def perform(stack: Stack, rate: float, show: Show) -> Scene:
    """The whole play; ``show`` is called a few times a second. The killed node runs again afterwards, whatever happens."""
    scene = Scene(Load(stack.layout.url, stack.key, rate))
    before = await asyncio.to_thread(balancer.retries, stack.layout)
    watching = asyncio.create_task(_watch(stack, scene, before, show))
    loading = asyncio.create_task(scene.load.run())
    victim = ""
    try:
        await asyncio.sleep(STEADY_S)
        victim = await _kill_leader(stack, scene)
        await _until(ELECTION_WAIT_S, lambda: _noticed(scene, victim))
        await asyncio.sleep(AFTERMATH_S)
        scene.phase = f"{victim} starts again"
        scene.tell(f"{victim} is started again, on its own disk")
        scene.restarted_at = time.monotonic()
        await asyncio.to_thread(stack.start_node, victim)
        process = stack.process(victim)
        await _until(REJOIN_WAIT_S, lambda: _whole(scene, victim) or process.pid is None)
        scene.rejoined = _whole(scene, victim) and process.pid is not None
        why = "did not come back" if process.pid is not None else "ended while starting"
        scene.tell(
            f"{victim} is back and gets requests" if scene.rejoined else f"{victim} {why}; its log: {process.log}"
        )
        scene.phase = "steady load"
        await asyncio.sleep(STEADY_S)
    finally:
        scene.load.stop.set()
        await loading
        if victim:
            await asyncio.to_thread(stack.start_node, victim)
    scene.phase = "recalling every acknowledged memory"
    await _verify(scene)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    show(scene)
    return scene


async def _kill_leader(stack: Stack, scene: Scene) -> str:
    await _until(ELECTION_WAIT_S, lambda: scene.leader is not None)
    victim = scene.leader
    if victim is None or victim not in stack.node_names:
        raise StackError(f"No leader to kill: {victim}")
    scene.phase = f"{victim} is dead"
    scene.tell(f"{victim}, the leader, is killed with SIGKILL; {scene.load.in_flight} requests are under way")
    scene.killed_at = time.monotonic()
    await asyncio.to_thread(stack.process(victim).kill)
    return victim


def _noticed(scene: Scene, victim: str) -> bool:
    return scene.dead_after_s is not None and scene.leader not in (None, victim)


def _whole(scene: Scene, victim: str) -> bool:
    back = [member for member in scene.members if member.name == victim]
    return bool(back) and back[0].state == "active" and back[0].in_rotation


async def _until(wait_s: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + wait_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


async def _verify(scene: Scene) -> None:
    """Recall everything. What a replica that was away has not heard of yet may be missing at first, not later."""
    left: list[Memory] = []
    acknowledged = list(scene.load.acknowledged)
    for batch in batches(acknowledged, BATCH):
        absent = await scene.load.missing(batch)
        left += absent
        scene.verified += len(batch) - len(absent)
    scene.missing_at_first = len(left)
    deadline = time.monotonic() + REPAIR_WAIT_S
    while left and time.monotonic() < deadline:
        await asyncio.sleep(1.0)
        found_before, left = len(left), await scene.load.missing(left)
        scene.verified += found_before - len(left)
    scene.lost = left


# -- watching


async def _watch(stack: Stack, scene: Scene, retries_before: int, show: Show) -> None:
    while True:
        seen = await asyncio.to_thread(_look, stack)
        if seen is not None:
            _note(scene, *seen)
        scene.retries = await asyncio.to_thread(balancer.retries, stack.layout) - retries_before
        show(scene)
        await asyncio.sleep(LOOK_EVERY_S)


def _look(stack: Stack) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, bool]] | None:
    """The belief of the first node that answers, in turn from the first."""
    rotation = balancer.in_rotation(stack.layout)
    for name in stack.node_names:
        if stack.process(name).pid is None:
            continue
        status, nodes = stack.status(name), get(f"{stack.node_url(name)}/admin/cluster/nodes", stack.key)
        if status.ok and nodes.ok:
            rows = nodes.json()
            return status.json(), rows["nodes"] if isinstance(rows, dict) else rows, rotation
    return None


def _note(scene: Scene, status: dict[str, Any], rows: list[dict[str, Any]], rotation: dict[str, bool]) -> None:
    """Take over what was seen, and tell what is new in it."""
    before = {member.name: member for member in scene.members}
    scene.seen_by = str(status.get("answered_by", ""))
    now = float(status.get("timestamp", 0))
    scene.members = [
        Member(
            str(row["node_id"]),
            str(row["role"]),
            str(row["status"]),
            max(0.0, now - float(row.get("last_heartbeat", now))),
            rotation.get(str(row["address"]), False),
        )
        for row in rows
    ]
    for member in scene.members:
        old = before.get(member.name)
        if old is not None and old.state != member.state:
            scene.tell(
                f"{member.name} is {'alive' if member.state == 'active' else member.state}, says {scene.seen_by}"
            )
        if old is not None and old.in_rotation != member.in_rotation:
            scene.tell(f"the balancer {'uses' if member.in_rotation else 'leaves out'} {member.name}")
        if member.state == "dead" and scene.killed_at is not None and scene.dead_after_s is None:
            scene.dead_after_s = time.monotonic() - scene.killed_at
    leader, epoch = status.get("leader"), int((status.get("leadership") or {}).get("epoch", 0))
    if scene.leader != leader and before:
        scene.tell(f"{leader} leads, epoch {epoch}" if leader else f"no leader, says {scene.seen_by}")
    if scene.killed_at is not None and leader and epoch > scene.epoch and scene.elected_after_s is None:
        scene.elected_after_s = time.monotonic() - scene.killed_at
    scene.leader, scene.epoch = leader, max(scene.epoch, epoch)
