"""Forward passes on ONNX Runtime: any graph, any precision, CPU or CUDA. Called by embedder.py and pairs.py.

ONNX Runtime is imported when a graph is opened: a node whose models all run on our own kernels does without its memory.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.inference.encoding import EncodedText, TokenVectors
from dakera_cluster.inference.models import ModelFormatError, Pooling
from dakera_cluster.model.errors import InvalidRequestError
from dakera_cluster.native.encoder import Wanted

if TYPE_CHECKING:
    import onnxruntime


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


_PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: "CUDAExecutionProvider"}


class OnnxPass:
    """A graph with the inputs `input_ids` and `attention_mask`, and as outputs either what our builder writes (`embedding`,
    `tokens`) or `last_hidden_state`, which is pooled here. One caller at a time."""

    def __init__(self, graph: Path, pooling: Pooling, special: frozenset[int], threads: int, device: Device) -> None:
        """``special``: ids of tokens that stand for nothing of a text.

        Raises InvalidRequestError for a device that is not there and ModelFormatError for a graph that is no encoder."""
        self._pooling = pooling
        self._special = special
        self._session = open_session(graph, threads, device)
        self._inputs = {value.name for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        self._pools_itself = {"embedding", "tokens"} <= set(outputs)
        if not self._pools_itself and "last_hidden_state" not in outputs:
            raise ModelFormatError(f"{graph}: no output named last_hidden_state, found {', '.join(outputs)}")

    def run(self, ids: Sequence[Sequence[int]], wanted: Wanted) -> list[EncodedText]:
        """One pass over texts already tokenised, padded to the longest."""
        shape = (len(ids), max(map(len, ids)))
        inputs = {name: np.zeros(shape, np.int64) for name in self._inputs}
        for row, row_ids in enumerate(ids):
            inputs["input_ids"][row, : len(row_ids)] = row_ids
            inputs["attention_mask"][row, : len(row_ids)] = 1
        if self._pools_itself:
            outputs = ["embedding"] if wanted is Wanted.NOTHING else ["embedding", "tokens"]
            pooled, *states = self._session.run(outputs, inputs)
        else:
            states = self._session.run(["last_hidden_state"], inputs)
            pooled = _pool(states[0], inputs["attention_mask"], self._pooling)
        vectors = [row.tobytes() for row in pooled.astype("<f4", copy=False)]
        if wanted is Wanted.NOTHING:
            return [EncodedText(vector) for vector in vectors]
        return [
            EncodedText(vector, _tokens(row_ids, states[0][row], self._special, wanted))
            for row, (row_ids, vector) in enumerate(zip(ids, vectors, strict=True))
        ]


def open_session(graph: Path, threads: int, device: Device) -> onnxruntime.InferenceSession:
    """A graph, loaded to be run by one thread at a time. Raises InvalidRequestError for a device that is not there."""
    import onnxruntime

    check_device(device)
    providers = list(dict.fromkeys([_PROVIDERS[device], _PROVIDERS[Device.CPU]]))
    return onnxruntime.InferenceSession(str(graph), _options(threads), providers=providers)


def _options(threads: int) -> onnxruntime.SessionOptions:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Both would keep the memory of the largest batch for ever; patterns are kept for every shape ever seen.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # A waiting intra-op thread must not burn the cores that the event loop and the other workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _int8_saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3
    return options


def check_device(device: Device) -> None:
    """Raises InvalidRequestError for a device that the installed ONNX Runtime lacks."""
    if device is Device.CPU:
        return  # every build has it
    import onnxruntime

    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise InvalidRequestError(f"this ONNX Runtime has no {provider}: use cpu", field="DAKERA_INFERENCE_DEVICE")


def _int8_saturates() -> bool:
    """Whether the fast int8 product overflows its 16-bit sums: on x86 without VNNI. The exact kernels that ONNX Runtime has
    for that case take twice the time, also where they are not needed."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _tokens(ids: Sequence[int], states: NDArray[np.float32], special: frozenset[int], wanted: Wanted) -> TokenVectors:
    """Of one text: what the kernels make of the same states. ``states``: float32[at least as many as ids, d]."""
    places = [place for place, token in enumerate(ids) if token not in special]
    states = states[places]
    signs, kept = np.packbits(states > 0, axis=-1).tobytes(), tuple([ids[place] for place in places])
    if wanted is Wanted.SIGNS:
        return TokenVectors(kept, signs)
    norms = np.maximum(np.sqrt(np.einsum("ij,ij->i", states, states)), np.finfo(np.float32).tiny)
    return TokenVectors(kept, signs, (states / norms[:, None]).astype("<f2").tobytes())


def _pool(state: NDArray[np.float32], mask: NDArray[np.int64], pooling: Pooling) -> NDArray[np.float32]:
    """Pooling for graphs that stop at the last hidden state."""
    if pooling is Pooling.CLS:
        pooled = state[:, 0]
    else:
        weights = mask[:, :, None].astype(np.float32)
        pooled = (state * weights).sum(1) / weights.sum(1)
    norms = np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(pooled / norms, np.float32)
