"""Settings of logs, traces and the audit file."""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import Bool, Choice, Duration, LogFilter, Path, Text, Url
from dakera_cluster.model.config.variable import Var


class LogFormat(enum.StrEnum):
    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


class Observability(msgspec.Struct, frozen=True, kw_only=True):
    log_filter: Annotated[
        str,
        Var(
            "RUST_LOG",
            LogFilter(),
            "log level, and levels of single parts, as in info,dakera=debug",
            aliases=("DAKERA_LOG_LEVEL",),
            effect=True,
        ),
    ] = "info"
    log_format: Annotated[
        LogFormat,
        Var("DAKERA_LOG_FORMAT", Choice(LogFormat), "auto is text on a terminal and JSON lines elsewhere", effect=True),
    ] = LogFormat.AUTO
    slow_query_ms: Annotated[
        int, Var("SLOW_QUERY_THRESHOLD_MS", Duration("ms"), "queries slower than this are logged")
    ] = 100
    loop_lag_warn_ms: Annotated[
        int, Var("DAKERA_LOOP_LAG_WARN_MS", Duration("ms", 1), "event-loop lag above this is logged")
    ] = 100
    audit_log: Annotated[bool, Var("DAKERA_AUDIT_LOG", Bool(), "write one JSON line per request", relied_on=True)] = (
        False
    )
    audit_log_path: Annotated[str, Var("DAKERA_AUDIT_LOG_PATH", Path(), "file of the audit log")] = "./audit.log"
    tracing_enabled: Annotated[bool, Var("DAKERA_TRACING_ENABLED", Bool(), "send OpenTelemetry traces")] = False
    otlp_endpoint: Annotated[str, Var("OTEL_EXPORTER_OTLP_ENDPOINT", Url(), "collector of the traces")] = (
        "http://localhost:4317"
    )
    service_name: Annotated[str, Var("OTEL_SERVICE_NAME", Text(), "service name in traces")] = "dakera"
