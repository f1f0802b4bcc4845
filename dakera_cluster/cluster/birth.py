"""Which cluster a node belongs to: an id in the bucket, made once by compare-and-swap, kept on every node's disk.

The id is part of every gossip packet and peer handshake, so nodes of two clusters never mix. A node that has been a member
starts without the bucket. Called by the composition root before gossip begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets

from dakera_cluster.model.errors import BucketUnavailableError, StorageError
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.objects import ABSENT, AmbiguousWriteError, ObjectStore, PreconditionFailedError
from dakera_cluster.storage.rows import RowStore

log = logging.getLogger(__name__)

CLUSTER_OBJECT = "cluster/id"
CLUSTER_KEY = b"node/cluster"
RETRY_S = 2.0


async def join_bucket(store: RowStore, objects: ObjectStore) -> str:
    """The cluster id. Waits for the bucket when this disk has never belonged to a cluster.

    Raises StorageError when disk and bucket belong to different clusters.
    """
    kept = store.get(keys.META, CLUSTER_KEY)
    while True:
        try:
            found = await _read_or_make(objects)
            break
        except BucketUnavailableError as error:
            if kept is not None:
                log.warning("the bucket does not answer; going on as a member of cluster %s", kept.decode())
                return kept.decode()
            log.warning("waiting for the bucket, which names the cluster: %s", error.message)
            await asyncio.sleep(RETRY_S)
    if kept is not None and kept.decode() != found:
        raise StorageError(f"this disk belongs to cluster {kept.decode()}, the bucket to cluster {found}")
    if kept is None:
        await store.commit(WriteBatch().put(keys.META, CLUSTER_KEY, found.encode()))
    return found


async def _read_or_make(objects: ObjectStore) -> str:
    found = await objects.get(CLUSTER_OBJECT)
    if found is None:
        with contextlib.suppress(PreconditionFailedError, AmbiguousWriteError):
            await objects.put_if(CLUSTER_OBJECT, secrets.token_hex(8).encode(), etag=ABSENT)
        found = await objects.get(CLUSTER_OBJECT)
    if found is None:
        raise BucketUnavailableError("the cluster's id was written, but is not there")
    return found.data.decode()
