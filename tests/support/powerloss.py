"""Power failure for a process under test: what was not fsynced is gone.

kill -9 does not test fsync, because the page cache survives it. Here a preloaded library (``powerloss.c``) notes what each
fsync covered, and ``lose_power`` puts the directory into a state that a power failure could have left::

    env = make_powerloss_env(data_dir)
    child = subprocess.Popen(command, env=env)
    ...
    child.kill(); child.wait()
    lost = lose_power(data_dir)            # everything that was not synced
    lost = lose_power(data_dir, seed=7)    # or a random part of it, torn and with holes

The model is strict: bytes need an fsync of their file, and a created, renamed or removed name needs an fsync of its
directory. ``lying_disk=True`` makes every fsync return without effect: a test of durability must fail on it, or it tests
nothing. ``set_fault`` makes writes or syncs fail while the child runs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("powerloss.c")


@dataclass
class Lost:
    """What a power failure took: bytes cut off, the files they were cut from, and changes of directories undone."""

    dropped_bytes: int = 0
    cut_files: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.dropped_bytes or self.undone)


class UnmodelledWriteError(AssertionError):
    """The process overwrote bytes that it had synced: this model cannot say what a disk would hold."""


def make_powerloss_env(
    directory: Path | str, *, lying_disk: bool = False, sync_delay_ms: float = 0.0, base: dict[str, str] | None = None
) -> dict[str, str]:
    """The environment (``base``, or this process's, and ours) for a child whose files below ``directory`` are watched.

    What is there at the first call, and at the first after ``lose_power``, counts as durable. A child that is restarted
    after a plain kill is given an environment of the same directory again; nobody else may write to it in between.
    """
    root = Path(directory).resolve()
    root.mkdir(parents=True, exist_ok=True)
    state = _state(root)
    if not (state / "journal").exists():
        _start_journal(root)
    env = dict(os.environ if base is None else base)
    env.pop("POWERLOSS_LYING_DISK", None)
    env |= {
        "LD_PRELOAD": str(_library()),
        "POWERLOSS_DIR": str(root),
        "POWERLOSS_JOURNAL": str(state / "journal"),
        "POWERLOSS_COPIES": str(state / "copies"),
        "POWERLOSS_FAULT": str(state / "fault"),
        "POWERLOSS_SYNC_DELAY_US": str(int(sync_delay_ms * 1000)),
    }
    if lying_disk:
        env["POWERLOSS_LYING_DISK"] = "1"
    return env


def set_fault(directory: Path | str, *, write: int = 0, sync: int = 0) -> None:
    """Make every write or fsync below ``directory`` fail with this errno from now on; zeros end it."""
    path = _state(Path(directory).resolve()) / "fault"
    lines = [f"{what} {number}" for what, number in (("write", write), ("sync", sync)) if number]
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text("\n".join(lines))
        temporary.rename(path)
    else:
        path.unlink(missing_ok=True)


def lose_power(directory: Path | str, *, seed: int | None = None) -> Lost:
    """Take from ``directory`` what was not synced. Call it when the child is dead, and before the next one starts.

    Without a seed all of it goes. With one, a random prefix of the changes of directories and of each file's bytes
    stays, sometimes with a hole of zeros: writes reach a disk in part.
    """
    root = Path(directory).resolve()
    rng = random.Random(seed) if seed is not None else None
    journal = _Journal((_state(root) / "journal").read_bytes())
    if journal.overwritten:
        raise UnmodelledWriteError(f"synced bytes were overwritten in {sorted(journal.overwritten)}")
    lost = Lost()
    pending = [change for change in journal.changes if not change.durable]
    kept = rng.randint(0, len(pending)) if rng else 0
    for change in reversed(pending[kept:]):
        if change.undo(_state(root) / "copies"):
            lost.undone.append(change.text)
    for path in _files(root):
        about = path.stat()
        synced = min(journal.synced.get(about.st_ino, 0), about.st_size)
        if about.st_size > synced:
            _cut(path, synced, about.st_size, rng)
            lost.dropped_bytes += about.st_size - synced
            lost.cut_files.append(str(path.relative_to(root)))
    (_state(root) / "journal").unlink()
    return lost


def _cut(path: Path, synced: int, size: int, rng: random.Random | None) -> None:
    keep = rng.randint(synced, size) if rng else synced
    os.truncate(path, keep)
    if rng and keep > synced and rng.random() < 1 / 3:
        hole = rng.randint(synced, keep - 1)
        with path.open("r+b") as file:
            file.seek(hole)
            file.write(bytes(keep - hole))


class _Change:
    """One change of a directory, and how to undo it."""

    def __init__(self, kind: str, rest: str, offset: int) -> None:
        self.kind = kind
        self.text = f"{kind} {rest}"
        self.offset = offset
        self.durable = False
        self.tag, self.old, self.path = "", "", rest
        if kind in "CRU":
            self.tag, self.path = rest.split(" ", 1)
        if kind == "R":
            self.old, self.path = self.path.split("\t", 1)
        self.parent = os.path.dirname(self.path)

    def undo(self, copies: Path) -> bool:
        """True when there was something to undo: a kill may have come between the record and the change."""
        path = Path(self.path)
        if self.kind == "C":
            if not path.exists() or path.stat().st_ino != int(self.tag):
                return False
            path.unlink()
        elif self.kind == "L":
            if not path.exists():
                return False
            path.unlink()
        elif self.kind == "M":
            if not path.is_dir():
                return False
            shutil.rmtree(path)
        elif self.kind == "D":
            if path.exists():
                return False
            path.mkdir()
        elif self.kind == "U":
            if path.exists():
                return False
            os.link(copies / self.tag, path)
        else:
            return self._undo_rename(path, copies)
        return True

    def _undo_rename(self, path: Path, copies: Path) -> bool:
        if os.path.lexists(self.old) or not os.path.lexists(path):
            return False
        path.rename(self.old)
        if self.tag != "-":
            os.link(copies / self.tag, path)
        return True


class _Journal:
    """What the library wrote down: the changes of directories, and the synced length of each file by inode."""

    def __init__(self, content: bytes) -> None:
        self.changes: list[_Change] = []
        self.synced: dict[int, int] = {}
        self.overwritten: set[str] = set()
        self._unsynced: dict[str, list[_Change]] = {}
        offset = 0
        for line in content.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            kind, rest = os.fsdecode(line[:-1]).split(" ", 1)
            self._take(kind, rest, offset)
            offset += len(line)

    def _take(self, kind: str, rest: str, offset: int) -> None:
        if kind == "S":
            ino, size = map(int, rest.split())
            self.synced[ino] = max(self.synced.get(ino, 0), size)
        elif kind == "T":
            ino, size = map(int, rest.split())
            self.synced[ino] = min(self.synced.get(ino, 0), size)
        elif kind == "Y":
            reach, path = rest.split(" ", 1)
            changes = self._unsynced.pop(path, [])
            for change in changes:
                change.durable = change.offset < int(reach)
            if late := [change for change in changes if not change.durable]:
                self._unsynced[path] = late
        elif kind == "X":
            self.overwritten.add(rest)
        else:
            change = _Change(kind, rest, offset)
            if kind == "C":
                self.synced.pop(int(change.tag), None)
            self.changes.append(change)
            self._unsynced.setdefault(change.parent, []).append(change)


def _state(root: Path) -> Path:
    return root.with_name(root.name + ".powerloss")


def _files(root: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _start_journal(root: Path) -> None:
    """A new journal, in which everything that is there now is durable."""
    state = _state(root)
    shutil.rmtree(state / "copies", ignore_errors=True)
    (state / "copies").mkdir(parents=True)
    present = ((path.stat().st_ino, path.stat().st_size) for path in _files(root))
    (state / "journal").write_text("".join(f"S {ino} {size}\n" for ino, size in present))


def _library() -> Path:
    """The preloaded library, built once per version of its source."""
    source = SOURCE.read_bytes()
    built = Path(tempfile.gettempdir()) / f"powerloss-{os.getuid()}-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not built.exists():
        temporary = built.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(temporary), str(SOURCE), "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(errno.ENOEXEC, f"cannot build {SOURCE.name}: {done.stderr}")
        temporary.rename(built)
    return built
