"""Objects in a directory that several processes share, with a real compare-and-swap.

Layout below the root::

    objects/<part>/<part>/<leaf>#    one file per object; '#' is in no key, so that keys "a" and "a/b" can coexist
    locks/00 .. 3f                   one flock file per slice of the key space
    tmp/                             files being written

A write goes to ``tmp/``, is fsynced there, and only then takes the lock of its key's slice: compare, rename, fsync of the
directory. The lock is held for that moment alone, however large the object. Readers take no lock, because a rename is
atomic. A crash at any point leaves the old or the new version, and the kernel drops the lock of a dead process; that of a
stopped process makes the others time out (BucketUnavailableError), never proceed.

A file is ``magic | nonce | digest of the data | data``. The etag is nonce and digest: it changes with every write, also of
the same bytes and also after a deletion. The digest is checked on every read.

Needs a file system with atomic rename and flock between all users: any local one; NFS 4 between machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec
import xxhash

from dakera_cluster.model.errors import BucketUnavailableError, CorruptionError
from dakera_cluster.storage.durable import make_directories, sync_directory
from dakera_cluster.storage.objects import (
    ABSENT,
    LIST_LIMIT,
    Absent,
    AmbiguousWriteError,
    Object,
    ObjectInfo,
    PreconditionFailedError,
    check_key,
    check_prefix,
    probe_conditions,
)

T = TypeVar("T")

MAGIC = b"DKO1"
NONCE_BYTES = 8
DIGEST_BYTES = 16
HEADER_BYTES = len(MAGIC) + NONCE_BYTES + DIGEST_BYTES
LEAF_SUFFIX = "#"
LOCK_SLICES = 64
LOCK_POLL_S = 0.002
LOCK_POLL_MAX_S = 0.05
STALE_TEMPORARY_S = 3600.0


class DirectorySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of a directory store."""

    timeout_ms: int = 10_000
    """For one operation, waiting for a thread included."""
    lock_timeout_ms: int = 5_000
    threads: int = 4


