"""What the S3 store does when replies are lost, servers are busy, and conditions are ignored."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from dakera_cluster.model.errors import BucketUnavailableError
from dakera_cluster.storage.objects import (
    ABSENT,
    AmbiguousWriteError,
    ConditionsIgnoredError,
    ObjectStore,
    PreconditionFailedError,
)
from dakera_cluster.storage.s3 import S3ObjectStore, S3Settings
from tests.support import s3_servers
from tests.support.counter import increment
from tests.support.s3_relay import Fault, S3Relay

RETRIES = 3


class Pair(NamedTuple):
    """A store behind a relay, and one that reaches the same bucket undisturbed."""

    store: S3ObjectStore
    relay: S3Relay
    direct: S3ObjectStore


@pytest.fixture
async def pair(moto_server: S3Settings) -> AsyncIterator[Pair]:
    direct = S3ObjectStore(moto_server)
    await direct.create_bucket()
    assert moto_server.endpoint_url is not None
    async with S3Relay(moto_server.endpoint_url) as relay:
        settings = msgspec.structs.replace(
            moto_server,
            endpoint_url=relay.url,
            read_timeout_ms=300,
            connect_timeout_ms=300,
            pause_ms=1,
            retries=RETRIES,
        )
        store = S3ObjectStore(settings)
        yield Pair(store, relay, direct)
        await store.close()
    await direct.close()


@pytest.fixture
def key() -> str:
    return f"s3/{secrets.token_hex(6)}"


async def data_at(store: ObjectStore, key: str) -> bytes | None:
    found = await store.get(key)
    return found.data if found else None


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.LATE, Fault.ERROR_DONE])
async def test_a_lost_reply_of_a_write_that_happened_is_ambiguous(pair: Pair, key: str, fault: Fault) -> None:
    etag = await pair.store.put_if(key, b"0", etag=ABSENT)
    pair.relay.arrived.clear()
    pair.relay.fail("PUT", fault)
    with pytest.raises(AmbiguousWriteError) as caught:
        await pair.store.put_if(key, b"mine", etag=etag)
    assert caught.value.ambiguous and caught.value.retryable
    assert await data_at(pair.direct, key) == b"mine"
    assert pair.relay.arrived.count("PUT") == 2, "one that was applied, and one retry that met it"


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.ERROR_NOT_DONE, Fault.SLOW_DOWN, Fault.CONFLICT])
async def test_a_write_that_did_not_happen_is_retried(pair: Pair, key: str, fault: Fault) -> None:
    pair.relay.fail("PUT", fault, fault)
    await pair.store.put_if(key, b"mine", etag=ABSENT)
    assert await data_at(pair.direct, key) == b"mine"
    assert pair.relay.arrived.count("PUT") == 3


async def test_each_request_is_sent_once_by_the_layers_below(pair: Pair, key: str) -> None:
    """A PUT that is repeated below us after a reset comes back as 412: our own write would look like a lost race."""
    await pair.store.put(key, b"0")  # leaves a connection in the pool
    pair.relay.arrived.clear()
    pair.relay.fail("PUT", *[Fault.LOSE_REQUEST] * (RETRIES + 1))
    with pytest.raises(AmbiguousWriteError):
        await pair.store.put_if(key, b"1", etag=ABSENT)
    assert pair.relay.arrived.count("PUT") == RETRIES + 1


async def test_a_conflict_with_our_own_bytes_is_ambiguous(pair: Pair, key: str) -> None:
    """As when a proxy repeated the request: the first answer we see is 412, and the object is what we wrote."""
    await pair.direct.put(key, b"mine with nonce 17")
    with pytest.raises(AmbiguousWriteError):
        await pair.store.put_if(key, b"mine with nonce 17", etag=ABSENT)
    with pytest.raises(PreconditionFailedError):
        await pair.store.put_if(key, b"mine with nonce 18", etag=ABSENT)


async def test_a_lost_race_after_a_lost_reply_stays_open(pair: Pair, key: str) -> None:
    etag = await pair.direct.put_if(key, b"0", etag=ABSENT)
    pair.relay.fail("PUT", Fault.LOSE_REQUEST)
    await pair.direct.put_if(key, b"theirs", etag=etag)
    with pytest.raises(AmbiguousWriteError):
        await pair.store.put_if(key, b"mine", etag=etag)
    assert await data_at(pair.direct, key) == b"theirs"


async def test_only_refusals_end_in_unavailable_and_not_in_doubt(pair: Pair, key: str) -> None:
    pair.relay.fail("PUT", *[Fault.SLOW_DOWN] * (RETRIES + 1))
    with pytest.raises(BucketUnavailableError, match="SlowDown") as caught:
        await pair.store.put_if(key, b"mine", etag=ABSENT)
    assert not caught.value.ambiguous
    assert await data_at(pair.direct, key) is None


async def test_no_server_is_unavailable_and_not_in_doubt(key: str) -> None:
    settings = s3_servers.settings_for(s3_servers.free_port())
    store = S3ObjectStore(msgspec.structs.replace(settings, pause_ms=1))
    for use in (store.get(key), store.put_if(key, b"x", etag=ABSENT), store.list("a"), store.probe()):
        with pytest.raises(BucketUnavailableError) as caught:
            await use
        assert not caught.value.ambiguous
    await store.close()


async def test_reads_and_plain_writes_survive_every_fault(pair: Pair, key: str) -> None:
    for fault in (Fault.LOSE_REPLY, Fault.LOSE_REQUEST, Fault.LATE, Fault.ERROR_DONE, Fault.SLOW_DOWN):
        pair.relay.fail("PUT", fault)
        await pair.store.put(key, fault.name.encode())
        pair.relay.fail("GET", fault)
        assert await data_at(pair.store, key) == fault.name.encode()
        pair.relay.fail("GET", fault)
        assert len(await pair.store.list(key)) == 1
        pair.relay.fail("DELETE", fault)
        await pair.store.delete(key)
        assert await data_at(pair.direct, key) is None
    assert not pair.relay.faults


async def test_refused_credentials_are_said_at_once(pair: Pair, key: str) -> None:
    pair.relay.fail("PUT", Fault.FORBIDDEN)
    with pytest.raises(BucketUnavailableError, match="403 AccessDenied"):
        await pair.store.put_if(key, b"x", etag=ABSENT)
    assert pair.relay.arrived.count("PUT") == 1


async def test_a_missing_bucket_is_named(moto_server: S3Settings, key: str) -> None:
    store = S3ObjectStore(msgspec.structs.replace(moto_server, bucket="not-there"))
    for use in (store.get(key), store.put_if(key, b"x", etag=ABSENT), store.put_if(key, b"x", etag='"e"')):
        with pytest.raises(BucketUnavailableError, match="not-there: 404 NoSuchBucket"):
            await use
    await store.close()


async def test_a_server_without_conditions_is_refused(pair: Pair, key: str) -> None:
    pair.relay.fail("PUT", Fault.UNSUPPORTED)
    with pytest.raises(ConditionsIgnoredError, match="no conditional writes"):
        await pair.store.probe()


async def test_the_probe_asks_again_after_a_lost_reply(pair: Pair) -> None:
    pair.relay.fail("PUT", Fault.LOSE_REPLY)
    await pair.store.probe()


async def test_the_probe_refuses_a_server_that_ignores_conditions(tmp_path: Path) -> None:
    with s3_servers.rclone(tmp_path) as settings:
        store = S3ObjectStore(settings)
        with pytest.raises(ConditionsIgnoredError, match="If-None-Match"):
            await store.probe()
        assert not await store.list("probe/")
        await store.put("works/otherwise", b"x")
        assert await data_at(store, "works/otherwise") == b"x"
        await store.close()


async def test_a_prefix_keeps_clusters_apart(moto_server: S3Settings, key: str) -> None:
    stores = [S3ObjectStore(msgspec.structs.replace(moto_server, prefix=prefix)) for prefix in ("one/", "two/")]
    await stores[0].create_bucket()
    for n, store in enumerate(stores):
        await store.put_if(key, b"%d" % n, etag=ABSENT)
    for n, store in enumerate(stores):
        assert await data_at(store, key) == b"%d" % n
        assert [info.key for info in await store.list("s3/", after=key[:-1])] == [key]
        await store.close()


async def test_listings_longer_than_a_page_of_the_server(
    moto_server: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dakera_cluster.storage.s3.LIST_LIMIT", 7)
    store = S3ObjectStore(moto_server)
    await store.create_bucket()
    keys = [f"many/{n:05d}" for n in range(30)]
    await asyncio.gather(*(store.put(key, b"") for key in keys))
    assert [info.key for info in await store.list("many/", limit=5000)] == keys
    assert [info.key for info in await store.list("many/", after=keys[10], limit=15)] == keys[11:26]
    await store.close()


async def test_racing_increments_lose_no_update_through_a_lossy_network(pair: Pair, key: str) -> None:
    faults = [Fault.LOSE_REPLY, Fault.LOSE_REQUEST, Fault.ERROR_DONE, Fault.CONFLICT, Fault.SLOW_DOWN]
    told: list[int] = []
    writers = [asyncio.create_task(increment(pair.store, key, 8, f"w{n}")) for n in range(5)]
    while not all(writer.done() for writer in writers):
        if not pair.relay.faults:
            pair.relay.fail("PUT", faults[len(pair.relay.arrived) % len(faults)])
        await asyncio.sleep(0.01)
    for writer in writers:
        told += writer.result()
    assert sorted(told) == list(range(1, 41))
