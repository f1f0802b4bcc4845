"""Health, metrics and operations of the node. Health answers while everything else is refused."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from dakera_cluster.api import bodies, metrics, shapes
from dakera_cluster.api.jobs import Job
from dakera_cluster.api.route import Call, Raw
from dakera_cluster.model.errors import NotImplementedRouteError, NotReadyError

COMPONENT_CHECKS = {
    "storage": ("storage", "disk", "rows"),
    "search_engine": ("index", "search", "model"),
    "cache": ("cache",),
    "grpc": ("grpc",),
}


async def health(call: Call, _: None) -> dict[str, Any]:
    uptime = call.services.status.uptime_s
    return {
        "service": "dakera",
        "status": "healthy",
        "healthy": True,
        "version": call.runtime.version,
        "uptime_seconds": int(uptime),
        "uptime": uptime,
    }


async def live(call: Call, _: None) -> dict[str, Any]:
    return {"status": "alive", "alive": True, "version": call.runtime.version}


async def ready(call: Call, _: None) -> dict[str, Any]:
    """200 when every check passes, else 503 with the same body and the reasons."""
    checks = call.services.status.ready()
    failed = {name: reason for name, (ok, reason) in checks.items() if not ok}
    body = {
        "ready": not failed,
        "version": call.runtime.version,
        "checks": {
            name: {"status": "ok" if ok else "failed", "message": reason} for name, (ok, reason) in checks.items()
        },
        "components": {name: ok for name, (ok, _) in checks.items()},
    }
    if failed:
        raise NodeNotReadyError("; ".join(f"{name}: {reason or 'not ready'}" for name, reason in failed.items()), body)
    return body


class NodeNotReadyError(NotReadyError):
    """Carries the readiness report beside the error fields."""

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self._report = report

    def body(self) -> dict[str, Any]:
        return {**super().body(), **self._report}


async def prometheus(call: Call, _: None) -> Raw:
    return Raw(call.runtime.metrics.exposition(), metrics.CONTENT_TYPE)


async def stats(call: Call, _: None) -> dict[str, Any]:
    status = call.services.status
    vectors, namespaces = status.totals()
    degraded = any(not ok for ok, _ in status.ready().values())
    return {
        "version": call.runtime.version,
        "total_vectors": vectors,
        "namespace_count": namespaces,
        "uptime_seconds": int(status.uptime_s),
        "timestamp": int(call.runtime.clock()),
        "state": "degraded" if degraded else "healthy",
    }


def _component(checks: dict[str, tuple[bool, str | None]], names: tuple[str, ...], now: int) -> dict[str, Any]:
    problems = [reason or name for name in names if name in checks for ok, reason in [checks[name]] if not ok]
    return {"healthy": not problems, "message": "; ".join(problems) or "ok", "last_check": now}


def _resident_bytes() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


async def diagnostics(call: Call, _: None) -> dict[str, Any]:
    runtime = call.runtime
    status = call.services.status
    checks = status.ready()
    now = int(runtime.clock())
    spent = resource.getrusage(resource.RUSAGE_SELF)
    uptime = max(status.uptime_s, 1e-3)
    return {
        "system": {
            "version": runtime.version,
            "rust_version": f"none (Python {platform.python_version()})",
            "python_version": sys.version.split()[0],
            "uptime_seconds": int(uptime),
            "pid": os.getpid(),
        },
        "resources": {
            "memory_bytes": _resident_bytes(),
            "thread_count": threading.active_count(),
            "open_fds": _open_files(),
            "cpu_percent": round(100.0 * (spent.ru_utime + spent.ru_stime) / uptime, 2),
        },
        "components": {
            **{name: _component(checks, names, now) for name, names in COMPONENT_CHECKS.items()},
            **{name: _component(checks, (name,), now) for name in checks},
        },
        "active_jobs": runtime.jobs.active,
    }


async def list_jobs(call: Call, _: None) -> list[Job]:
    return call.runtime.jobs.list()


async def get_job(call: Call, _: None) -> Job:
    return call.runtime.jobs.get(call.path["job_id"])


async def compact(call: Call, body: bodies.CompactBody) -> dict[str, Any]:
    """Compact one namespace, or all of them, in the background."""
    service = call.services.namespaces
    if body.namespace is not None:
        await service.get(body.namespace)
    names = [body.namespace] if body.namespace is not None else [info.name for info in await service.list(call.access)]
    job = call.runtime.jobs.start("compaction", _over(names, service.compact), namespace=body.namespace or "*")
    return {"job_id": job.id, "message": f"compaction of {len(names)} namespaces started"}


def _over(names: list[str], work: Callable[[str], Awaitable[None]]) -> Callable[[Job], Awaitable[None]]:
    async def run(job: Job) -> None:
        for at, name in enumerate(names):
            await work(name)
            job.progress = 100 * (at + 1) // len(names)
        job.message = f"{len(names)} namespaces"

    return run


async def shutdown(call: Call, _: None) -> dict[str, Any]:
    if call.runtime.request_shutdown is None:
        raise NotImplementedRouteError("this server cannot stop itself")
    call.runtime.request_shutdown()
    return shapes.done("shutting down")


async def kpis(call: Call, _: None) -> dict[str, Any]:
    activity = await call.services.status.activity()
    latency_ms = call.runtime.metrics.latency_ms
    return {
        "recall_latency_p50_ms": latency_ms("recall", 0.5),
        "recall_latency_p99_ms": latency_ms("recall", 0.99),
        "store_latency_p50_ms": latency_ms("store", 0.5),
        "api_error_rate_5xx_pct": call.runtime.metrics.error_rate_5xx_pct,
        "active_agents_count": activity.active_agents,
        "session_count_week": activity.sessions_this_week,
        "cross_agent_network_node_count": activity.cross_agent_nodes,
        "memory_retention_7d_pct": activity.retention_7d_pct,
    }
