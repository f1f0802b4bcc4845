"""`DAKERA_*` names that are not the server's: clients, sidecars, stacks and later releases share the prefix, and a shell
that runs both has them all in its environment. The loader stays silent about them."""

from __future__ import annotations

CLIENT_NAMES = frozenset(
    {
        "DAKERA_AGENT_ID",
        "DAKERA_API_UPSTREAM",
        "DAKERA_API_URL",
        "DAKERA_GRPC_URL",
        "DAKERA_IMAGE",
        "DAKERA_MCP_PROFILE",
        "DAKERA_NAMESPACE",
        "DAKERA_ODE_URL",
        "DAKERA_PROFILE",
        "DAKERA_TEST_KEY",
        "DAKERA_TEST_URL",
        "DAKERA_UPSTREAM_URL",
        "DAKERA_URL",
        "DAKERA_VERSION",
    }
)
FOREIGN_PREFIXES = ("DAKERA_RECORD_MAX_",)


def is_foreign(name: str) -> bool:
    return name in CLIENT_NAMES or name.startswith(FOREIGN_PREFIXES)
