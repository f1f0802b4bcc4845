"""A host on a real disk with rows to put into it, for tests of the shard package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, delete_document, note_usage, patch_document, put_document
from dakera_cluster.shard import keys, ops
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.rows import RowStore

SHARD = 3
NAMESPACE = "_dakera_agent_ann"
DIMENSION = 16


class Bench:
    """A store and a host; ``reopen`` is a restart, with or without the snapshots an orderly stop writes."""

    def __init__(self, path: Path, settings: ViewSettings | None = None) -> None:
        self.path = path
        self.settings = settings or ViewSettings()
        self._time = 1_000
        self.open()

    def open(self) -> None:
        self.store = RowStore.open(self.path / "rows", keys.FAMILIES)
        host_settings = HostSettings(views_directory=self.path / "views")
        self.host = Host(self.store, lambda _: self.settings, host_settings, now_ms)

    async def close(self) -> None:
        await self.host.close()
        self.store.close()

    async def reopen(self) -> None:
        await self.close()
        self.open()

    async def crash(self) -> None:
        """Stop without snapshots."""
        self.store.close()
        self.open()

    def stamp(self) -> Stamp:
        self._time += 1
        return Stamp(self._time << 16, 1)

    async def apply(self, *rows: Row) -> ops.Applied:
        answer = await self.host.handle(ops.Apply(SHARD, 0, list(rows)))
        assert isinstance(answer, ops.Applied)
        return answer

    def put(self, row_id: str, text: str, **fields: Any) -> Row:
        body = {
            Field.TEXT: text,
            Field.TYPE: "episodic",
            Field.IMPORTANCE: 0.5,
            Field.CREATED: 1_000,
            Field.VECTOR: vector(text).tobytes(),
            **fields,
        }
        return Row(NAMESPACE, Kind.DOCUMENT, row_id, put_document(self.stamp(), body))

    def patch(self, row_id: str, **fields: Any) -> Row:
        return Row(NAMESPACE, Kind.DOCUMENT, row_id, patch_document(self.stamp(), fields))

    def delete(self, row_id: str) -> Row:
        return Row(NAMESPACE, Kind.DOCUMENT, row_id, delete_document(self.stamp()))

    def use(self, row_id: str, count: int) -> Row:
        return Row(NAMESPACE, Kind.USAGE, row_id, note_usage(7, count, self.stamp()))

    async def search(self, text: str, k: int = 10, mode: ops.Mode = ops.Mode.HYBRID, **more: Any) -> list[ops.Hit]:
        request = ops.Search(
            SHARD, 0, NAMESPACE, more.pop("now_ms", now_ms()), mode, k, vector(text).tobytes(), text, **more
        )
        answer = await self.host.handle(request)
        assert isinstance(answer, ops.Hits)
        return answer.hits

    async def ids(self, text: str, k: int = 10, mode: ops.Mode = ops.Mode.HYBRID, **more: Any) -> list[str]:
        return [hit.id for hit in await self.search(text, k, mode, **more)]

    async def select(self, where: ops.Where | None = None, **more: Any) -> ops.Selected:
        request = ops.Select(
            SHARD, 0, NAMESPACE, more.pop("now_ms", now_ms()), where, more.pop("order", ops.Order.ID),
            more.pop("limit", 1_000), **more,
        )  # fmt: skip
        answer = await self.host.handle(request)
        assert isinstance(answer, ops.Selected)
        return answer


def now_ms() -> int:
    return int(time.time() * 1000)


def vector(text: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A unit vector that depends on the words of a text: texts with common words are close."""
    total = np.zeros(DIMENSION)
    for word in text.split():
        total += np.random.default_rng(sum(word.encode())).normal(size=DIMENSION)
    return (total / (np.linalg.norm(total) or 1.0)).astype("<f4")
