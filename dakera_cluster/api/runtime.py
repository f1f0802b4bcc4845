"""What all requests share: settings, services, limits, metrics, clocks. Made once by `server.make_app`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from dakera_cluster import __version__
from dakera_cluster.api.auth import Authenticator
from dakera_cluster.api.headers import HeaderPolicy
from dakera_cluster.api.jobs import Jobs
from dakera_cluster.api.limits import Admission, RateLimiter
from dakera_cluster.api.metrics import ApiMetrics
from dakera_cluster.api.settings import ApiSettings
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
        self.headers = HeaderPolicy(settings.cors_origins)
        self.metrics = ApiMetrics(
            registry if registry is not None else CollectorRegistry(),
            max_agents=settings.max_metric_agents,
            totals=services.status.totals,
        )
        self.jobs = Jobs(clock)
        self.encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
