"""How a call to a peer fails when the peer itself did not answer it.

``ambiguous`` says whether the request may have been carried out: false only when not a byte of it was handed to a
connection. Raised by `cluster.peer_client`; errors that the peer raised arrive as their own classes.
"""

from __future__ import annotations

from dakera_cluster.model.errors import QueryTimeoutError, ServiceUnavailableError


class PeerUnavailableError(ServiceUnavailableError):
    """The peer cannot be reached, or the connection broke before it answered."""

    def __init__(self, message: str, *, ambiguous: bool) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous


class PeerTimeoutError(QueryTimeoutError):
    """The caller's time ran out."""

    def __init__(self, message: str, *, ambiguous: bool) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous
