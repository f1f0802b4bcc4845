"""The encoder: texts in, pooled and token vectors out, on ONNX Runtime. Synchronous; one thread at a time.

Invariants: a text's vectors do not depend on the texts encoded with it (measured on MiniLM int8: cosine 0.999999 or
better between alone and in any batch; the rest is the order of float additions over padding). Memory of a forward pass is
bounded by `max_batch_tokens`. Vectors are stored with their rows, so nothing relies on two machines agreeing bit for bit:
different CPUs round differently.

Called by the service, which owns the thread, and by benchmarks that want the bare rate of the model.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dakera_cluster.inference.encoding import Encoded, TokenVectors
from dakera_cluster.inference.models import ModelFormatError, ModelSpec, Pooling, TextKind
from dakera_cluster.inference.store import InstalledModel
from dakera_cluster.model.errors import InvalidRequestError

MAX_BATCH_TOKENS = 256
"""Padded tokens of one forward pass. On one core the rate peaks here (activations stay in cache): 1,024 is slower."""
MAX_TEXT_CHARS_PER_TOKEN = 64
"""Characters beyond this many a token of the limit are not even tokenised: no text of words reaches them."""


class Device(StrEnum):
    CPU = "cpu"
    CUDA = "cuda"


_PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: "CUDAExecutionProvider"}


class OnnxEncoder:
    """Encodes texts with one installed model. Not thread-safe by contract: one caller at a time."""

    def __init__(
        self,
        model: InstalledModel,
        threads: int = 1,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        device: Device = Device.CPU,
    ) -> None:
        """Loads graph and tokenizer. `threads` is the number of intra-op threads of a forward pass.

        Raises InvalidRequestError for a device the installed ONNX Runtime lacks and ModelFormatError for a graph that is
        no encoder.
        """
        self.spec: ModelSpec = model.spec
        self.fingerprint = model.fingerprint
        self._max_batch_tokens = max_batch_tokens
        self._tokenizer = _tokenizer(model.tokenizer_path, self.spec.max_tokens)
        self._special = _special_ids(self._tokenizer)
        self._session = open_session(model.graph_path, threads, device)
        self._inputs = {value.name for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        self._pools_itself = {"embedding", "tokens"} <= set(outputs)
        if not self._pools_itself and "last_hidden_state" not in outputs:
            raise ModelFormatError(f"{model.graph_path}: no output named last_hidden_state, found {', '.join(outputs)}")

    @property
    def dimension(self) -> int:
        return self.spec.dimension

    def encode(self, texts: Sequence[str], kind: TextKind, tokens: bool = False) -> Encoded:
        """Vectors of n texts, in order; token vectors only when `tokens` is set. Texts are cut at the model's limit."""
        ids = self.tokenize(texts, kind)
        vectors = np.empty((len(texts), self.spec.dimension), np.float32)
        token_vectors: dict[int, TokenVectors] = {}
        for batch in self.batches(ids):
            part = self.forward([ids[index] for index in batch], kind, tokens)
            vectors[batch] = part.vectors
            token_vectors.update(zip(batch, part.tokens or (), strict=False))
        vectors.flags.writeable = False
        return Encoded(vectors, [token_vectors[index] for index in range(len(texts))] if tokens else None)

    def tokenize(self, texts: Sequence[str], kind: TextKind) -> list[list[int]]:
        """Word-piece ids of each text with its prefix and special tokens, cut at the model's limit."""
        prefix = self.spec.prefix(kind)
        limit = self.spec.max_tokens * MAX_TEXT_CHARS_PER_TOKEN
        encodings = self._tokenizer.encode_batch_fast([prefix + whole(text[:limit]) for text in texts])
        return [encoding.ids for encoding in encodings]

    def pieces(self, ids: Sequence[int] | NDArray[np.int32]) -> list[str]:
        """The word pieces of ids, continuations with their leading `##`. Raises KeyError for an id out of the vocabulary."""
        pieces = []
        for piece_id in ids:
            piece = self._tokenizer.id_to_token(int(piece_id))
            if piece is None:
                raise KeyError(int(piece_id))
            pieces.append(piece)
        return pieces

    def piece_id(self, piece: str) -> int | None:
        """The id of a word piece, None when the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(piece)
        return found

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each word piece of the whole text begins and ends (characters), special tokens left out, nothing cut off.

        Safe beside a running forward pass, from any thread.
        """
        first = self._tokenizer.encode(whole(text))
        return [
            span
            for window in (first, *first.overflowing)
            for span, special in zip(window.offsets, window.special_tokens_mask, strict=True)
            if not special
        ]

    def batches(self, ids: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices in order of length, grouped so that a group, padded to its longest, keeps to the token budget.

        Each group is one forward pass. A text longer than the budget is a group of its own.
        """
        groups: list[list[int]] = []
        for index in sorted(range(len(ids)), key=lambda index: len(ids[index])):
            if groups and (len(groups[-1]) + 1) * len(ids[index]) <= self._max_batch_tokens:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def forward(self, ids: Sequence[Sequence[int]], kind: TextKind, tokens: bool) -> Encoded:
        """One forward pass over texts already tokenised, padded to the longest."""
        shape = (len(ids), max(map(len, ids)))
        inputs = {name: np.zeros(shape, np.int64) for name in self._inputs}
        for row, row_ids in enumerate(ids):
            inputs["input_ids"][row, : len(row_ids)] = row_ids
            inputs["attention_mask"][row, : len(row_ids)] = 1
        if self._pools_itself:
            wanted = ["embedding", "tokens"] if tokens else ["embedding"]
            pooled, *states = self._session.run(wanted, inputs)
        else:
            states = self._session.run(["last_hidden_state"], inputs)
            pooled = _pool(states[0], inputs["attention_mask"], self.spec.pooling)
        pooled.flags.writeable = False
        if not tokens:
            return Encoded(pooled)
        signs = np.packbits(states[0] > 0, axis=-1)
        return Encoded(
            pooled, [self._token_vectors(ids[row], states[0][row], signs[row], kind) for row in range(len(ids))]
        )

    def _token_vectors(
        self, ids: Sequence[int], states: NDArray[np.float32], signs: NDArray[np.uint8], kind: TextKind
    ) -> TokenVectors:
        keep = [place for place, piece_id in enumerate(ids) if piece_id not in self._special]
        floats = None
        if kind is TextKind.QUERY:
            floats = states[keep]
            floats /= np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        vectors = TokenVectors(np.asarray(ids, np.int32)[keep], signs[keep], floats)
        vectors.freeze()
        return vectors


def open_session(graph: Path, threads: int, device: Device) -> onnxruntime.InferenceSession:
    """A graph, loaded to be run by one thread at a time. Raises InvalidRequestError for a device that is not there."""
    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise InvalidRequestError(f"this ONNX Runtime has no {provider}: use cpu", field="DAKERA_INFERENCE_DEVICE")
    providers = list(dict.fromkeys([provider, _PROVIDERS[Device.CPU]]))
    return onnxruntime.InferenceSession(str(graph), _options(threads), providers=providers)


def _options(threads: int) -> onnxruntime.SessionOptions:
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


def whole(text: str) -> str:
    """The text with lone surrogates replaced, which the tokenizer would refuse, and with it everybody in the batch."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _int8_saturates() -> bool:
    """Whether the fast int8 product overflows its 16-bit sums: on x86 without VNNI. The exact kernels that ONNX Runtime has
    for that case take twice the time, also where they are not needed."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(piece_id for piece_id, piece in tokenizer.get_added_tokens_decoder().items() if piece.special)


def _pool(state: NDArray[np.float32], mask: NDArray[np.int64], pooling: Pooling) -> NDArray[np.float32]:
    """Pooling for graphs that stop at the last hidden state."""
    if pooling is Pooling.CLS:
        pooled = state[:, 0]
    else:
        weights = mask[:, :, None].astype(np.float32)
        pooled = (state * weights).sum(1) / weights.sum(1)
    norms = np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(pooled / norms, np.float32)
