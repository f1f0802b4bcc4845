"""Prometheus metrics of the HTTP surface, under the names that dashboards of the contract read.

What is counted for every request is counted in plain numbers, which belong to the event loop, and put into the registry's
words when somebody looks (`collect`): a counter of the client library takes a lock and a chain of calls each time.
Invariant: label values are bounded. The path label is the route's template, never what a client typed; agent ids get a
label of their own up to a limit and are counted under ``other`` beyond it. Called by `endpoint` (requests), the ops
handlers (exposition, KPIs) and, through the registry, by whoever has metrics of its own to add.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

OTHER_AGENT = "other"
WINDOW = 2_048
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN_PATH = "unmatched"
OPERATIONS = ("store", "recall", "forget")
_HTTP_LABELS = ("method", "path", "status")
_MEMORY_LABELS = ("agent_id", "type")
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


class _Durations:
    """A histogram over `LATENCY_BUCKETS_S`."""

    __slots__ = ("_counts", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._sum_s += seconds

    def put(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        bounds = (*LATENCY_BUCKETS_S, float("inf"))
        running, buckets = 0, []
        for bound, count in zip(bounds, self._counts, strict=True):
            running += count
            buckets.append((floatToGoString(bound), float(running)))  # type: ignore[no-untyped-call]
        family.add_metric(labels, buckets, self._sum_s)


class ApiMetrics(Collector):
    def __init__(self, registry: CollectorRegistry, *, max_agents: int, totals: Callable[[], tuple[int, int]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._max_agents = max_agents
        self._agents: set[str] = set()
        self._http: Counts[tuple[str, str, int]] = Counts()
        self._durations: dict[str, _Durations] = {}
        self._memory: Counts[tuple[str, str, str]] = Counts()
        self._windows: dict[str, Window] = {}
        self.requests = 0
        self.server_errors = 0
        self.active = 0
        """Requests being worked on."""
        registry.register(self)
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
        self._http[method, path, status] += 1
        durations = self._durations.get(path)
        if durations is None:
            durations = self._durations[path] = _Durations()
        durations.add(seconds)
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
        self._memory[operation, agent_id, memory_type] += count

    def collect(self) -> Iterator[Metric]:
        """What was counted, for the registry."""
        requests = CounterMetricFamily("dakera_http_requests", "HTTP requests answered", labels=_HTTP_LABELS)
        for (method, path, status), count in self._http.items():
            requests.add_metric([method, path, str(status)], count)
        durations = HistogramMetricFamily(
            "dakera_http_request_duration_seconds",
            "Time from the first byte of a request to its answer",
            labels=["path"],
        )
        for path, seen in self._durations.items():
            seen.put(durations, [path])
        yield requests
        yield durations
        yield GaugeMetricFamily("dakera_active_requests", "HTTP requests being worked on", value=self.active)
        memories = {
            name: CounterMetricFamily(f"dakera_memory_{name}", f"Memories: {name} requests", labels=_MEMORY_LABELS)
            for name in OPERATIONS
        }
        for (operation, agent_id, memory_type), count in self._memory.items():
            memories[operation].add_metric([agent_id, memory_type], count)
        yield from memories.values()

    def latency_ms(self, operation: str, fraction: float) -> float:
        window = self._windows.get(operation)
        return window.quantile(fraction) if window is not None else 0.0

    @property
    def error_rate_5xx_pct(self) -> float:
        return 100.0 * self.server_errors / self.requests if self.requests else 0.0

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
