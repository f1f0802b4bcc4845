"""Who this process is: a node id and a disk number that are kept on disk, and a boot number that grows with every start.

Node and boot name one process for the whole cluster; the disk number tells a node that came back with its rows from one that
came back without. Called by the composition root before anything else is started.
"""

from __future__ import annotations

import secrets

import msgspec

from dakera_cluster.model.errors import StorageError
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.shard import keys
from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import ReadView, RowStore

NODE_KEY = b"node/id"
BOOT_KEY = b"node/boot"
SHARDS_KEY = b"node/shards"
DISK_KEY = b"node/disk"


class Identity(msgspec.Struct, frozen=True):
    node: NodeId
    boot: BootId
    disk: int


async def take_identity(store: RowStore, configured: str | None, shards: int, now_s: int) -> Identity:
    """The node's id (kept, configured, or made now) with the next boot number.

    Raises StorageError when the disk belongs to a node of another id or a cluster of another shard count: rows are placed
    by both, so going on would lose them.
    """

    def prepare(view: ReadView) -> tuple[WriteBatch, Identity]:
        kept, kept_shards = view.get(keys.META, NODE_KEY), view.get(keys.META, SHARDS_KEY)
        if kept is not None and configured is not None and kept.decode() != configured:
            raise StorageError(
                f"DAKERA_NODE_ID is {configured!r}, but this disk belongs to node {kept.decode()!r}: "
                "give the node its own disk, or its own id back"
            )
        if kept_shards is not None and int(kept_shards) != shards:
            raise StorageError(f"DAKERA_SHARDS is {shards}, but this disk was made for {int(kept_shards)} shards")
        node = kept.decode() if kept is not None else configured or f"node-{secrets.token_hex(4)}"
        # Not simply one more than before: a node that lost its disk has forgotten its boots, the others have not, and would
        # take it for an older self. The clock only has to have advanced since the lost disk's last start.
        boot = max(int(view.get(keys.META, BOOT_KEY) or b"0") + 1, now_s)
        batch = WriteBatch().put(keys.META, NODE_KEY, node.encode()).put(keys.META, BOOT_KEY, str(boot).encode())
        disk = int(view.get(keys.META, DISK_KEY) or 1 + secrets.randbits(62))
        batch.put(keys.META, SHARDS_KEY, str(shards).encode()).put(keys.META, DISK_KEY, str(disk).encode())
        return batch, Identity(NodeId(node), BootId(boot), disk)

    return await store.commit(prepare)
