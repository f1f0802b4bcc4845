"""Background processes: found again, stopped by identity, never somebody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ops.local.processes import Background

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


def wait_until_up(process: Background) -> None:
    while "up" not in process.last_lines(5):
        assert process.pid is not None


def test_a_started_process_is_found_by_another_object_and_stopped(tmp_path: Path) -> None:
    Background("one", tmp_path).start(SLEEPER, os.environ)
    found = Background("one", tmp_path)
    wait_until_up(found)
    assert found.stop() is True
    assert found.pid is None
    assert not (tmp_path / "one.pid").exists()


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    process = Background("one", tmp_path)
    process.start(STUBBORN, os.environ)
    wait_until_up(process)
    assert process.stop(wait_s=0.2) is False
    assert process.pid is None


def test_a_pid_that_now_belongs_to_another_program_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL)
    try:
        (tmp_path / "one.pid").write_text(f"{other.pid} 1\n")
        process = Background("one", tmp_path)
        assert process.pid is None
        assert process.stop() is True
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_stopping_what_never_ran_is_fine(tmp_path: Path) -> None:
    assert Background("one", tmp_path).stop() is True
