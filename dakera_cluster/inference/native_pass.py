"""Forward passes of an int8 encoder by our own kernels, where the processor has 8-bit dot products.

The same weights that ONNX Runtime would run, read from the same file: a pass takes about half the time, because nothing is
padded and nothing stands between the nodes of a graph. Graphs that inference/build.py did not write, float32, other processors
and CUDA stay with ONNX Runtime (onnx_pass.py). Called by embedder.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from dakera_cluster.inference.encoding import EncodedText, TokenVectors
from dakera_cluster.inference.graph_file import GraphFile, read_graph
from dakera_cluster.inference.models import PRODUCER, Pooling, Precision
from dakera_cluster.inference.store import InstalledModel
from dakera_cluster.native.encoder import Dense, Layer, NativeEncoder, Norm, Wanted, Weights, runs_here


class NativePass:
    """See the module. One caller at a time; several ``threads`` share out the texts of a pass."""

    def __init__(self, encoder: NativeEncoder, pooling: Pooling, special: frozenset[int], threads: int = 1) -> None:
        """``special``: as the encoder was told."""
        self._encoder = encoder
        self._by_first = pooling is Pooling.CLS
        self._special = special
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encoder") if threads > 1 else None

    def run(self, ids: Sequence[Sequence[int]], wanted: Wanted) -> list[EncodedText]:
        """One pass over texts already tokenised."""
        if self._pool is None or len(ids) < 2:
            return self._part(ids, wanted)
        edges = [len(ids) * share // self._threads for share in range(self._threads + 1)]
        spans = [(start, stop) for start, stop in pairwise(edges) if stop > start]
        parts = self._pool.map(lambda span: self._part(ids[span[0] : span[1]], wanted), spans)
        return [text for part in parts for text in part]

    def _part(self, ids: Sequence[Sequence[int]], wanted: Wanted) -> list[EncodedText]:
        found = self._encoder.run(ids, by_first=self._by_first, wanted=wanted)
        if wanted is Wanted.NOTHING:
            return [EncodedText(pooled) for pooled, _, _ in found]
        special, has_halves = self._special, wanted is Wanted.SIGNS_AND_HALVES
        texts = []
        for own, (pooled, signs, halves) in zip(ids, found, strict=True):
            kept = tuple([token for token in own if token not in special])
            texts.append(EncodedText(pooled, TokenVectors(kept, signs, halves if has_halves else None)))
        return texts


def native_pass(model: InstalledModel, special: frozenset[int], threads: int) -> NativePass | None:
    """The passes of an installed model; None where ONNX Runtime has to run them. ``special``: ids of tokens that stand for
    nothing of a text. Raises ModelFormatError for a file that is no graph."""
    if model.precision is not Precision.INT8 or not runs_here():
        return None
    graph = read_graph(model.graph_path)
    if graph.producer != PRODUCER:
        return None
    try:
        return NativePass(NativeEncoder(_weights(graph), special=special), model.spec.pooling, special, threads)
    except (KeyError, ValueError):
        return None  # a shape that the kernels do not take


def _weights(graph: GraphFile) -> Weights:
    constants = graph.constants
    layers: list[Layer] = []
    while (prefix := f"encoder.layer.{len(layers)}.") + "output.dense.weight" in constants:
        layers.append(
            Layer(
                # The builder names what it joins after the first part.
                attended=_dense(constants, prefix + "attention.self.query"),
                merged=_dense(constants, prefix + "attention.output.dense"),
                merged_norm=_norm(constants, prefix + "attention.output.LayerNorm"),
                up=_dense(constants, prefix + "intermediate.dense"),
                down=_dense(constants, prefix + "output.dense"),
                down_norm=_norm(constants, prefix + "output.LayerNorm"),
            )
        )
    (epsilon,) = graph.floats["LayerNormalization.epsilon"]
    return Weights(
        heads=int(constants["split_heads"][2]),
        epsilon=epsilon,
        # Copies: a view would keep all of the file in memory.
        words=constants["words"].copy(),
        word_scales=constants["word_scales"].reshape(-1).copy(),
        positions=constants["positions"].copy(),
        norm=_norm(constants, "embeddings.LayerNorm"),
        layers=tuple(layers),
    )


def _dense(constants: dict[str, np.ndarray], name: str) -> Dense:
    return Dense(constants[f"{name}.weight"], constants[f"{name}.scale"], constants[f"{name}.bias"])


def _norm(constants: dict[str, np.ndarray], name: str) -> Norm:
    return Norm(constants[f"{name}.weight"], constants[f"{name}.bias"])
