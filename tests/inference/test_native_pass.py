from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from dakera_cluster.inference import store
from dakera_cluster.inference.embedder import TextEncoder
from dakera_cluster.inference.models import Precision, TextKind
from dakera_cluster.inference.native_pass import native_pass
from dakera_cluster.inference.store import InstalledModel
from dakera_cluster.native.encoder import Wanted, runs_here

from .conftest import HIDDEN, SPECIAL, halves_of, write_tiny_model

pytestmark = pytest.mark.skipif(not runs_here(), reason="this processor has no 8-bit dot products")

TEXTS = ["the cat sat on the mat .", "hello world", "", "deep blue sea : red fish swims fast", "cats swims zzz"] * 7
SPECIAL_IDS = frozenset(range(len(SPECIAL)))


def installed(folder: Path, pooling: str = "mean", precision: Precision = Precision.INT8) -> InstalledModel:
    model = write_tiny_model(folder / "tiny", pooling)
    store.pull(str(model), folder / "cache", precision=precision)
    return store.find(str(model), folder / "cache", precision)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_kernels_and_onnx_runtime_say_the_same(tmp_path: Path, pooling: str) -> None:
    model = installed(tmp_path, pooling)
    own, theirs = (TextEncoder(model, native=native).encode(TEXTS, TextKind.QUERY, True) for native in (True, False))
    assert own.tokens is not None and theirs.tokens is not None
    assert (own.vectors * theirs.vectors).sum(axis=1).min() > 0.9995
    for left, right in zip(own.tokens, theirs.tokens, strict=True):
        assert left.ids == right.ids
        assert ((halves_of(left, HIDDEN) * halves_of(right, HIDDEN)).sum(axis=1) > 0.998).all()


@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_share_the_texts_and_change_nothing(tmp_path: Path, threads: int) -> None:
    model = installed(tmp_path)
    alone, shared = native_pass(model, SPECIAL_IDS, 1), native_pass(model, SPECIAL_IDS, threads)
    assert alone is not None and shared is not None
    ids = TextEncoder(model).tokenize(TEXTS, TextKind.PASSAGE)
    for count in (1, 2, len(ids)):
        assert alone.run(ids[:count], Wanted.SIGNS_AND_HALVES) == shared.run(ids[:count], Wanted.SIGNS_AND_HALVES)
    assert all(text.tokens is None for text in shared.run(ids, Wanted.NOTHING))


def test_less_is_left_where_less_is_wanted(tmp_path: Path) -> None:
    own = native_pass(model := installed(tmp_path), SPECIAL_IDS, 1)
    assert own is not None
    ids = TextEncoder(model).tokenize(TEXTS, TextKind.PASSAGE)
    for all_of, signs, nothing in zip(*(own.run(ids, wanted) for wanted in reversed(Wanted)), strict=True):
        assert all_of.vector == signs.vector == nothing.vector
        assert all_of.tokens is not None and signs.tokens is not None and nothing.tokens is None
        assert (all_of.tokens.ids, all_of.tokens.signs) == (signs.tokens.ids, signs.tokens.signs)
        assert signs.tokens.halves is None


def test_what_the_kernels_do_not_take_is_left_to_onnx_runtime(tmp_path: Path) -> None:
    assert native_pass(installed(tmp_path / "fp32", precision=Precision.FP32), SPECIAL_IDS, 1) is None
    model = installed(tmp_path / "foreign")
    graph = onnx.load(str(model.graph_path))
    graph.producer_name = "somebody"
    onnx.save(graph, str(model.graph_path))
    assert native_pass(model, SPECIAL_IDS, 1) is None
    assert not TextEncoder(model).is_native


def test_a_model_that_the_kernels_run_does_not_load_onnx_runtime(tmp_path: Path) -> None:
    """Its memory would stay with the node for nothing."""
    installed(tmp_path)
    program = (
        "import sys; from pathlib import Path; from dakera_cluster.inference.service import open_embedder;"
        f"embedder = open_embedder({str(tmp_path / 'tiny')!r}, Path({str(tmp_path / 'cache')!r}));"
        "assert embedder.available; sys.exit('onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
