"""Where everything of a local stack listens and keeps its files: all of it follows from one port and two directories.

Invariant: all ports are loopback ports in PORT .. PORT+99, so two stacks run side by side when their ports are 100 apart.
Called by the stack and by the tools that talk to it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

HOST = "127.0.0.1"
MAX_NODES = 9


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """``port`` is what clients talk to: the balancer, or the node itself when there is only one."""

    port: int = 3300
    run_dir: Path = Path("run")
    data_dir: Path = Path("data")

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def node_port(self, number: int) -> int:
        return self.port + number

    def node_url(self, number: int) -> str:
        return f"http://{HOST}:{self.node_port(number)}"

    def gossip_port(self, number: int) -> int:
        return self.port + 10 + number

    @property
    def grpc_port(self) -> int:
        return self.port + 50

    def node_grpc_port(self, number: int) -> int:
        return self.port + 50 + number

    @property
    def redis_port(self) -> int:
        return self.port + 70

    @property
    def dashboard_port(self) -> int:
        return self.port + 80

    @property
    def dashboard_url(self) -> str:
        return f"http://{HOST}:{self.dashboard_port}"

    @property
    def bucket_port(self) -> int:
        return self.port + 90

    @property
    def bucket_console_port(self) -> int:
        return self.port + 91

    @property
    def state_file(self) -> Path:
        return self.run_dir / "stack.json"

    @property
    def secret_file(self) -> Path:
        return self.run_dir / "cluster.secret"
