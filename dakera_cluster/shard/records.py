"""What a filter expression sees of a document, and the vector in its fields.

A plain record is its metadata. A memory is its own attributes (content, memory_type, importance, tags, session_id, times)
with its metadata beside them and, under ``metadata``, whole: both ``{"speaker": "Ann"}`` and ``{"metadata.speaker": "Ann"}``
find it. A session is its fields. Called by views (filters, columns) and by the services that evaluate the same filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dakera_cluster.model.ids import SESSIONS_NAMESPACE
from dakera_cluster.model.memories import DEFAULT_IMPORTANCE, Field


def record_of(namespace: str, row_id: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The mapping a filter is evaluated on."""
    if namespace == SESSIONS_NAMESPACE:
        return fields
    metadata: dict[str, Any] = fields.get(Field.METADATA) or {}
    if Field.TYPE not in fields:
        return metadata
    created = fields.get(Field.CREATED) or 0
    feedback = {"feedback": fields[Field.FEEDBACK]} if Field.FEEDBACK in fields else {}
    return {
        **feedback,
        **metadata,
        "metadata": metadata,
        "id": row_id,
        "content": fields.get(Field.TEXT) or "",
        "memory_type": fields[Field.TYPE],
        "importance": fields.get(Field.IMPORTANCE, DEFAULT_IMPORTANCE),
        "tags": fields.get(Field.TAGS) or [],
        "session_id": fields.get(Field.SESSION),
        "created_at": created,
        "updated_at": fields.get(Field.UPDATED) or created,
        "event_time": fields.get(Field.EVENT_TIME),
    }


def vector_of(fields: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """float32[d], or None when the document has no vector."""
    data = fields.get(Field.VECTOR)
    return np.frombuffer(data, dtype="<f4") if data else None


def vector_bytes(values: Any) -> bytes:
    """Little-endian float32 bytes of a sequence of numbers: how vectors are stored and sent."""
    return np.asarray(values, dtype="<f4").tobytes()
