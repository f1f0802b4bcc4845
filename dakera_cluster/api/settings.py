"""What the HTTP surface can be told: one frozen struct, filled by the configuration and read once when the app is made.

Invariant: every bound, time and size of the HTTP surface has its name, unit and default here. The variable that sets a
field is named beside it. Called by `server.Api`; filled by the composition root.
"""

from __future__ import annotations

import msgspec


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    host: str = "0.0.0.0"  # DAKERA_HOST
    port: int = 3300  # DAKERA_PORT; 0 lets the system choose
    root_key: str | None = None  # DAKERA_ROOT_API_KEY
    auth_enabled: bool = True  # DAKERA_AUTH_ENABLED; has no effect while there is neither a root key nor any key
    cors_origins: tuple[str, ...] = ("*",)  # DAKERA_CORS_ORIGINS
    rate_limit_rps: int = 100  # RATE_LIMIT_RPS; 0 turns limiting off
    rate_limit_burst: int = 50  # RATE_LIMIT_BURST
    max_body_bytes: int = 524_288_000  # DAKERA_MAX_BODY_SIZE; holds for the body as sent and for what it unpacks to
    request_timeout_s: float = 120.0  # DAKERA_REQUEST_TIMEOUT
    max_in_flight: int = 512
    """Requests being worked on at once; more are answered 503 with Retry-After."""
    max_in_flight_body_bytes: int = 1_073_741_824
    """Bytes of request bodies held at once, over all requests."""
    compress_min_bytes: int = 16_384
    """Answers at least this long are compressed when the client accepts it: below, the time costs more than the bytes."""
    compress_off_loop_bytes: int = 65_536
    """Bodies and answers at least this long are (de)compressed in a thread."""
    decode_off_loop_bytes: int = 1_048_576
    """Request bodies at least this long are decoded in a thread."""
    max_json_depth: int = 64
    """Nesting allowed inside free-form values (metadata, filters)."""
    max_metric_agents: int = 100
    """Distinct agent ids that get a label of their own in metrics; the rest are counted together."""
    slow_request_ms: float = 0.0
    """Requests at least this slow are logged as warnings; 0 turns it off."""
    access_log: bool = True
    keepalive_timeout_s: float = 75.0
    max_streams: int = 256
    """Event streams open at once; more are answered 503 with Retry-After."""
    stream_heartbeat_s: float = 15.0
    """Silence after which a stream gets a comment line, and its key is looked at again: under the idle limit of balancers."""
    stream_write_timeout_s: float = 30.0
    """How long a client may take to accept what is written before its stream is ended."""
    drain_timeout_s: float = 30.0
    """How long a stopping server waits for requests in flight."""
    max_header_bytes: int = 32_768
    tls_cert_path: str | None = None
    tls_key_path: str | None = None
