"""The bucket of a local stack: a directory, or an S3 server on loopback.

MinIO is used where it is installed; otherwise moto, which honours conditional writes and keeps nothing when it stops, so the
nodes' data is then temporary too. Called by the stack, before the nodes start.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ops.local.balancer import find_program
from ops.local.layout import HOST, Layout

ACCESS_KEY = "dakera-local-key-001"
SECRET_KEY = "dakera-local-secret-on-loopback-only"
BUCKET = "dakera"


class BucketKind(enum.StrEnum):
    DIRECTORY = "dir"
    MINIO = "minio"
    MOTO = "moto"


class Server(NamedTuple):
    argv: Sequence[str]
    env: Mapping[str, str]


def choose(asked: str) -> BucketKind:
    """What `BUCKET=` means on this machine. Raises ValueError."""
    if asked == BucketKind.DIRECTORY:
        return BucketKind.DIRECTORY
    if asked not in ("s3", BucketKind.MINIO, BucketKind.MOTO):
        raise ValueError(f"BUCKET={asked}: expected dir or s3")
    if asked != BucketKind.MOTO and find_program("minio") is not None:
        return BucketKind.MINIO
    if asked == BucketKind.MINIO:
        raise ValueError("MinIO is not installed: go install github.com/minio/minio@RELEASE.2025-09-07T16-13-09Z")
    if find_program("moto_server") is None:
        raise ValueError("no S3 server is installed: pip install 'dakera-cluster[stack-s3]', or MinIO")
    return BucketKind.MOTO


def server(kind: BucketKind, layout: Layout, home: Path) -> Server | None:
    """How to run the bucket's server; None for a directory."""
    address = f"{HOST}:{layout.bucket_port}"
    if kind is BucketKind.MINIO:
        program = find_program("minio")
        assert program is not None, "choose() found it"
        console = f"{HOST}:{layout.bucket_console_port}"
        argv = [program, "server", "--address", address, "--console-address", console, str(home / "minio")]
        return Server(argv, {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY})
    if kind is BucketKind.MOTO:
        argv = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(layout.bucket_port)]
        return Server(argv, {})
    return None


def node_settings(kind: BucketKind, layout: Layout, home: Path) -> dict[str, str]:
    """What the nodes must be told."""
    if kind is BucketKind.DIRECTORY:
        return {"DAKERA_STORAGE": "filesystem", "DAKERA_BUCKET_PATH": str(home / "bucket")}
    return {
        "DAKERA_STORAGE": "s3",
        "DAKERA_S3_ENDPOINT": f"http://{HOST}:{layout.bucket_port}",
        "DAKERA_S3_BUCKET": BUCKET,
        "DAKERA_S3_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }


def create(layout: Layout) -> str | None:
    """Create the bucket if it is not there. Returns why that is not possible (yet), None when it is there."""
    try:
        asyncio.run(_create(f"http://{HOST}:{layout.bucket_port}"))
    except Exception as error:  # botocore's errors have no narrower common base than Exception
        return str(error)
    return None


async def _create(endpoint: str) -> None:
    from aiobotocore.session import get_session
    from botocore.config import Config

    config = Config(connect_timeout=2, read_timeout=5, retries={"max_attempts": 1})
    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
    async with get_session().create_client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=config, **keys
    ) as client:
        names = [bucket["Name"] for bucket in (await client.list_buckets()).get("Buckets", [])]
        if BUCKET not in names:
            await client.create_bucket(Bucket=BUCKET)
