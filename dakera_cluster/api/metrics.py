"""Prometheus metrics of the HTTP surface, under the names that dashboards of the contract read.

Invariant: label values are bounded. The path label is the route's template, never what a client typed; agent ids get a
label of their own up to a limit and are counted under ``other`` beyond it. Called by `endpoint` (requests), the ops
handlers (exposition, KPIs) and, through the registry, by whoever has metrics of its own to add.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

OTHER_AGENT = "other"
WINDOW = 2_048
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_PATH = "unmatched"
_SERVER_ERROR = 500


class Window:
    """The last `WINDOW` latencies of one operation."""

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        self._values.append(value)

    def quantile(self, fraction: float) -> float:
        """Nearest-rank quantile, 0 when nothing was seen."""
        if not self._values:
            return 0.0
        ordered = sorted(self._values)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


class ApiMetrics:
    def __init__(self, registry: CollectorRegistry, *, max_agents: int, totals: Callable[[], tuple[int, int]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._max_agents = max_agents
        self._agents: set[str] = set()
        self._http: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[str, Histogram] = {}
        self._memory: dict[tuple[str, str, str], Counter] = {}
        self._windows: dict[str, Window] = {}
        self.requests = 0
        self.server_errors = 0
        self._requests_total = Counter(
            "dakera_http_requests", "HTTP requests answered", ["method", "path", "status"], registry=registry
        )
        self._duration = Histogram(
            "dakera_http_request_duration_seconds",
            "Time from the first byte of a request to its answer",
            ["path"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.active = Gauge("dakera_active_requests", "HTTP requests being worked on", registry=registry)
        self._operations = {
            name: Counter(
                f"dakera_memory_{name}", f"Memories: {name} requests", ["agent_id", "type"], registry=registry
            )
            for name in ("store", "recall", "forget")
        }
        self._rejected = Counter("dakera_http_rejected", "Requests refused by a bound", ["reason"], registry=registry)
        Gauge("dakera_total_vectors", "Vectors on this node", registry=registry).set_function(lambda: totals()[0])
        Gauge("dakera_total_namespaces", "Namespaces on this node", registry=registry).set_function(lambda: totals()[1])
        Gauge(
            "dakera_search_latency_p99_ms", "p99 of the last recalls and searches, in milliseconds", registry=registry
        ).set_function(lambda: self.latency_ms("recall", 0.99))
        ProcessCollector(registry=registry)

    def observe(self, method: str, path: str, status: int, seconds: float, operation: str) -> None:
        """Count one answered request."""
        self.requests += 1
        if status >= _SERVER_ERROR:
            self.server_errors += 1
        key = (method, path, status)
        counter = self._http.get(key)
        if counter is None:
            counter = self._http[key] = self._requests_total.labels(method, path, str(status))
        counter.inc()
        histogram = self._durations.get(path)
        if histogram is None:
            histogram = self._durations[path] = self._duration.labels(path)
        histogram.observe(seconds)
        if operation and status < 400:
            window = self._windows.get(operation)
            if window is None:
                window = self._windows[operation] = Window()
            window.add(seconds * 1e3)

    def reject(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def memory(self, operation: str, agent_id: str, memory_type: str, count: int = 1) -> None:
        """Count ``count`` memories (store, forget) or one query (recall) of an agent."""
        if agent_id not in self._agents:
            if len(self._agents) < self._max_agents:
                self._agents.add(agent_id)
            else:
                agent_id = OTHER_AGENT
        key = (operation, agent_id, memory_type)
        counter = self._memory.get(key)
        if counter is None:
            counter = self._memory[key] = self._operations[operation].labels(agent_id, memory_type)
        counter.inc(count)

    def latency_ms(self, operation: str, fraction: float) -> float:
        window = self._windows.get(operation)
        return window.quantile(fraction) if window is not None else 0.0

    @property
    def error_rate_5xx_pct(self) -> float:
        return 100.0 * self.server_errors / self.requests if self.requests else 0.0

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
