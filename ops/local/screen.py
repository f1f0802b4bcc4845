"""How the failover demo looks: a live picture on a terminal, lines elsewhere, and the verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ops.local.failover import Member, Scene, Show
from ops.local.load import RECENT_S, percentile

SHOWN_EVENTS = 12
LINE_EVERY_S = 1.0
_STATE_STYLES = {"active": "green", "suspect": "yellow", "dead": "bold red"}


@contextlib.contextmanager
def live_screen() -> Iterator[Show]:
    with Live(auto_refresh=False, console=Console()) as live:
        yield lambda scene: live.update(_picture(scene), refresh=True)


@contextlib.contextmanager
def plain_screen() -> Iterator[Show]:
    """A line a second, and one for each thing that happens."""
    told = 0
    last_s = -LINE_EVERY_S

    def show(scene: Scene) -> None:
        nonlocal told, last_s
        for event in scene.events[told:]:
            print(f"{event.at_s:6.1f} s  * {event.text}", flush=True)
        told = len(scene.events)
        if scene.elapsed_s - last_s >= LINE_EVERY_S:
            last_s = scene.elapsed_s
            print(f"{last_s:6.1f} s  {_line(scene)}", flush=True)

    yield show


def _line(scene: Scene) -> str:
    load = scene.load
    latencies = sorted(done.latency_ms for done in load.recent())
    members = " ".join(f"{member.name}:{_state(member)}" for member in scene.members)
    if load.stop.is_set():
        return f"{scene.phase}: {scene.verified} of {len(load.acknowledged)}"
    return (
        f"{load.ok} ok, {load.failed} failed, {scene.retries} repeated by the balancer, "
        f"p50 {percentile(latencies, 0.5):.0f} ms, p99 {percentile(latencies, 0.99):.0f} ms, "
        f"leader {scene.leader or 'none'}, {members}, {scene.phase}"
    )


def _picture(scene: Scene) -> RenderableType:
    events = Text("\n".join(f"{event.at_s:6.1f} s  {event.text}" for event in scene.events[-SHOWN_EVENTS:]))
    head = Text(f"{scene.elapsed_s:.0f} s: {scene.phase}", style="bold")
    return Group(head, Panel(_requests(scene), title="requests"), Panel(_members(scene), title="members"), events)


def _requests(scene: Scene) -> Table:
    load = scene.load
    latencies = sorted(done.latency_ms for done in load.recent())
    table = Table.grid(padding=(0, 3))
    table.add_row(
        Text(f"ok {load.ok}", style="green"),
        Text(f"failed {load.failed}", style="bold red" if load.failed else "green"),
        f"repeated by the balancer {scene.retries}",
        f"in flight {load.in_flight}",
        f"memories acknowledged {len(load.acknowledged)}",
    )
    if latencies:
        table.add_row(
            f"last {RECENT_S:.0f} s:",
            f"p50 {percentile(latencies, 0.5):.0f} ms",
            f"p99 {percentile(latencies, 0.99):.0f} ms",
            f"worst {latencies[-1]:.0f} ms",
            f"recalled again {scene.verified}" if scene.verified else "",
        )
    return table


def _members(scene: Scene) -> Table:
    table = Table.grid(padding=(0, 3))
    for member in scene.members:
        table.add_row(
            member.name,
            Text(_state(member), style=_STATE_STYLES.get(member.state, "")),
            Text("leads", style="bold") if member.name == scene.leader else "",
            f"heard {member.heard_s:.0f} s ago" if member.heard_s > 1 else "",
            "gets requests" if member.in_rotation else Text("gets no requests", style="yellow"),
        )
    table.add_row("", f"as {scene.seen_by} sees it", f"epoch {scene.epoch}", "", "")
    return table


def _state(member: Member) -> str:
    return "alive" if member.state == "active" else member.state


def verdict(scene: Scene) -> str:
    """The outcome in words and figures."""
    load = scene.load
    killed = scene.killed_at or scene.began
    restarted = scene.restarted_at or killed
    lines = ["", "          requests   p50 ms   p99 ms   worst ms"]
    for name, since, until in (
        ("before", scene.began, killed),
        ("failover", killed, restarted),
        ("after", restarted, float("inf")),
    ):
        taken = load.latencies_ms(since, until)
        lines.append(
            f"{name:<9} {len(taken):>8} {percentile(taken, 0.5):>8.0f} {percentile(taken, 0.99):>8.0f} "
            f"{taken[-1] if taken else 0:>10.0f}"
        )
    lines += [
        "",
        f"requests      {load.ok} answered, {load.failed} failed, {scene.retries} repeated by the balancer",
        f"detection     {_seconds(scene.dead_after_s)} until a survivor knew that the leader is dead",
        f"election      {_seconds(scene.elected_after_s)} until there was another leader (epoch {scene.epoch})",
        f"memories      {len(load.acknowledged)} acknowledged, {scene.verified} recalled, {len(scene.lost)} lost",
    ]
    if scene.missing_at_first:
        lines.append(f"              {scene.missing_at_first} of them only after repair")
    lines += [f"  {count} x {problem}" for problem, count in load.problems.most_common(5)]
    lines += [f"  lost: {memory.id} of {memory.agent}" for memory in scene.lost[:5]]
    if not scene.rejoined:
        lines.append("the killed node did not come back into the cluster in time")
    good = "PASSED: the leader was killed under load; no request failed and nothing was lost."
    return "\n".join([*lines, "", good if scene.passed else "FAILED: see above."])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
