"""Dumps: arrays come back as they were, anything else is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dakera_cluster.index import dump
from dakera_cluster.index.dump import ALIGNMENT_BYTES, unpack
from dakera_cluster.model.errors import CorruptionError


def pack(kind: str, version: int, meta: dict[str, Any], given_arrays: dict[str, np.ndarray]) -> bytes:
    return b"".join(dump.pack(kind, version, meta, given_arrays))


some_arrays = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    arrays.arrays(
        st.sampled_from(["u1", "<i4", "<u8", "<f4", "?"]),
        arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5),
    ),
    max_size=4,
)


@given(some_arrays, st.dictionaries(st.text(max_size=3), st.integers(0, 2**40), max_size=3))
@settings(max_examples=200)
def test_round_trip(given_arrays: dict[str, np.ndarray], meta: dict[str, int]) -> None:
    blob = pack("kind", 3, meta, given_arrays)
    got_meta, got = unpack("kind", 3, blob)
    assert got_meta == meta and list(got) == list(given_arrays)
    for name, array in given_arrays.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()
    assert len(blob) % ALIGNMENT_BYTES == 0


@pytest.mark.parametrize(("kind", "version"), [("other", 3), ("kind", 2)])
def test_other_kind_or_version_is_refused(kind: str, version: int) -> None:
    with pytest.raises(CorruptionError, match="kind v3"):
        unpack(kind, version, pack("kind", 3, {}, {}))


@given(some_arrays, st.data())
@settings(max_examples=200)
def test_every_cut_is_refused(given_arrays: dict[str, np.ndarray], data: st.DataObject) -> None:
    blob = pack("kind", 1, {}, given_arrays)
    with pytest.raises(CorruptionError):
        unpack("kind", 1, blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(CorruptionError):
        unpack("kind", 1, blob + b"x")


@given(st.data())
@settings(max_examples=300)
def test_damaged_header_never_escapes_the_error_tree(data: st.DataObject) -> None:
    blob = bytearray(pack("kind", 1, {"a": 1}, {"x": np.arange(9)}))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptionError):
        unpack("kind", 1, blob)


def test_a_dtype_that_is_no_syntax_is_refused() -> None:
    data = pack("kind", 1, {}, {"a": np.zeros(4, dtype="<f4")})
    with pytest.raises(CorruptionError):
        unpack("kind", 1, bytes(b"".join(data) if isinstance(data, list) else data).replace(b"<f4", b"04f"))
