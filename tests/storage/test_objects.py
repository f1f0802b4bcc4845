"""One contract, every object store: what the lease, the map and the catalog rely on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dakera_cluster.model.errors import BucketUnavailableError, CorruptionError, InvalidRequestError
from dakera_cluster.storage.directory import DirectoryObjectStore, DirectorySettings
from dakera_cluster.storage.memory_objects import MemoryObjectStore
from dakera_cluster.storage.objects import ABSENT, AmbiguousWriteError, ObjectStore, PreconditionFailedError
from dakera_cluster.storage.s3 import S3ObjectStore
from tests.support.counter import increment
from tests.support.powerloss import lose_power, make_powerloss_env


@pytest.fixture(params=["memory", "directory", "moto", "minio"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    made: ObjectStore
    if request.param == "memory":
        made = MemoryObjectStore()
    elif request.param == "directory":
        made = DirectoryObjectStore(tmp_path / "bucket")
    else:
        made = S3ObjectStore(request.getfixturevalue(f"{request.param}_server"))
        await made.create_bucket()
    yield made
    await made.close()


@pytest.fixture
def key() -> str:
    return f"t/{secrets.token_hex(6)}"


async def test_what_was_put_is_got(store: ObjectStore, key: str) -> None:
    assert await store.get(key) is None
    etag = await store.put(key, b"one")
    found = await store.get(key)
    assert found is not None and (found.data, found.etag) == (b"one", etag)
    assert await store.put(key, b"") != etag
    empty = await store.get(key)
    assert empty is not None and empty.data == b""


async def test_create_succeeds_once(store: ObjectStore, key: str) -> None:
    await store.put_if(key, b"mine", etag=ABSENT)
    with pytest.raises(PreconditionFailedError):
        await store.put_if(key, b"theirs", etag=ABSENT)
    found = await store.get(key)
    assert found is not None and found.data == b"mine"


async def test_replace_needs_the_current_version(store: ObjectStore, key: str) -> None:
    first = await store.put_if(key, b"1", etag=ABSENT)
    second = await store.put_if(key, b"2", etag=first)
    with pytest.raises(PreconditionFailedError):
        await store.put_if(key, b"3", etag=first)
    third = await store.put_if(key, b"3", etag=second)
    found = await store.get(key)
    assert found is not None and (found.data, found.etag) == (b"3", third)


async def test_replace_of_a_missing_object_is_refused(store: ObjectStore, key: str) -> None:
    etag = await store.put_if(key, b"1", etag=ABSENT)
    await store.delete(key)
    await store.delete(key)
    with pytest.raises(PreconditionFailedError):
        await store.put_if(key, b"2", etag=etag)
    assert await store.get(key) is None
    await store.put_if(key, b"3", etag=ABSENT)


async def test_an_etag_of_a_listing_or_a_get_can_be_used_as_a_condition(store: ObjectStore, key: str) -> None:
    await store.put(key, b"1")
    (info,) = await store.list(key)
    await store.put_if(key, b"22", etag=info.etag)
    found = await store.get(key)
    assert found is not None
    await store.put_if(key, b"333", etag=found.etag)
    (info,) = await store.list(key)
    assert (info.key, info.size_bytes) == (key, 3)


async def test_listing_is_sorted_prefixed_and_paged(store: ObjectStore, key: str) -> None:
    names = ["a/b", "a/c/d", "a-b", "ab", "b/1", "b/10", "b/2", "Z"]
    for name in names:
        await store.put(f"{key}/{name}", name.encode())

    async def names_of(prefix: str, **arguments: object) -> list[str]:
        infos = await store.list(f"{key}/{prefix}", **arguments)  # type: ignore[arg-type]
        return [info.key.removeprefix(f"{key}/") for info in infos]

    assert await names_of("") == sorted(names)
    assert await names_of("a") == ["a-b", "a/b", "a/c/d", "ab"]
    assert await names_of("b/") == ["b/1", "b/10", "b/2"]
    assert await names_of("b/1") == ["b/1", "b/10"]
    assert await names_of("none/") == []
    seen: list[str] = []
    while page := await names_of("", after=f"{key}/{seen[-1]}" if seen else "", limit=2):
        assert len(page) <= 2
        seen += page
    assert seen == sorted(names)


async def test_unusable_keys_are_refused_by_name(store: ObjectStore) -> None:
    for bad in ("", "/a", "a/", "a//b", "..", "a/../b", "a/.", "a#", "a b", "a\\b", "ä", "x" * 513):
        for use in (store.get(bad), store.put(bad, b""), store.put_if(bad, b"", etag=ABSENT), store.delete(bad)):
            with pytest.raises(InvalidRequestError, match="object key"):
                await use


async def test_the_probe_passes_and_leaves_nothing(store: ObjectStore) -> None:
    await store.probe()
    assert not await store.list("probe/")


async def test_large_objects_survive(store: ObjectStore, key: str) -> None:
    data = random.Random(1).randbytes(3_000_000)
    await store.put(key, data)
    found = await store.get(key)
    assert found is not None and found.data == data


async def test_racing_increments_lose_no_update(store: ObjectStore, key: str) -> None:
    told = await asyncio.gather(*(increment(store, key, 8, f"w{n}") for n in range(5)))
    assert sorted(value for mine in told for value in mine) == list(range(1, 41))


def test_racing_processes_on_a_directory_lose_no_update(tmp_path: Path) -> None:
    """Real processes, each with its own store object: only the files are shared."""
    command = [sys.executable, "-m", "tests.support.counter", str(tmp_path / "bucket")]
    processes = [
        subprocess.Popen(
            [*command, f"p{n}", "50"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            text=True,
        )
        for n in range(4)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [value for process in processes for value in json.loads(process.communicate(timeout=60)[0])]
    assert sorted(told) == list(range(1, 201))


async def test_directory_etags_change_with_every_write_of_the_same_bytes(tmp_path: Path) -> None:
    store = DirectoryObjectStore(tmp_path)
    first = await store.put("k", b"same")
    second = await store.put("k", b"same")
    await store.delete("k")
    third = await store.put("k", b"same")
    assert len({first, second, third}) == 3


async def test_directory_reads_check_the_bytes(tmp_path: Path) -> None:
    store = DirectoryObjectStore(tmp_path)
    await store.put("a/k", b"precious")
    file = tmp_path / "objects" / "a" / "k#"
    file.write_bytes(file.read_bytes().replace(b"prec", b"perc"))
    with pytest.raises(CorruptionError, match="checksum"):
        await store.get("a/k")
    file.write_bytes(b"")
    with pytest.raises(CorruptionError, match="header"):
        await store.get("a/k")


async def test_directory_times_out_when_a_stopped_process_holds_the_lock(tmp_path: Path) -> None:
    store = DirectoryObjectStore(tmp_path, DirectorySettings(lock_timeout_ms=50))
    etag = await store.put("k", b"1")
    with store._lock("k"):
        with pytest.raises(BucketUnavailableError, match="lock"):
            await store.put_if("k", b"2", etag=etag)
        found = await store.get("k")
        assert found is not None and found.data == b"1"
    await store.put("k", b"3")


async def test_directory_write_that_does_not_end_in_time_is_ambiguous(tmp_path: Path) -> None:
    store = DirectoryObjectStore(tmp_path, DirectorySettings(timeout_ms=50, lock_timeout_ms=10_000))
    etag = await store.put("k", b"1")
    with store._lock("k"), pytest.raises(AmbiguousWriteError):
        await store.put_if("k", b"2", etag=etag)


async def test_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(BucketUnavailableError, match="file"):
        DirectoryObjectStore(tmp_path / "file" / "bucket")


async def test_directory_sweeps_old_temporary_files_only(tmp_path: Path) -> None:
    DirectoryObjectStore(tmp_path)
    old, young = tmp_path / "tmp" / "old", tmp_path / "tmp" / "young"
    old.write_bytes(b"")
    young.write_bytes(b"")
    os.utime(old, (1, 1))
    DirectoryObjectStore(tmp_path)
    assert not old.exists() and young.exists()


INCREMENT_FOR_EVER = """
import asyncio, sys
from dakera_cluster.storage.directory import DirectoryObjectStore
from tests.support.counter import increment
from tests.support.powerloss import lose_power, make_powerloss_env
async def main():
    store = DirectoryObjectStore(sys.argv[1])
    while True:
        print(*await increment(store, "deep/er/counter", 1, "w"), flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("seed", [None, 1, 2])
async def test_directory_writes_survive_power_loss_once_acknowledged(tmp_path: Path, seed: int | None) -> None:
    root = tmp_path / "bucket"
    env = make_powerloss_env(root, sync_delay_ms=1)
    told = await asyncio.to_thread(_told_until_killed, [sys.executable, "-c", INCREMENT_FOR_EVER, str(root)], env)
    lose_power(root, seed=seed)
    found = await DirectoryObjectStore(root).get("deep/er/counter")
    assert found is not None
    assert json.loads(found.data)["n"] in (told, told + 1)


def _told_until_killed(command: list[str], env: dict[str, str]) -> int:
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(10)]
        child.kill()
        lines += child.stdout.readlines()
    return int([line for line in lines if line.endswith(b"\n")][-1])
