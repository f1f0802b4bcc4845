"""The object store: named objects, and the conditional write on which every decision of the cluster rests.

Contract (the same for S3, a shared directory and memory; one test suite runs against all of them):

- ``put_if(key, data, etag=ABSENT)`` creates, ``put_if(key, data, etag=E)`` replaces the version ``E``. Of any number of
  racing writers exactly one succeeds; the others get ``PreconditionFailedError``.
- An etag names one version as far as the store can tell. S3's etag is a checksum of the content, so that two different
  writers of the same bytes look alike: a caller to whom that matters (the lease) puts a nonce into the bytes.
- A reply that got lost raises ``AmbiguousWriteError``: the write may be there. The caller reads and looks for its nonce;
  only it knows what it wrote. Another writer may have built a version on top of it in the meantime: a caller that must
  know then keeps the last nonce of each writer in the object, or makes its change idempotent.
- ``get`` after an acknowledged write returns that write or a later one (strong consistency, as S3 documents since 2020).
- ``probe`` proves that conditions are honoured. Some stores accept the headers and ignore them; a cluster on such a store
  would have many leaders, so that nothing may campaign before a probe has passed.

Use no key that is a directory of another one (``a`` beside ``a/b``): MinIO stores both and lists one.

Called by the leader loop, the catalog, the bucket tier and backup. The bytes are opaque here.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol, runtime_checkable

import msgspec

from dakera_cluster.model.errors import BucketUnavailableError, ConflictError, InvalidRequestError, StorageError

MAX_KEY_BYTES = 512
LIST_LIMIT = 1000
PROBE_PREFIX = "probe/"
PROBE_ROUNDS = 5
PROBE_RACERS = 4
PROBE_ATTEMPTS = 3

_PART_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=+@%")


class Absent(Enum):
    """The type of ``ABSENT``."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
"""The condition of a write that creates: no object may be there."""


class Object(msgspec.Struct, frozen=True):
    """One version of an object."""

    data: bytes
    etag: str


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object in a listing."""

    key: str
    size_bytes: int
    etag: str


class PreconditionFailedError(ConflictError):
    """The object is not in the version the write asked for: another writer was first."""


class AmbiguousWriteError(BucketUnavailableError):
    """The reply of a write was lost: it may or may not be there. Read the object to find out."""

    ambiguous = True


class ConditionsIgnoredError(StorageError):
    """The store accepts conditional writes and does not honour them: it cannot hold a lease or a shard map."""


@runtime_checkable
class ObjectStore(Protocol):
    """See the module docstring. Keys are ``/``-separated parts of ``[A-Za-z0-9-_.=+@%]``, none of them ``.`` or ``..``.

    Every method may raise BucketUnavailableError (retryable: the store did not answer) and InvalidRequestError (the key).
    """

    async def get(self, key: str) -> Object | None:
        """The object, or None when there is none."""
        ...

    async def put(self, key: str, data: bytes) -> str:
        """Write whatever is there; returns the etag. Idempotent, so that lost replies are retried inside."""
        ...

    async def put_if(self, key: str, data: bytes, *, etag: str | Absent) -> str:
        """Write if the object is in the version ``etag`` (or absent); returns the new etag.

        Raises PreconditionFailedError when it is not, AmbiguousWriteError when the reply was lost.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; no error when there is none."""
        ...

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_LIMIT) -> Sequence[ObjectInfo]:
        """Objects whose key starts with ``prefix`` and is greater than ``after``, in key order, at most ``limit``."""
        ...

    async def probe(self) -> None:
        """Raise ConditionsIgnoredError, saying what the store did, unless it honours conditional writes."""
        ...

    async def close(self) -> None:
        """Release connections. The store is unusable afterwards."""
        ...


def check_key(key: str) -> str:
    """Return ``key`` when every store can hold it under that name; raise InvalidRequestError otherwise."""
    if not key or len(key) > MAX_KEY_BYTES:
        raise InvalidRequestError(f"must have 1 to {MAX_KEY_BYTES} characters, got {len(key)}", field="object key")
    for part in key.split("/"):
        if not part or part in (".", "..") or not _PART_ALPHABET.issuperset(part):
            raise InvalidRequestError(f"{key!r} has the unusable part {part!r}", field="object key")
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` when it can begin a key (it may be empty or end in the middle of a part)."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


async def probe_conditions(store: ObjectStore) -> None:
    """Prove on ``store`` that conditional writes are honoured, on objects of its own that it removes.

    An unsure answer is asked again on a fresh object, a few times, before BucketUnavailableError is raised: a probe that
    guesses is worse than none.
    """
    for attempt in range(PROBE_ATTEMPTS):
        key = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
        try:
            await _probe_once(store, key)
            return
        except AmbiguousWriteError:
            if attempt == PROBE_ATTEMPTS - 1:
                raise
        finally:
            with contextlib.suppress(BucketUnavailableError):
                await store.delete(key)


async def _probe_once(store: ObjectStore, key: str) -> None:
    try:
        first = await store.put_if(key, b"first", etag=ABSENT)
    except PreconditionFailedError:
        raise ConditionsIgnoredError(
            "the object store refused If-None-Match: * on an object that does not exist"
        ) from None
    await _must_fail(store, key, ABSENT, "overwrote an existing object although If-None-Match: * was sent")
    second = await store.put_if(key, b"second", etag=first)
    if second == first:
        raise ConditionsIgnoredError("the object store gave two versions with different content the same etag")
    await _must_fail(store, key, first, "replaced an object although If-Match named an older version")
    absent = f"{key}-absent"
    try:
        await _must_fail(store, absent, second, "created an object although If-Match named a version of it")
    finally:
        await store.delete(absent)
    current = await store.get(key)
    if current is None or current.data != b"second" or current.etag != second:
        raise ConditionsIgnoredError("the object store returned an older version right after an acknowledged write")
    etag = second
    for race in range(PROBE_ROUNDS):
        winners = await _race(store, key, etag, race)
        if len(winners) != 1:
            raise ConditionsIgnoredError(
                f"the object store let {len(winners)} of {PROBE_RACERS} racing writers replace the same version"
            )
        etag = winners[0]


async def _must_fail(store: ObjectStore, key: str, etag: str | Absent, did: str) -> None:
    try:
        await store.put_if(key, b"refused", etag=etag)
    except PreconditionFailedError:
        return
    raise ConditionsIgnoredError(
        f"the object store ignores conditional writes: it {did}. "
        "Use a store that honours them (AWS S3, MinIO since 2025-09-06), or a shared directory"
    )


async def _race(store: ObjectStore, key: str, etag: str, race: int) -> list[str]:
    """Let several writers replace the version ``etag``; the etags of those that were told they did."""

    async def write(racer: int) -> str | None:
        try:
            return await store.put_if(key, b"race %d racer %d" % (race, racer), etag=etag)
        except PreconditionFailedError:
            return None

    answers = await asyncio.gather(*(write(racer) for racer in range(PROBE_RACERS)), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if isinstance(answer, str)]
