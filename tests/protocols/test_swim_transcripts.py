"""Golden stories: what a cluster is told to do, and everything its members come to believe.

Each file of ``tests/transcripts/swim_*.txt`` is a list of blocks: commands, a line ``----``, and the expected answer: the
changes of belief since the block began, as ``+milliseconds observer: change subject``, or the answer of a ``show``. Write
a story without answers and run with ``DAKERA_WRITE_TRANSCRIPTS=1`` to have them filled in; then read them.

    settle N seed S [loss F]     N members that know each other
    start NAME at I [boot B] [seeds I ...]      a fresh process at address I
    run MS | crash NAME | leave NAME | pause NAME | resume NAME
    partition NAMES | heal | mute NAME (its packets are lost, it hears)
    meta NAME KEY VALUE | publish NAME EPOCH VERSION | show NAME
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chaos.sim.net import LinkProfile
from chaos.sim.swim_world import SwimWorld, address_of
from dakera_cluster.model.ids import NodeId
from dakera_cluster.protocols.packets import ClusterState
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.protocols.swim_events import (
    Conflict,
    Effect,
    Leave,
    LeaveComplete,
    MemberEvent,
    PublishState,
    StateAdvanced,
    UpdateMeta,
)

STORIES = sorted((Path(__file__).parents[1] / "transcripts").glob("swim_*.txt"))


class Teller:
    """Carries commands out and writes down what follows."""

    def __init__(self) -> None:
        self.world = SwimWorld(SwimConfig(), seed=0, encodes_packets=True)
        self.lines: list[str] = []
        self.begun_ms = 0.0

    def block(self, commands: list[str]) -> list[str]:
        self.lines = []
        self.begun_ms = self.world.now_ms
        for command in commands:
            verb, *words = command.split()
            getattr(self, f"do_{verb}")(*words)
        return self.lines

    def note(self, now_ms: float, who: NodeId, effect: Effect) -> None:
        if isinstance(effect, MemberEvent):
            member = effect.member
            text = f"{effect.change.value} {member.node} ({member.boot}, {member.incarnation})"
        elif isinstance(effect, Conflict):
            text = f"conflict over {effect.node} boot {effect.boot}" + (" (itself)" if effect.is_self else "")
        elif isinstance(effect, StateAdvanced):
            text = f"cluster state {effect.state.epoch}.{effect.state.version} from {effect.source}"
        else:
            assert isinstance(effect, LeaveComplete)
            text = "leave complete"
        self.lines.append(f"+{now_ms - self.begun_ms:.0f} {who}: {text}")

    def do_settle(self, n: str, _: str, seed: str, *loss: str) -> None:
        profile = LinkProfile(loss=float(loss[1])) if loss else LinkProfile()
        self.world = SwimWorld(SwimConfig(), seed=int(seed), profile=profile, encodes_packets=True)
        self.world.watchers.append(self.note)
        self.world.settle(int(n))
        self.begun_ms = 0.0

    def do_start(self, name: str, _: str, index: str, *options: str) -> None:
        words = list(options)
        boot = int(words[words.index("boot") + 1]) if "boot" in words else 1
        seeds = [int(word) for word in words[words.index("seeds") + 1 :]] if "seeds" in words else []
        self.world.start(name, int(index), boot=boot, seeds=seeds)

    def do_run(self, duration_ms: str) -> None:
        self.world.run_for(float(duration_ms))

    def do_crash(self, name: str) -> None:
        self.world.crash(NodeId(name))

    def do_leave(self, name: str) -> None:
        self.world.feed(self.world.processes[NodeId(name)], Leave())

    def do_pause(self, name: str) -> None:
        self.world.pause(NodeId(name))

    def do_resume(self, name: str) -> None:
        self.world.resume(NodeId(name))

    def do_partition(self, *names: str) -> None:
        self.world.net.partition([self.world.processes[NodeId(name)].addr for name in names])

    def do_heal(self) -> None:
        self.world.net.heal()

    def do_mute(self, name: str) -> None:
        for index in range(len(self.world.processes)):
            self.world.net.block(self.world.processes[NodeId(name)].addr, address_of(index))

    def do_meta(self, name: str, key: str, value: str) -> None:
        self.world.feed(self.world.processes[NodeId(name)], UpdateMeta({key: value}))

    def do_publish(self, name: str, epoch: str, version: str) -> None:
        self.world.feed(self.world.processes[NodeId(name)], PublishState(ClusterState(int(epoch), int(version))))

    def do_show(self, name: str) -> None:
        core = self.world.processes[NodeId(name)].core
        for member in sorted(core.members(), key=lambda member: member.node):
            where = f"{member.addr.host} {member.meta}" if member.meta else member.addr.host
            self.lines.append(
                f"{name} sees {member.node} {member.state.name.lower()} ({member.boot}, {member.incarnation}) {where}"
            )


def retell(story: str) -> str:
    """The story with its answers as they are today; comments and commands stay as they are."""
    teller = Teller()
    blocks = []
    for block in story.strip().split("\n\n"):
        asked = block.split("\n----")[0].split("\n")
        commands = [line for line in asked if line and not line.startswith("#")]
        if not commands:
            blocks.append("\n".join(asked))
            continue
        answer = teller.block(commands) or ["nothing"]
        blocks.append("\n".join([*asked, "----", *answer]))
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_goes_as_written(path: Path) -> None:
    told = path.read_text()
    retold = retell(told)
    if os.environ.get("DAKERA_WRITE_TRANSCRIPTS"):
        path.write_text(retold)
    assert retold == told


def test_there_are_stories() -> None:
    assert len(STORIES) >= 5
