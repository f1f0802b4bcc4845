"""Settings of the HTTP and gRPC servers, and the bounds on what one node takes on at once."""

from __future__ import annotations

from typing import Annotated

import msgspec

from dakera_cluster.model.config.values import PORT, Bool, Duration, Int, Many, Secret, SecretText, Size, Text
from dakera_cluster.model.config.variable import Var

HEALTH_CHECK_S = 5
"""How often the balancers of the deployed stacks look at a node."""
_HOST = Text()


class Server(msgspec.Struct, frozen=True, kw_only=True):
    host: Annotated[str, Var("DAKERA_HOST", _HOST, "address the servers bind", toml="server.host", effect=True)] = (
        "0.0.0.0"
    )
    port: Annotated[
        int, Var("DAKERA_PORT", PORT, "REST port (the image sets 3000)", toml="server.port", effect=True)
    ] = 3300
    grpc_enabled: Annotated[bool, Var("DAKERA_GRPC_ENABLED", Bool(), "serve gRPC")] = True
    grpc_port: Annotated[int, Var("DAKERA_GRPC_PORT", PORT, "gRPC port")] = 50051
    root_api_key: Annotated[
        Secret | None,
        Var(
            "DAKERA_ROOT_API_KEY",
            SecretText(),
            "bootstrap key with super_admin rights; without it, and without any other key, every request is let in",
            aliases=("DAKERA_API_KEY",),
            effect=True,
        ),
    ] = None
    auth_enabled: Annotated[
        bool,
        Var("DAKERA_AUTH_ENABLED", Bool(), "ask for a key, as soon as a root key is set or a key exists", effect=True),
    ] = True
    cors_origins: Annotated[
        tuple[str, ...],
        Var("DAKERA_CORS_ORIGINS", Many(Text()), "origins that browsers may call from; * is any", effect=True),
    ] = ("*",)
    allowed_hosts: Annotated[
        tuple[str, ...],
        Var("DAKERA_ALLOWED_HOSTS", Many(Text()), "accepted Host headers", unset="any", relied_on=True),
    ] = ()
    request_timeout_s: Annotated[
        int, Var("DAKERA_REQUEST_TIMEOUT", Duration("s", 1, 86_400), "longest time one request may take", effect=True)
    ] = 120
    drain_s: Annotated[
        int | None,
        Var(
            "DAKERA_DRAIN_SECS",
            Duration("s", 0, 3600),
            "on shutdown, time between readiness turning 503 and the end of service: two balancer intervals",
            unset=f"{2 * HEALTH_CHECK_S} in a cluster, else 0",
            effect=True,
        ),
    ] = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    rate_limit_rps: Annotated[
        int,
        Var(
            "RATE_LIMIT_RPS",
            Int(0, 10_000_000, "requests/s"),
            "refill of each key's token bucket; 0 is no limit",
            effect=True,
        ),
    ] = 100
    rate_limit_burst: Annotated[
        int,
        Var(
            "RATE_LIMIT_BURST", Int(0, 10_000_000, "requests"), "requests above the rate that pass at once", effect=True
        ),
    ] = 50
    max_body_bytes: Annotated[
        int, Var("DAKERA_MAX_BODY_SIZE", Size(1024), "largest request body; larger ones are answered 413", effect=True)
    ] = 524_288_000
    max_inflight_requests: Annotated[
        int,
        Var(
            "DAKERA_MAX_INFLIGHT_REQUESTS",
            Int(1, 1_000_000, "requests"),
            "requests worked on at once; above it 503 with Retry-After",
            effect=True,
        ),
    ] = 512
    queued_searches: Annotated[
        int,
        Var("DAKERA_SEARCH_QUEUE", Int(1, 1_000_000, "searches"), "searches waiting for an index thread", effect=True),
    ] = 256
    queued_commits: Annotated[
        int,
        Var("DAKERA_COMMIT_QUEUE", Int(1, 1_000_000, "commits"), "commits waiting for the disk thread", effect=True),
    ] = 8192
    queued_commit_bytes: Annotated[
        int, Var("DAKERA_COMMIT_QUEUE_BYTES", Size(1024), "bytes of rows waiting for the disk thread")
    ] = 64 * 1024**2
    queued_texts: Annotated[
        int, Var("DAKERA_INFERENCE_QUEUE", Int(1, 1_000_000, "texts"), "texts waiting for the embedding model")
    ] = 4096
