"""A short live run: three real nodes, killed, stopped and robbed of their leader under load. Every promise must hold."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chaos.live.checkers import Violation
from chaos.live.history import Kind, Outcome
from chaos.live.report import summary
from chaos.live.run import VERIFY_CLIENT, Result, RunOptions, run_live

DURATION_S = 30.0


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    options = RunOptions(nemeses=("kill", "pause", "leader"), duration_s=DURATION_S, seed=5, rate=20.0, each_once=True)
    lines: list[str] = []
    out: Path = tmp_path_factory.mktemp("chaos")
    return asyncio.run(run_live(options, out, lines.append))


pytestmark = pytest.mark.slow


def test_every_promise_holds_under_kills_and_pauses(result: Result) -> None:
    assert result.violations == [], _told(result.violations)


def test_the_run_proves_something(result: Result) -> None:
    """A run in which nothing happened would hold every promise too."""
    made = summary(result)
    assert {event.nemesis for event in result.events} == {"kill", "pause", "leader"}
    assert made["acknowledged_writes"] > 150
    assert all(made["kinds"][kind.value]["ok"] > 0 for kind in Kind)
    assert sum(op.client == VERIFY_CLIENT and op.outcome is Outcome.OK for op in result.history) == made["memories"]
    assert result.convergence.copies >= 3 * 6
    assert made["leader_epochs"] >= 2


def test_no_request_fails_that_a_retry_would_not_repair(result: Result) -> None:
    killed = [one for one in result.failovers if one.nemesis in ("kill", "leader")]
    assert [one.failed for one in killed] == [0] * len(killed)
    assert any(one.retried > 0 for one in killed)


def _told(violations: list[Violation]) -> str:
    return "\n".join(f"{violation.promise}: {violation.text}" for violation in violations[:10])
