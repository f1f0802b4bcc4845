"""Bytes of a memory, measured: on disk, in a segment, and in memory while its agent's view is loaded.

Agents of ``memories_per_agent`` memories with real texts (`ops.bench.texts`) and random vectors of the default model's shape
(384 floats, sign bits of every telling word) are written through a real host into a real row store.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from dakera_cluster.inference.encoding import Encoded, EncodedText, TokenVectors
from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import agent_namespace
from dakera_cluster.model.memories import Field
from dakera_cluster.model.rows import Kind, Row, note_usage, put_document
from dakera_cluster.retrieval.writing import PieceRules, row_fields
from dakera_cluster.shard import keys
from dakera_cluster.shard.host import Host, HostSettings
from dakera_cluster.shard.view import ViewSettings
from dakera_cluster.storage.rows import RowStore
from dakera_cluster.storage.segments import encode
from ops.bench.texts import facts

DIMENSION = 384
SHARD = 0
CREATED_S = 1_700_000_000
BATCH_ROWS = 256
UNBOUNDED_BYTES = 1 << 40
_WORDS: dict[int, str] = {}


class Footprint(msgspec.Struct, frozen=True):
    """Means of one memory with its usage row, in bytes; ``load_ms`` of one agent's view, from its rows."""

    memories: int
    memories_per_agent: int
    body: float
    disk: float
    segment: float
    view: float
    """As the node accounts for it, and drops cold views by."""
    resident: float
    """By how much the process grew."""
    load_ms: float


def measure(directory: Path, agents: int, memories_per_agent: int, *, seed: int = 1) -> Footprint:
    """Write, compact, close and reopen, then load every view."""
    return asyncio.run(_measure(directory, agents, memories_per_agent, seed))


async def _measure(directory: Path, agents: int, memories_per_agent: int, seed: int) -> Footprint:
    count = agents * memories_per_agent
    names = [agent_namespace(f"agent-{number:012d}") for number in range(agents)]
    bodies = await _write(directory, names, memories_per_agent, seed)
    store = RowStore.open(directory, keys.FAMILIES)
    try:
        disk = _table_bytes(directory)
        host = Host(store, lambda _: ViewSettings(), HostSettings(view_bytes=UNBOUNDED_BYTES), _now_ms)
        replica = host.replica(SHARD)
        page = replica.page(b"", most_rows=count * 2, most_bytes=UNBOUNDED_BYTES)
        segment = len(encode(page, meta={}))
        del page
        views, replica = host.views, host.replica(SHARD)
        views.get(replica, names[0])
        gc.collect()
        before, began = _resident_bytes(), time.process_time()
        for name in names[1:]:
            views.get(replica, name)
        load_ms = (time.process_time() - began) * 1000 / max(1, agents - 1)
        gc.collect()
        grown = _resident_bytes() - before
        accounted = views.memory_bytes
        await host.close()
    finally:
        store.close()
    shown = max(1, count - memories_per_agent)
    return Footprint(
        count, memories_per_agent, bodies / count, disk / count, segment / count, accounted / count,
        grown / shown, load_ms,
    )  # fmt: skip


async def _write(directory: Path, names: Sequence[str], each: int, seed: int) -> int:
    """Write all agents' memories and compact; bytes of all bodies."""
    store = RowStore.open(directory, keys.FAMILIES)
    host = Host(store, lambda _: ViewSettings(), HostSettings(), _now_ms)
    total, waiting, stamp = 0, [], 1_000
    for position, fact in enumerate(facts(len(names) * each, seed)):
        stamp += 1
        at = Stamp(stamp << 16, 1)
        namespace, row_id = names[position // each], f"mem_{zlib.crc32(fact.memory.encode()):08x}{position:024x}"
        waiting.append(Row(namespace, Kind.DOCUMENT, row_id, put_document(at, _fields(fact.memory, position))))
        waiting.append(Row(namespace, Kind.USAGE, row_id, note_usage(1, 1, at)))
        if len(waiting) >= BATCH_ROWS:
            total += sum(len(row.body) for row in waiting)
            await host.merge(SHARD, waiting)
            waiting = []
    total += sum(len(row.body) for row in waiting)
    await host.merge(SHARD, waiting)
    await host.close()
    for family in keys.FAMILIES:
        await store.compact(family)
    store.close()
    return total


def _fields(text: str, seed: int) -> dict[str, object]:
    words = "".join(char if char.isalnum() else " " for char in text.lower()).split()
    ids = tuple([zlib.crc32(word.encode()) & 0x7FFF for word in words])
    _WORDS.update(zip(ids, words, strict=True))
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=DIMENSION).astype(np.float32)
    vector /= np.linalg.norm(vector)
    signs = rng.integers(0, 256, (len(ids), DIMENSION // 8), dtype=np.uint8)
    encoded = Encoded([EncodedText(vector.tobytes(), TokenVectors(ids, signs.tobytes()))], DIMENSION)
    rules = PieceRules(lambda wanted: [_WORDS[piece] for piece in wanted])
    return {
        Field.TEXT: text,
        Field.TYPE: "episodic",
        Field.IMPORTANCE: 0.5,
        Field.CREATED: CREATED_S + seed,
        Field.SESSION: f"sess_{seed // 20:024x}",
        Field.MODEL: "default",
        **row_fields(encoded, rules),
    }


def _table_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*.sst"))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
