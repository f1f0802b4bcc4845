"""The power failure of the tests takes what was not synced, and nothing else."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.powerloss import Lost, UnmodelledWriteError, lose_power, make_powerloss_env, set_fault

PRELUDE = """
import os, sys
root = sys.argv[1]
def at(name): return os.path.join(root, name)
def sync_dir(name=""):
    fd = os.open(at(name), os.O_RDONLY); os.fsync(fd); os.close(fd)
def write(name, data, sync=True, flags=os.O_CREAT):
    fd = os.open(at(name), os.O_WRONLY | os.O_APPEND | flags); os.write(fd, data)
    if sync: os.fsync(fd)
    os.close(fd)
"""


def run(root: Path, script: str, *, lying_disk: bool = False) -> None:
    env = make_powerloss_env(root, lying_disk=lying_disk)
    subprocess.run([sys.executable, "-c", PRELUDE + script, str(root)], env=env, check=True)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def after_power_loss(root: Path, script: str) -> tuple[dict[str, bytes], Lost]:
    run(root, script)
    lost = lose_power(root)
    return content(root), lost


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    return root


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("write('f', b'1'); sync_dir()", {"f": b"1", "old": b"old"}),
        ("write('f', b'1'); sync_dir(); write('f', b'2', sync=False)", {"f": b"1", "old": b"old"}),
        ("write('f', b'1', sync=False); sync_dir()", {"f": b"", "old": b"old"}),
        ("write('f', b'1')", {"old": b"old"}),
        ("write('old', b'er', sync=False)", {"old": b"old"}),
        ("write('old', b'er')", {"old": b"older"}),
        ("write('old', b'new', sync=False, flags=os.O_TRUNC)", {"old": b""}),
        ("write('t', b'new'); sync_dir(); os.rename(at('t'), at('old'))", {"old": b"old", "t": b"new"}),
        ("write('t', b'new'); os.rename(at('t'), at('old'))", {"old": b"old"}),
        ("write('t', b'new'); os.rename(at('t'), at('old')); sync_dir()", {"old": b"new"}),
        ("write('t', b'new', sync=False); os.rename(at('t'), at('old')); sync_dir()", {"old": b""}),
        ("os.unlink(at('old'))", {"old": b"old"}),
        ("os.unlink(at('old')); sync_dir()", {}),
        ("os.unlink(at('old')); write('old', b'second')", {"old": b"old"}),
        ("os.mkdir(at('d')); write('d/f', b'1'); sync_dir('d')", {"old": b"old"}),
        ("os.mkdir(at('d')); sync_dir(); write('d/f', b'1'); sync_dir('d')", {"d/f": b"1", "old": b"old"}),
        ("os.link(at('old'), at('l'))", {"old": b"old"}),
        ("os.truncate(at('old'), 1)", {"old": b"o"}),
        ("os.chdir(root); open('f', 'wb').write(b'1'); sync_dir()", {"f": b"", "old": b"old"}),
    ],
)
def test_only_what_was_synced_is_left(root: Path, script: str, left: dict[str, bytes]) -> None:
    found, _ = after_power_loss(root, script)
    assert found == left


def test_what_was_lost_is_reported(root: Path) -> None:
    _, lost = after_power_loss(root, "write('old', b'12345', sync=False); write('g', b'')")
    assert lost and lost.dropped_bytes == 5 and lost.cut_files == ["old"] and len(lost.undone) == 1
    _, nothing = after_power_loss(root, "write('old', b'12345')")
    assert not nothing


def test_a_plain_kill_between_keeps_the_books(root: Path) -> None:
    run(root, "write('f', b'1'); sync_dir(); write('f', b'2', sync=False)")
    run(root, "write('f', b'3', sync=False)")
    assert content(root)["f"] == b"123"
    lose_power(root)
    assert content(root)["f"] == b"1"
    run(root, "write('f', b'4')")
    lose_power(root)
    assert content(root)["f"] == b"14"


def test_a_lying_disk_keeps_nothing(root: Path) -> None:
    run(root, "write('f', b'1'); sync_dir(); write('old', b'er')", lying_disk=True)
    lose_power(root)
    assert content(root) == {"old": b"old"}


@pytest.mark.parametrize("seed", range(10))
def test_with_a_seed_a_part_stays_and_synced_bytes_always_do(root: Path, seed: int) -> None:
    run(root, "write('f', b'synced'); sync_dir(); write('f', b'x' * 100, sync=False); write('g', b'1')")
    lose_power(root, seed=seed)
    found = content(root)
    assert found["f"].startswith(b"synced")
    assert found["f"][6:].rstrip(b"\0").strip(b"x") == b""
    assert found.get("g", b"1") == b"1"


def test_overwriting_synced_bytes_is_not_passed_over(root: Path) -> None:
    run(
        root,
        "fd = os.open(at('f'), os.O_RDWR | os.O_CREAT); os.write(fd, b'123'); os.fsync(fd); os.pwrite(fd, b'X', 1)",
    )
    with pytest.raises(UnmodelledWriteError, match="/f"):
        lose_power(root)


def test_faults_can_be_ordered_while_it_runs(root: Path) -> None:
    set_fault(root, write=errno.ENOSPC, sync=errno.EIO)
    run(
        root,
        """
for attempt, number in ((lambda: os.write(1, b''), 0), (lambda: write('old', b'x', sync=False), 28), (sync_dir, 5)):
    try: attempt(); met = 0
    except OSError as error: met = error.errno
    assert met == number, (met, number)
""",
    )
    set_fault(root)
    run(root, "write('old', b'er')")
    assert content(root) == {"old": b"older"}
