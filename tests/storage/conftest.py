"""S3 servers that the object store tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dakera_cluster.storage.s3 import S3Settings
from tests.support import s3_servers


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Settings]:
    with s3_servers.moto() as settings:
        yield settings


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Settings]:
    if s3_servers.find_program("minio") is None:
        pytest.skip("minio is not installed: go install github.com/minio/minio@<commit of a release>")
    with s3_servers.minio(tmp_path_factory.mktemp("minio")) as settings:
        yield settings
