"""The error tree. Every failure a client can see is one class here; the wire code, the HTTP status, whether a retry can
help and whether the outcome is unknown are attributes of the class, never of a handler.

::

    DakeraError
    +-- InvalidRequestError        400 INVALID_REQUEST          a value is wrong; names the field and what was expected
    |   +-- DimensionMismatchError 400 DIMENSION_MISMATCH
    |   +-- EmptyVectorError       400 EMPTY_VECTOR
    +-- SchemaError                422 UNPROCESSABLE_CONTENT    the body does not fit the schema
    +-- AuthenticationRequiredError 401 AUTHENTICATION_REQUIRED
    +-- InvalidApiKeyError         401 INVALID_API_KEY
    +-- ApiKeyExpiredError         401 API_KEY_EXPIRED
    +-- InsufficientScopeError     403 INSUFFICIENT_SCOPE
    +-- NamespaceAccessDeniedError 403 NAMESPACE_ACCESS_DENIED
    +-- NamespaceNotFoundError     404 NAMESPACE_NOT_FOUND
    +-- VectorNotFoundError        404 VECTOR_NOT_FOUND         a vector, memory or session that is not there
    +-- RouteNotFoundError         404 ROUTE_NOT_FOUND
    +-- JobNotFoundError           404 JOB_NOT_FOUND
    +-- ApiKeyNotFoundError        404 API_KEY_NOT_FOUND
    +-- MethodNotAllowedError      405 METHOD_NOT_ALLOWED
    +-- RequestTimeoutError        408 REQUEST_TIMEOUT
    +-- ConflictError              409 CONFLICT
    +-- PayloadTooLargeError       413 PAYLOAD_TOO_LARGE
    +-- QuotaExceededError         413 QUOTA_EXCEEDED
    +-- UnsupportedMediaTypeError  415 UNSUPPORTED_MEDIA_TYPE
    +-- RateLimitedError           429 RATE_LIMIT_EXCEEDED      retryable, Retry-After
    +-- InternalError              500 INTERNAL_ERROR
    |   +-- StorageError           500 STORAGE_ERROR
    |       +-- CorruptionError    500 STORAGE_ERROR            bytes at rest fail their checksum
    +-- NotImplementedRouteError   501 NOT_IMPLEMENTED
    +-- ServiceUnavailableError    503 SERVICE_UNAVAILABLE      retryable, Retry-After
    |   +-- OverloadedError        503 SERVICE_UNAVAILABLE      a bounded queue is full
    |   +-- ModelUnavailableError  503 SERVICE_UNAVAILABLE      no embedding model on this node; the text says what to run
    |   +-- NotReadyError          503 SERVICE_UNAVAILABLE      starting, draining or in maintenance
    |   +-- BucketUnavailableError 503 SERVICE_UNAVAILABLE      the object store did not answer
    |   +-- QuorumUnavailableError 503 QUORUM_UNAVAILABLE       ambiguous when some replica may have the write
    +-- QueryTimeoutError          504 QUERY_TIMEOUT

Codes and statuses: the wire contract's error table. ``QUORUM_UNAVAILABLE`` is ours: official clients map unknown codes
to UNKNOWN and act on the status.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DakeraError(Exception):
    """Root of the tree. ``message`` is for people; ``details`` is any JSON value and optional."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    ambiguous: bool = False

    def __init__(self, message: str, *, details: Any = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON error body of the wire contract."""
        out: dict[str, Any] = {"error": self.message, "code": self.code, "status": self.status}
        if self.details is not None:
            out["details"] = self.details
        if self.ambiguous:
            out["ambiguous"] = True
        return out


class InvalidRequestError(DakeraError):
    """A value is missing or out of range. ``field`` is the path of the value, as the client wrote it."""

    code = "INVALID_REQUEST"
    status = 400

    def __init__(self, message: str, *, field: str | None = None, details: Any = None) -> None:
        if field is not None and field not in message:
            message = f"{field}: {message}"
        super().__init__(message, details=details if details is not None else ({"field": field} if field else None))
        self.field = field


class DimensionMismatchError(InvalidRequestError):
    code = "DIMENSION_MISMATCH"


class EmptyVectorError(InvalidRequestError):
    code = "EMPTY_VECTOR"


class SchemaError(DakeraError):
    code = "UNPROCESSABLE_CONTENT"
    status = 422


class AuthenticationRequiredError(DakeraError):
    code = "AUTHENTICATION_REQUIRED"
    status = 401


class InvalidApiKeyError(DakeraError):
    code = "INVALID_API_KEY"
    status = 401


class ApiKeyExpiredError(DakeraError):
    code = "API_KEY_EXPIRED"
    status = 401


class InsufficientScopeError(DakeraError):
    code = "INSUFFICIENT_SCOPE"
    status = 403


class NamespaceAccessDeniedError(DakeraError):
    code = "NAMESPACE_ACCESS_DENIED"
    status = 403


class NamespaceNotFoundError(DakeraError):
    code = "NAMESPACE_NOT_FOUND"
    status = 404


class VectorNotFoundError(DakeraError):
    code = "VECTOR_NOT_FOUND"
    status = 404


class RouteNotFoundError(DakeraError):
    code = "ROUTE_NOT_FOUND"
    status = 404


class JobNotFoundError(DakeraError):
    code = "JOB_NOT_FOUND"
    status = 404


class ApiKeyNotFoundError(DakeraError):
    code = "API_KEY_NOT_FOUND"
    status = 404


class MethodNotAllowedError(DakeraError):
    code = "METHOD_NOT_ALLOWED"
    status = 405


class RequestTimeoutError(DakeraError):
    code = "REQUEST_TIMEOUT"
    status = 408
    retryable = True


class ConflictError(DakeraError):
    code = "CONFLICT"
    status = 409


class PayloadTooLargeError(DakeraError):
    code = "PAYLOAD_TOO_LARGE"
    status = 413


class QuotaExceededError(DakeraError):
    code = "QUOTA_EXCEEDED"
    status = 413


class UnsupportedMediaTypeError(DakeraError):
    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class RateLimitedError(DakeraError):
    code = "RATE_LIMIT_EXCEEDED"
    status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1, details: Any = None) -> None:
        super().__init__(message, details=details, retry_after_s=retry_after_s)


class InternalError(DakeraError):
    code = "INTERNAL_ERROR"
    status = 500


class StorageError(InternalError):
    code = "STORAGE_ERROR"


class CorruptionError(StorageError):
    """Bytes at rest fail their checksum or cannot be decoded."""


class NotImplementedRouteError(DakeraError):
    code = "NOT_IMPLEMENTED"
    status = 501


class ServiceUnavailableError(DakeraError):
    code = "SERVICE_UNAVAILABLE"
    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1, details: Any = None) -> None:
        super().__init__(message, details=details, retry_after_s=retry_after_s)


class OverloadedError(ServiceUnavailableError):
    """A bounded queue is full: the caller should back off and retry."""


class ModelUnavailableError(ServiceUnavailableError):
    """The node has no embedding model; the message names the command that installs it."""


class NotReadyError(ServiceUnavailableError):
    """The node is starting, draining or in maintenance."""


class BucketUnavailableError(ServiceUnavailableError):
    """The object store did not answer in time; what needs it waits, the data path does not."""


class QuorumUnavailableError(ServiceUnavailableError):
    """Too few replicas answered. ``ambiguous`` is true when at least one may hold the write: retry with the same id."""

    code = "QUORUM_UNAVAILABLE"

    def __init__(self, message: str, *, ambiguous: bool, retry_after_s: int = 1, details: Any = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s, details=details)
        self.ambiguous = ambiguous


class QueryTimeoutError(DakeraError):
    code = "QUERY_TIMEOUT"
    status = 504
    retryable = True
