"""Objects in an S3 bucket (AWS S3, MinIO and others that honour conditional writes).

What each answer to a conditional PUT means, and what is done::

    200                               written                         return the etag
    412 PreconditionFailed            another version is there        PreconditionFailedError, unless it may be ours
    404 NoSuchKey (If-Match)          there is no version             the same
    409 ConditionalRequestConflict    not written, a race is on       retry after a pause
    connect refused, no route, DNS    never sent                      retry after a pause
    429, 503 SlowDown                 not written                     retry after a pause
    500, 502, 503, 504, reset, late   may be written                  retry; the outcome stays open if no retry settles it
    501 NotImplemented                conditions are not known there  ConditionsIgnoredError
    301, 400, 401, 403, NoSuchBucket  configuration                   BucketUnavailableError that says so, at once

A 412 that follows a lost reply may be the echo of our own write. So may a 412 to the first request we know of, because
something below us (an HTTP library, a proxy) may have repeated a PUT, which HTTP calls idempotent. Therefore a 412 is
compared with what is stored: when those are our bytes the answer is AmbiguousWriteError, and the caller, who put a nonce
into them, knows. For the same reason all retries are made here: botocore's are switched off, and aiohttp's silent
repetition of a PUT on a broken connection too.

Called through ``ObjectStore``; imported only when a bucket is configured, because botocore costs 40 MB of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any, NoReturn, TypeVar

import aiohttp
import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    SSLError,
)

from dakera_cluster.model.errors import BucketUnavailableError
from dakera_cluster.storage.objects import (
    ABSENT,
    LIST_LIMIT,
    Absent,
    AmbiguousWriteError,
    ConditionsIgnoredError,
    Object,
    ObjectInfo,
    PreconditionFailedError,
    check_key,
    check_prefix,
    probe_conditions,
)

T = TypeVar("T")

THROTTLED = frozenset({"SlowDown", "TooManyRequests", "RequestLimitExceeded", "Throttling", "ThrottlingException"})
CONFLICTS = frozenset({"ConditionalRequestConflict", "OperationAborted"})


class S3Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bucket is and how long to wait for it."""

    bucket: str
    region: str = "us-east-1"
    endpoint_url: str | None = None
    """None: AWS."""
    access_key: str | None = None
    """None: botocore's chain (environment, shared files, role of the instance or pod)."""
    secret_key: str | None = None
    prefix: str = ""
    """Put before every key, so that several clusters can share a bucket. Ends in ``/`` or is empty."""
    connect_timeout_ms: int = 2_000
    read_timeout_ms: int = 5_000
    """For an answer to begin, and between two parts of it."""
    least_bytes_per_s: int = 1 << 20
    """Slowest transfer that is waited for: adds to the time-out of an attempt by the size of its body."""
    retries: int = 3
    pause_ms: int = 100
    """Before the first retry; doubled for each further one, with full jitter."""
    longest_pause_ms: int = 2_000
    connections: int = 16


class _Outcome(Enum):
    """What an error says about the request it answered."""

    NOT_DONE = "not done"
    UNSURE = "unsure"
    REFUSED = "refused"
    FATAL = "fatal"


class _OneAttemptSession(AIOHTTPSession):  # type: ignore[misc]
    """An HTTP session that sends each request once: aiohttp repeats a PUT whose connection broke, unseen by its caller."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


class S3ObjectStore:
    """An ObjectStore in a bucket. One connection pool, opened by the first request, for one event loop."""

    def __init__(self, settings: S3Settings) -> None:
        if settings.prefix:
            check_key(settings.prefix.removesuffix("/"))
        self._settings = settings
        self._opening = asyncio.Lock()
        self._exit = contextlib.AsyncExitStack()
        self._client: Any = None
        self._random = random.Random()

    async def get(self, key: str) -> Object | None:
        name = self._name(key)

        async def attempt(client: Any) -> Object | None:
            try:
                answer = await client.get_object(Bucket=self._settings.bucket, Key=name)
            except ClientError as error:
                if _code(error) in ("NoSuchKey", "404"):
                    return None
                raise
            async with answer["Body"] as body:
                return Object(await body.read(), answer["ETag"])

        return await self._retrying(attempt, 0)

    async def put(self, key: str, data: bytes) -> str:
        name = self._name(key)

        async def attempt(client: Any) -> str:
            answer = await client.put_object(Bucket=self._settings.bucket, Key=name, Body=data)
            return str(answer["ETag"])

        return await self._retrying(attempt, len(data))

    async def put_if(self, key: str, data: bytes, *, etag: str | Absent) -> str:
        name = self._name(key)
        condition = {"IfNoneMatch": "*"} if etag is ABSENT else {"IfMatch": etag}

        async def attempt(client: Any) -> str:
            answer = await client.put_object(Bucket=self._settings.bucket, Key=name, Body=data, **condition)
            return str(answer["ETag"])

        try:
            return await self._retrying(attempt, len(data), conditional=True)
        except PreconditionFailedError:
            stored = await self._settle(key)
            if stored is not None and stored.data == data:
                raise AmbiguousWriteError(
                    f"the bucket holds what was written to {key}, but calls it a conflict"
                ) from None
            raise

    async def delete(self, key: str) -> None:
        name = self._name(key)

        async def attempt(client: Any) -> None:
            await client.delete_object(Bucket=self._settings.bucket, Key=name)

        await self._retrying(attempt, 0)

    async def list(self, prefix: str, *, after: str = "", limit: int = LIST_LIMIT) -> Sequence[ObjectInfo]:
        base = self._settings.prefix
        check_prefix(prefix)
        found: Sequence[ObjectInfo] = ()
        while (left := limit - len(found)) > 0:
            asked = min(left, LIST_LIMIT)
            page = await self._page(base + prefix, base + after if after else "", asked)
            found = (*found, *page)
            if len(page) < asked:
                break
            after = page[-1].key
        return found

    async def probe(self) -> None:
        await probe_conditions(self)

    async def create_bucket(self) -> None:
        """Create the bucket unless it exists: for local stacks, where nobody else does."""

        async def attempt(client: Any) -> None:
            try:
                await client.head_bucket(Bucket=self._settings.bucket)
                return
            except ClientError as error:
                if _status(error) != 404:
                    raise
            region = self._settings.region
            where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            try:
                await client.create_bucket(Bucket=self._settings.bucket, **where)
            except ClientError as error:
                if _code(error) != "BucketAlreadyOwnedByYou":
                    raise

        await self._retrying(attempt, 0)

    async def close(self) -> None:
        await self._exit.aclose()
        self._client = None

    async def _page(self, prefix: str, after: str, limit: int) -> Sequence[ObjectInfo]:
        skip = len(self._settings.prefix)

        async def attempt(client: Any) -> Sequence[ObjectInfo]:
            start = {"StartAfter": after} if after else {}
            answer = await client.list_objects_v2(Bucket=self._settings.bucket, Prefix=prefix, MaxKeys=limit, **start)
            return tuple(ObjectInfo(o["Key"][skip:], o["Size"], o["ETag"]) for o in answer.get("Contents", ()))

        return await self._retrying(attempt, 0)

    async def _settle(self, key: str) -> Object | None:
        """What is stored now, to tell a lost race from an echo of our own write."""
        try:
            return await self.get(key)
        except BucketUnavailableError as error:
            raise AmbiguousWriteError(
                f"the outcome of the write of {key} could not be read: {error.message}"
            ) from error

    async def _retrying(
        self, attempt: Callable[[Any], Awaitable[T]], body_bytes: int, *, conditional: bool = False
    ) -> T:
        """Make attempts until one answers. A conditional write whose reply was lost ends in AmbiguousWriteError."""
        settings = self._settings
        limit_s = (
            settings.connect_timeout_ms + settings.read_timeout_ms
        ) / 1e3 + body_bytes / settings.least_bytes_per_s
        unsure = False
        for number in range(settings.retries + 1):
            if number:
                longest = min(settings.longest_pause_ms, settings.pause_ms << (number - 1))
                await asyncio.sleep(self._random.uniform(0, longest / 1e3))
            try:
                async with asyncio.timeout(limit_s):
                    return await attempt(await self._connected())
            except (BotoCoreError, ClientError, aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = error
            outcome = _outcome(problem)
            if outcome is _Outcome.FATAL:
                _raise_fatal(problem, settings.bucket, conditional)
            if outcome is _Outcome.REFUSED:
                if conditional and not unsure:
                    raise PreconditionFailedError("the object is not in the version the write asked for") from problem
                break
            unsure = unsure or outcome is _Outcome.UNSURE
        text = f"bucket {settings.bucket}: {_describe(problem)}"
        if conditional and unsure:
            raise AmbiguousWriteError(text) from problem
        raise BucketUnavailableError(text) from problem

    async def _connected(self) -> Any:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._open()
        return self._client

    async def _open(self) -> Any:
        settings = self._settings
        config = AioConfig(
            signature_version="s3v4",
            connect_timeout=settings.connect_timeout_ms / 1e3,
            read_timeout=settings.read_timeout_ms / 1e3,
            max_pool_connections=settings.connections,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            # The newer trailing checksums are not understood by every S3 server; the objects carry their own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            http_session_cls=_OneAttemptSession,
        )
        client = _session().create_client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            config=config,
        )
        return await self._exit.enter_async_context(client)

    def _name(self, key: str) -> str:
        return self._settings.prefix + check_key(key)


@functools.cache
def _session() -> AioSession:
    """One for all stores of the process: it holds the parsed description of S3."""
    return get_session()


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _outcome(error: Exception) -> _Outcome:
    """The table of the module docstring."""
    if isinstance(error, ClientError):
        code, status = _code(error), _status(error)
        if code in CONFLICTS or code in THROTTLED or status == 429:
            return _Outcome.NOT_DONE
        if status == 412 or code == "NoSuchKey":
            return _Outcome.REFUSED
        if status in (500, 502, 503, 504):
            return _Outcome.UNSURE
        return _Outcome.FATAL
    if isinstance(error, ConnectTimeoutError | SSLError):
        return _Outcome.NOT_DONE
    if isinstance(error, EndpointConnectionError):
        # The same class stands for "no connection" and for one that was reset after the request had been sent.
        cause = error.kwargs.get("error")
        never_sent = isinstance(cause, aiohttp.ClientConnectorError | socket.gaierror | ConnectionRefusedError)
        return _Outcome.NOT_DONE if never_sent else _Outcome.UNSURE
    if isinstance(error, HTTPClientError | aiohttp.ClientError | TimeoutError | OSError):
        return _Outcome.UNSURE
    return _Outcome.FATAL


def _raise_fatal(error: Exception, bucket: str, conditional: bool) -> NoReturn:
    if isinstance(error, ClientError) and conditional and _status(error) == 501:
        raise ConditionsIgnoredError(f"bucket {bucket}: the object store has no conditional writes") from error
    raise BucketUnavailableError(f"bucket {bucket}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    if isinstance(error, ClientError):
        return f"{_status(error)} {_code(error)}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
    return str(error) or type(error).__name__
