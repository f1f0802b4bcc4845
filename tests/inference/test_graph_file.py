from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from dakera_cluster.inference import store
from dakera_cluster.inference.graph_file import read_graph
from dakera_cluster.inference.models import PRODUCER, ModelFormatError, Precision

from .conftest import write_tiny_model


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    entry = store.pull(str(write_tiny_model(folder / "tiny")), folder / "cache")
    return entry / store.GRAPH


def test_constants_and_attributes_are_those_that_onnx_reads(graph: Path) -> None:
    found, model = read_graph(graph), onnx.load(str(graph))
    assert found.producer == model.producer_name == PRODUCER
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert set(found.constants) == set(expected)
    for name, array in expected.items():
        assert found.constants[name].dtype == array.dtype and found.constants[name].shape == array.shape
        assert np.array_equal(found.constants[name], array), name
    (epsilon,) = found.floats["LayerNormalization.epsilon"]
    assert epsilon == pytest.approx(1e-12)


def test_a_graph_of_somebody_else_says_so(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(str(graph))
    model.producer_name = "somebody"
    onnx.save(model, str(tmp_path / "other.onnx"))
    assert read_graph(tmp_path / "other.onnx").producer == "somebody"


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", b"\xff" * 40, b"\x3a\x85"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(ModelFormatError):
        read_graph(tmp_path / "broken.onnx")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.floats(0, 1), at=st.floats(0, 1), byte=st.integers(0, 255))
def test_damage_is_refused_or_read_as_other_constants(
    graph: Path, tmp_path: Path, cut: float, at: float, byte: int
) -> None:
    data = bytearray(graph.read_bytes())
    data[int(at * (len(data) - 1))] = byte
    (tmp_path / "damaged.onnx").write_bytes(data[: int(cut * len(data))] if byte % 2 else data)
    with contextlib.suppress(ModelFormatError):
        read_graph(tmp_path / "damaged.onnx")


def test_fp32_graphs_are_read_too(tmp_path: Path) -> None:
    entry = store.pull(str(write_tiny_model(tmp_path / "tiny")), tmp_path / "cache", precision=Precision.FP32)
    assert read_graph(entry / store.GRAPH).constants["words"].dtype == np.float32
