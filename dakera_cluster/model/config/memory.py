"""Settings of what becomes of memories over time: decay, sessions, deduplication, and what a store does besides."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import Bool, Duration, Float, Size, Url
from dakera_cluster.model.config.variable import Var


class MemoryLife(msgspec.Struct, frozen=True, kw_only=True):
    decay_enabled: Annotated[
        bool, Var("DAKERA_DECAY_ENABLED", Bool(), "importance fades with idle time", effect=True)
    ] = True
    decay_half_life_s: Annotated[
        int,
        Var(
            "DAKERA_DECAY_HALF_LIFE_SECS", Duration("s", 1), "idle time after which importance has halved", effect=True
        ),
    ] = 604_800
    session_idle_timeout_s: Annotated[
        int, Var("DAKERA_SESSION_IDLE_TIMEOUT_SECS", Duration("s", 1), "idle time after which a session ends")
    ] = 14_400
    autopilot_enabled: Annotated[
        bool, Var("DAKERA_AUTOPILOT_ENABLED", Bool(), "deduplicate and consolidate by itself")
    ] = False
    autopilot_dedup_interval_h: Annotated[
        int, Var("DAKERA_AUTOPILOT_DEDUP_INTERVAL_HOURS", Duration("h", 1), "time between two deduplications")
    ] = 1
    autopilot_dedup_threshold: Annotated[
        float,
        Var("DAKERA_AUTOPILOT_DEDUP_THRESHOLD", Float(0.0, 1.0), "cosine from which two memories count as duplicates"),
    ] = 0.93
    two_stage_embedding: Annotated[
        bool, Var("DAKERA_TIERED", Bool(), "store with a static embedding first and the full one later")
    ] = False
    batch_sentence_decomp: Annotated[
        bool, Var("DAKERA_BATCH_SENTENCE_DECOMP", Bool(), "store the sentences of a memory as sub-memories")
    ] = True
    supersede_demote: Annotated[bool, Var("DAKERA_SUPERSEDE_DEMOTE", Bool(), "rank superseded memories lower")] = True
    ode_webhook_url: Annotated[
        str | None, Var("DAKERA_ODE_WEBHOOK_URL", Url(), "sidecar that is told of every stored memory")
    ] = None
    attachments: Annotated[bool, Var("DAKERA_ATTACHMENTS", Bool(), "attachments of memories")] = False
    attachment_max_bytes: Annotated[int, Var("DAKERA_ATTACHMENT_MAX_BYTES", Size(), "largest attachment")] = (
        10 * 1024**2
    )
    vision: Annotated[bool, Var("DAKERA_VISION", Bool(), "describe attached images")] = False
    records: Annotated[bool, Var("DAKERA_RECORDS", Bool(), "structured records")] = False
