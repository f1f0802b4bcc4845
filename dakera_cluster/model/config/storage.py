"""Settings of what is kept where: rows on disk, the bucket, caches, tiers and encryption at rest."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import (
    BUCKET,
    Bool,
    Choice,
    Duration,
    Int,
    Path,
    Secret,
    SecretText,
    Size,
    Text,
    Url,
)
from dakera_cluster.model.config.variable import Var


class StorageKind(enum.StrEnum):
    MEMORY = "memory"
    FILESYSTEM = "filesystem"
    S3 = "s3"
    MINIO = "minio"

    @property
    def in_s3(self) -> bool:
        return self in (StorageKind.S3, StorageKind.MINIO)


class Cipher(enum.StrEnum):
    AES_256_GCM = "aes-256-gcm"


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    kind: Annotated[
        StorageKind,
        Var(
            "DAKERA_STORAGE",
            Choice(StorageKind),
            "memory keeps nothing over a restart; filesystem keeps rows under the storage path; s3 and minio also "
            "keep the bucket in S3. Naming a storage path without this variable implies filesystem",
            effect=True,
        ),
    ] = StorageKind.MEMORY
    path: Annotated[str, Var("DAKERA_STORAGE_PATH", Path(), "data directory (the image sets /data)", effect=True)] = (
        "./data"
    )
    bucket_path: Annotated[
        str | None,
        Var(
            "DAKERA_BUCKET_PATH",
            Path(),
            "directory used as the bucket when there is no S3; all nodes of a cluster must share it",
            unset="bucket under the storage path, for one node alone",
            effect=True,
        ),
    ] = None
    s3_bucket: Annotated[str, Var("DAKERA_S3_BUCKET", BUCKET, "bucket name", effect=True)] = "dakera"
    s3_region: Annotated[str, Var("DAKERA_S3_REGION", Text(), "region of the bucket", effect=True)] = "us-east-1"
    s3_endpoint: Annotated[
        str | None, Var("DAKERA_S3_ENDPOINT", Url(), "S3-compatible endpoint", unset="AWS", effect=True)
    ] = None
    s3_max_retries: Annotated[int, Var("DAKERA_S3_MAX_RETRIES", Int(0, 100), "retries of a failed bucket request")] = 3
    s3_access_key: Annotated[
        str | None,
        Var("AWS_ACCESS_KEY_ID", Text(), "access key of the bucket", aliases=("DAKERA_S3_ACCESS_KEY",), effect=True),
    ] = None
    s3_secret_key: Annotated[
        Secret | None,
        Var(
            "AWS_SECRET_ACCESS_KEY",
            SecretText(),
            "secret key of the bucket",
            aliases=("DAKERA_S3_SECRET_KEY",),
            effect=True,
        ),
    ] = None
    encryption: Annotated[
        Cipher, Var("DAKERA_ENCRYPTION", Choice(Cipher), "cipher at rest, in use when an encryption key is given")
    ] = Cipher.AES_256_GCM
    encryption_key: Annotated[
        Secret | None,
        Var(
            "DAKERA_ENCRYPTION_KEY",
            SecretText(8),
            "64 hexadecimal digits, or a passphrase",
            unset="not encrypted",
            relied_on=True,
        ),
    ] = None
    view_snapshot_s: Annotated[
        int,
        Var("DAKERA_VIEW_SNAPSHOT_SECS", Duration("s", 1), "a changed index is written to disk at least this often"),
    ] = 300
    view_snapshot_changes: Annotated[
        int,
        Var("DAKERA_VIEW_SNAPSHOT_CHANGES", Int(1, of="changes"), "and after this many changes"),
    ] = 20_000
    l1_cache_bytes: Annotated[
        int, Var("DAKERA_L1_CACHE_SIZE", Size(), "memory for cached rows and blocks", effect=True)
    ] = 536_870_912
    l2_cache_path: Annotated[
        str | None,
        Var(
            "DAKERA_L2_CACHE_PATH",
            Path(),
            "directory of the row store",
            aliases=("DAKERA_ROCKSDB_PATH",),
            unset="rocksdb under the storage path",
            effect=True,
        ),
    ] = None
    cache_dir: Annotated[
        str | None, Var("DAKERA_CACHE_DIR", Path(), "general cache directory", unset="cache under the storage path")
    ] = None
    tiered: Annotated[
        bool | None,
        Var(
            "DAKERA_TIERED_STORAGE",
            Bool(),
            "keep cold memories in the bucket only",
            unset="true with s3 or minio",
        ),
    ] = None
    auto_tier: Annotated[bool, Var("DAKERA_AUTO_TIER", Bool(), "move memories between tiers by themselves")] = False
    hot_to_warm_s: Annotated[
        int, Var("DAKERA_HOT_TO_WARM_SECS", Duration("s", 1), "idle time before a memory leaves the first tier")
    ] = 3600
    warm_to_cold_s: Annotated[
        int, Var("DAKERA_WARM_TO_COLD_SECS", Duration("s", 1), "idle time before a memory leaves the disk")
    ] = 86_400
    tier_check_interval_s: Annotated[
        int, Var("DAKERA_TIER_CHECK_INTERVAL_SECS", Duration("s", 1), "time between two sweeps of the tiers")
    ] = 300
    hnsw_cache_max: Annotated[
        int, Var("DAKERA_HNSW_CACHE_MAX", Int(1, of="indexes"), "HNSW indexes kept in memory")
    ] = 50

    @property
    def tiering(self) -> bool:
        """Whether cold memories may live in the bucket alone."""
        return self.kind.in_s3 and self.tiered is not False
