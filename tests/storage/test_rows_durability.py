"""Acknowledged rows survive kill -9 and power failure, and the same tests fail when the fsync is left out."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from dakera_cluster.storage.rows import RowStore
from tests.support.failing_disk import FAMILIES
from tests.support.powerloss import Lost, lose_power, make_powerloss_env
from tests.support.row_writer import lost_and_torn

ROOT = Path(__file__).parents[2]
WRITERS = 8


class Writer:
    """Runs the writing process again and again on one directory and remembers what it acknowledged."""

    def __init__(self, directory: Path, mutation: str = "") -> None:
        self.directory = directory
        self.acknowledged: set[int] = set()
        self._next = 0
        self._mutation = [mutation] if mutation else []

    def run_and_kill(self, env: dict[str, str] | None, acknowledgements: int) -> None:
        """Let it acknowledge this many batches, kill it in the middle of the next ones, and take all it had said."""
        command = [sys.executable, "-m", "tests.support.row_writer", str(self.directory), str(self._next), str(WRITERS)]
        with subprocess.Popen([*command, *self._mutation], stdout=subprocess.PIPE, env=env, cwd=ROOT) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(acknowledgements)]
            child.kill()
            lines += child.stdout.readlines()
        heard = {int(line) for line in lines if line.endswith(b"\n")}
        assert len(heard) >= acknowledgements
        self.acknowledged |= heard
        self._next = max(heard) + 10 * WRITERS

    def check(self) -> None:
        lost, torn = lost_and_torn(self.directory, self.acknowledged)
        assert not lost, f"acknowledged and lost: {sorted(lost)[:20]} of {len(self.acknowledged)}"
        assert not torn, f"half a batch is there: {sorted(torn)[:20]}"


def rounds(seed: int, count: int) -> list[tuple[int, int]]:
    rng = random.Random(seed)
    return [(rng.randint(1, 400), rng.randint(0, 1 << 30)) for _ in range(count)]


def test_acknowledged_batches_survive_kill_9(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "db")
    for acknowledgements, _ in rounds(1, 4):
        writer.run_and_kill(None, acknowledgements)
        writer.check()


def power_failures(writer: Writer, plan: list[tuple[int, int]], *, torn: bool, lying_disk: bool = False) -> Lost:
    total = Lost()
    for acknowledgements, seed in plan:
        env = make_powerloss_env(writer.directory, lying_disk=lying_disk, sync_delay_ms=2)
        writer.run_and_kill(env, acknowledgements)
        lost = lose_power(writer.directory, seed=seed if torn else None)
        total.dropped_bytes += lost.dropped_bytes
        total.undone += lost.undone
        writer.check()
    return total


def test_acknowledged_batches_survive_the_loss_of_everything_unsynced(tmp_path: Path) -> None:
    lost = power_failures(Writer(tmp_path / "db"), rounds(2, 4), torn=False)
    assert lost.dropped_bytes > 0, "the power failures took nothing: this test showed nothing"


def test_acknowledged_batches_survive_torn_and_partial_writes(tmp_path: Path) -> None:
    power_failures(Writer(tmp_path / "db"), rounds(3, 6), torn=True)


def test_a_store_that_leaves_out_the_fsync_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="acknowledged and lost"):
        power_failures(Writer(tmp_path / "db", "drop-sync"), [(300, 0)], torn=False)


def test_a_disk_that_ignores_fsync_is_caught(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="acknowledged and lost"):
        power_failures(Writer(tmp_path / "db"), [(300, 0)], torn=False, lying_disk=True)


def test_a_failing_disk_acknowledges_nothing_until_it_has_recovered(tmp_path: Path) -> None:
    env = make_powerloss_env(tmp_path / "db")
    command = [sys.executable, "-m", "tests.support.failing_disk", str(tmp_path / "db")]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    saw = json.loads(done.stdout)
    for fault, text in (("sync", "Input/output error"), ("write", "No space left")):
        steps = saw[fault]
        assert steps["before"] == steps["recover"] == steps["recover_again"] == steps["after"] == "done"
        assert len(steps["during"]) == 20
        assert all(outcome.startswith("refused") and text in outcome for outcome in steps["during"])
        assert steps["state"] == steps["state_still"] == "failed"
        assert text in steps["failure"]
        assert steps["later"].startswith("refused") and text in steps["later"]
        assert not steps["touched_disk"]
        assert steps["recover_too_early"].startswith("refused")
        assert steps["read"] and steps["read_after"]
    lose_power(tmp_path / "db")
    store = RowStore.open(tmp_path / "db", FAMILIES)
    for fault in ("sync", "write"):
        for key in ("before", "after"):
            assert store.get("rows", f"{fault}-{key}".encode()) == b"v" * 100
    assert store.get("rows", b"later") is None
    store.close()
