"""What all requests share: settings, services, limits, metrics, clocks. Made once by `server.Api`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from dakera_cluster import __version__
from dakera_cluster.api.auth import Authenticator
from dakera_cluster.api.headers import HeaderPolicy
from dakera_cluster.api.jobs import Job, Jobs
from dakera_cluster.api.limits import Admission, RateLimiter
from dakera_cluster.api.metrics import ApiMetrics
from dakera_cluster.api.settings import ApiSettings
from dakera_cluster.api.time_limit import TimeLimits
from dakera_cluster.memory.events import EVERY_NAMESPACE
from dakera_cluster.memory.services import Services


class Runtime:
    def __init__(
        self,
        services: Services,
        settings: ApiSettings,
        *,
        registry: CollectorRegistry | None = None,
        request_shutdown: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.services = services
        self.settings = settings
        self.clock = clock
        self.monotonic = monotonic
        self.version = __version__
        self.request_shutdown = request_shutdown
        self.auth = Authenticator(services.keys, root_key=settings.root_key, enabled=settings.auth_enabled)
        self.limiter = RateLimiter(rps=settings.rate_limit_rps, burst=settings.rate_limit_burst)
        self.admission = Admission(
            max_requests=settings.max_in_flight, max_body_bytes=settings.max_in_flight_body_bytes
        )
        self.time_limits = TimeLimits(settings.request_timeout_s)
        self.headers = HeaderPolicy(settings.cors_origins)
        self.metrics = ApiMetrics(
            registry if registry is not None else CollectorRegistry(),
            max_agents=settings.max_metric_agents,
            totals=services.status.totals,
        )
        self.jobs = Jobs(clock, self._tell_of)
        self.streams = 0
        self.encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode

    def _tell_of(self, job: Job) -> None:
        self.services.events.system(
            "job_progress",
            job.metadata.get("namespace", EVERY_NAMESPACE),
            job_id=job.id,
            job_type=job.job_type,
            progress=job.progress,
            status=job.status,
        )