class DirectoryObjectStore:
    """An ObjectStore in a directory. See the module docstring."""

    def __init__(self, root: Path | str, settings: DirectorySettings | None = None) -> None:
        """Create the layout below ``root`` where it is missing. Raises BucketUnavailableError when it cannot be used."""
        self.root = Path(root)
        self._settings = settings or DirectorySettings()
        self._objects = self.root / "objects"
        self._locks = self.root / "locks"
        self._temporary = self.root / "tmp"
        try:
            for directory in (self._objects, self._locks, self._temporary):
                make_directories(directory)
            self._sweep_temporary()
        except OSError as error:
            raise _unavailable(self.root, error) from error
        self._threads = ThreadPoolExecutor(self._settings.threads, thread_name_prefix="dakera-bucket")

    async def get(self, key: str) -> Object | None:
        path = self._path(key)
        return await self._run(lambda: _read(path))

    async def put(self, key: str, data: bytes) -> str:
        path = self._path(key)
        return await self._run(lambda: self._write(key, path, data, None))

    async def put_if(self, key: str, data: bytes, *, etag: str | Absent) -> str:
        path = self._path(key)
        return await self._run(lambda: self._write(key, path, data, etag), late=AmbiguousWriteError)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._run(lambda: self._unlink(key, path))

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_LIMIT) -> Sequence[ObjectInfo]:
        check_prefix(prefix)
        return await self._run(lambda: self._list(prefix, after, limit))

    async def probe(self) -> None:
        await probe_conditions(self)

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T], *, late: type[BucketUnavailableError] = BucketUnavailableError) -> T:
        """Run blocking ``work`` in a thread. ``late`` is raised when it takes too long; the thread goes on then."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._threads, work), self._settings.timeout_ms / 1e3)
        except _LockTimeoutError:
            raise BucketUnavailableError(f"directory {self.root}: another process holds its lock") from None
        except TimeoutError:
            raise late(f"directory {self.root}: no answer in {self._settings.timeout_ms} ms") from None
        except OSError as error:
            raise _unavailable(self.root, error) from error
        except RuntimeError as error:
            raise BucketUnavailableError(f"directory {self.root}: closed") from error

    def _path(self, key: str) -> Path:
        return self._objects / (check_key(key) + LEAF_SUFFIX)

    def _write(self, key: str, path: Path, data: bytes, etag: str | Absent | None) -> str:
        """Write ``data`` under the condition ``etag`` (None: none). Blocking."""
        _check_condition(key, path, etag)  # the cheap refusal; the one that counts is under the lock
        nonce, digest = secrets.token_bytes(NONCE_BYTES), _digest(data)
        temporary = self._temporary / secrets.token_hex(12)
        try:
            with temporary.open("xb") as file:
                file.write(MAGIC + nonce + digest)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            make_directories(path.parent)
            with self._lock(key):
                _check_condition(key, path, etag)
                temporary.rename(path)
                try:
                    sync_directory(path.parent)
                except OSError as error:
                    raise AmbiguousWriteError(f"directory {self.root}: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return _etag(nonce, digest)

    def _unlink(self, key: str, path: Path) -> None:
        with self._lock(key):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            sync_directory(path.parent)

    def _list(self, prefix: str, after: str, limit: int) -> Sequence[ObjectInfo]:
        # Only the directory that the prefix names in full can hold matching keys.
        top = self._objects / prefix.rpartition("/")[0]
        keys = sorted(key for key in self._keys(top) if key.startswith(prefix) and key > after)
        return tuple(itertools.islice(filter(None, map(self._info, keys)), limit))

    def _info(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            with path.open("rb") as file:
                etag = _etag(*_header(path, file.read(HEADER_BYTES)))
                return ObjectInfo(key, os.fstat(file.fileno()).st_size - HEADER_BYTES, etag)
        except FileNotFoundError:
            return None

    def _keys(self, top: Path) -> Iterator[str]:
        skip = len(str(self._objects)) + 1
        for directory, _, files in os.walk(top):
            for name in files:
                yield f"{directory}/{name}"[skip:].removesuffix(LEAF_SUFFIX)

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        path = self._locks / f"{xxhash.xxh3_64_intdigest(key.encode()) % LOCK_SLICES:02x}"
        deadline = time.monotonic() + self._settings.lock_timeout_ms / 1e3
        pause = LOCK_POLL_S
        # flock belongs to the open file, so that threads of one process exclude each other too.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise _LockTimeoutError from None
                    time.sleep(pause)
                    pause = min(pause * 1.5, LOCK_POLL_MAX_S)
            yield
        finally:
            os.close(descriptor)

    def _sweep_temporary(self) -> None:
        """Remove what crashed writers left. A live writer's file is younger than any time limit on a write."""
        oldest = time.time() - STALE_TEMPORARY_S
        for path in self._temporary.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


class _LockTimeoutError(Exception):
    pass


def _digest(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def _etag(nonce: bytes, digest: bytes) -> str:
    return f"{nonce.hex()}-{digest.hex()}"


def _header(path: Path, header: bytes) -> tuple[bytes, bytes]:
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise CorruptionError(f"object file {path} does not begin with a header")
    return header[len(MAGIC) : len(MAGIC) + NONCE_BYTES], header[len(MAGIC) + NONCE_BYTES : HEADER_BYTES]


def _read(path: Path) -> Object | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    nonce, digest = _header(path, content[:HEADER_BYTES])
    data = content[HEADER_BYTES:]
    if _digest(data) != digest:
        raise CorruptionError(f"object file {path} does not match its checksum")
    return Object(data, _etag(nonce, digest))


def _read_etag(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return _etag(*_header(path, file.read(HEADER_BYTES)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _check_condition(key: str, path: Path, etag: str | Absent | None) -> None:
    if etag is None:
        return
    current = _read_etag(path)
    if (current is not None) if etag is ABSENT else current != etag:
        raise PreconditionFailedError(f"{key} is not in the version the write asked for")


def _unavailable(root: Path, error: OSError) -> BucketUnavailableError:
    reason = "no space left" if error.errno == errno.ENOSPC else str(error)
    return BucketUnavailableError(f"directory {root}: {reason}")
