"""A BERT encoder in 8-bit integers: ids in, pooled vectors and what is kept of token states out. Called by
inference/native_pass.py.

Its floats differ from those of a graph run by ONNX Runtime in the last digits only; its texts never depend on the texts that
are encoded with them. Needs a processor with 8-bit dot products (AVX-512 VNNI): ask ``runs_here`` first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.library import NULL, allocated, filled, given, kernels, listed, seen

LANES = 16
"""Widths are multiples of this."""
PANEL = 64
"""Columns of a matrix that lie together."""
CACHE_LINE = 64
"""Bytes."""
TILE = 64
"""A matrix whose inner side is a multiple of this can be multiplied by tiles."""

WRONG_LENGTH, WRONG_ID = -1, -2

Floats = NDArray[np.float32]


class Wanted(IntEnum):
    """Of the states of tokens."""

    NOTHING, SIGNS, SIGNS_AND_HALVES = range(3)


class Outcome(NamedTuple):
    """Of one text with t tokens that are not special. ``pooled``: float32[width], ``signs``: uint8[t, width / 8], the first
    component in the highest bit and 1 where positive, ``halves``: float16[t, width], states at length 1; little endian, empty
    where they were not wanted."""

    pooled: bytes
    signs: bytes
    halves: bytes


@dataclass(frozen=True, slots=True)
class Dense:
    """x W + b. ``weights``: int8[inner, outer]; ``scales`` (what a step of a column is worth) and ``bias``: float32[outer]."""

    weights: NDArray[np.int8]
    scales: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation: float32[width] each."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """``attended``: queries, keys and values side by side; ``merged``: over the heads; ``up`` and ``down``: the inner layer. Each
    norm follows the product of its name, added to what went in."""

    attended: Dense
    merged: Dense
    merged_norm: Norm
    up: Dense
    down: Dense
    down_norm: Norm


@dataclass(frozen=True, slots=True)
class Weights:
    """``words``: int8[vocabulary, width] with ``word_scales``: float32[vocabulary]; ``positions``: float32[places, width], the
    token type added."""

    heads: int
    epsilon: float
    words: NDArray[np.int8]
    word_scales: Floats
    positions: Floats
    norm: Norm
    layers: tuple[Layer, ...]


def runs_here() -> bool:
    """Whether this processor has what it takes."""
    return bool(kernels.encoder_runs())


def tiles_here() -> bool:
    """Whether this processor has tiles (AMX) and the system lets this process use them."""
    return bool(kernels.encoder_has_tiles())


class NativeEncoder:
    """The weights, laid out for the kernels. Any number of threads may run it at once."""

    def __init__(self, weights: Weights, *, special: Collection[int] = (), tiles: bool = True) -> None:
        """``special``: ids of tokens that stand for nothing of a text. ``tiles``: use them where they are; the results are the
        same.

        Raises ValueError for weights that do not fit together or whose widths the kernels do not take."""
        if not runs_here():
            raise ValueError("this processor lacks 8-bit dot products")
        _check(weights)
        self._width = weights.words.shape[1]
        self._vocabulary, self._places = len(weights.words), len(weights.positions)
        self._tiled = tiles and tiles_here()
        self._kept: list[Any] = []
        self._panels = _aligned(
            sum(_panel_bytes(dense) for layer in weights.layers for dense in _products(layer)), np.int8
        )
        self._used = 0
        self._rooms: list[tuple[Any, int]] = []
        """Working memory of runs that ended, with its bytes: as many pieces as ever ran at once."""
        layers = allocated("layer_weights", len(weights.layers))
        for place, layer in enumerate(weights.layers):
            to = layers[place]
            for name in ("attended", "merged", "up", "down"):
                self._lay_out(getattr(layer, name), getattr(to, name))
            for name in ("merged", "down"):
                norm = getattr(layer, f"{name}_norm")
                setattr(to, f"{name}_weight", self._held(norm.weight, np.float32))
                setattr(to, f"{name}_bias", self._held(norm.bias, np.float32))
        self._model = allocated("encoder_weights", 1)
        model = self._model[0]
        model.depth, model.width, model.heads = len(weights.layers), self._width, weights.heads
        model.tiled = self._tiled
        model.vocabulary, model.places = self._vocabulary, self._places
        model.epsilon = weights.epsilon
        model.words = self._held(weights.words, np.int8)
        model.word_scales = self._held(weights.word_scales, np.float32)
        model.positions = self._held(weights.positions, np.float32)
        model.norm_weight = self._held(weights.norm.weight, np.float32)
        model.norm_bias = self._held(weights.norm.bias, np.float32)
        stand_for_nothing = np.zeros(self._vocabulary, np.uint8)
        stand_for_nothing[[token for token in special if token < self._vocabulary]] = 1
        model.special = self._held(stand_for_nothing, np.uint8)
        model.layers = layers
        self._kept.append(layers)

    def run(self, texts: Sequence[Sequence[int]], *, by_first: bool, wanted: Wanted) -> list[Outcome]:
        """Of each text, none of them empty. Pooled is the mean of a text's states, or with ``by_first`` the first of them, at
        length 1.

        Raises ValueError for an id out of the vocabulary, or a text that is empty or has more tokens than there are places.
        """
        if not texts:
            return []
        ids = filled("int32_t[]", [token for text in texts for token in text])
        lengths = filled("int32_t[]", [len(text) for text in texts])
        room, size = self._rooms.pop() if self._rooms else (None, 0)
        result = allocated("encoder_result", 1)
        while code := kernels.encoder_run(
            self._model, ids, lengths, len(texts), by_first, wanted, room or NULL, size, result
        ):
            if code in (WRONG_LENGTH, WRONG_ID):
                self._rooms.append((room, size))
                raise ValueError(
                    f"a text must have 1 to {self._places} tokens"
                    if code == WRONG_LENGTH
                    else f"token ids must lie in 0 to {self._vocabulary - 1}"
                )
            size = -code
            room = given(np.empty(size, np.uint8), np.uint8)
        found = self._outcomes(result[0], len(texts), wanted)
        self._rooms.append((room, size))
        return found

    def _outcomes(self, result: Any, count: int, wanted: Wanted) -> list[Outcome]:
        """Copies: the room is another run's as soon as this one has ended."""
        wide, narrow, step = 4 * self._width, 2 * self._width, self._width // 8
        counts = listed(result.counts, count)
        total = sum(counts)
        pooled = seen(result.pooled, count * wide)
        signs = seen(result.signs, total * step)
        halves = seen(result.halves, total * narrow if wanted is Wanted.SIGNS_AND_HALVES else 0)
        found, start = [], 0
        for place, own in enumerate(counts):
            stop = start + own
            found.append(
                Outcome(
                    pooled[place * wide : (place + 1) * wide],
                    signs[start * step : stop * step],
                    halves[start * narrow : stop * narrow],
                )
            )
            start = stop
        return found

    def _lay_out(self, dense: Dense, to: Any) -> None:
        inner, outer = dense.weights.shape
        panels = self._panels[self._used : self._used + _panel_bytes(dense)]
        self._used += len(panels)
        starts = np.empty(_columns(outer), np.int32)
        kernels.encoder_pack(
            given(np.ascontiguousarray(dense.weights), np.int8),
            inner,
            outer,
            given(panels, np.int8),
            given(starts, np.int32),
        )
        to.inner, to.outer = inner, outer
        to.tiled = self._tiled and inner % TILE == 0
        to.panels, to.starts = self._held(panels, np.int8), self._held(starts, np.int32)
        to.scales, to.bias = self._held(dense.scales, np.float32), self._held(dense.bias, np.float32)

    def _held(self, array: np.ndarray, dtype: Any) -> Any:
        pointer = given(np.ascontiguousarray(array), dtype)
        self._kept.append(pointer)
        return pointer


def _products(layer: Layer) -> tuple[Dense, Dense, Dense, Dense]:
    """In the order in which they are used, which is the order in which they lie."""
    return layer.attended, layer.merged, layer.up, layer.down


def _aligned(count: int, dtype: Any) -> NDArray[Any]:
    """An array that begins where a line of the cache does: what straddles two lines takes twice as long to load."""
    size = count * np.dtype(dtype).itemsize
    room = np.empty(size + CACHE_LINE, np.uint8)
    start = -room.ctypes.data % CACHE_LINE
    return room[start : start + size].view(dtype)


def _columns(outer: int) -> int:
    return -(-outer // PANEL) * PANEL


def _panel_bytes(dense: Dense) -> int:
    inner, outer = dense.weights.shape
    return int(inner * _columns(outer))


def _check(weights: Weights) -> None:
    width = weights.words.shape[1]
    if not weights.layers or weights.heads < 1 or width % (weights.heads * LANES):
        raise ValueError(f"the heads must be some times {LANES} wide: {width} / {weights.heads}")
    shapes: list[tuple[np.ndarray, tuple[int, ...]]] = [
        (weights.word_scales, (len(weights.words),)),
        (weights.positions, (len(weights.positions), width)),
        (weights.norm.weight, (width,)),
        (weights.norm.bias, (width,)),
    ]
    for layer in weights.layers:
        wide = layer.up.weights.shape[1]
        if wide % LANES or wide != weights.layers[0].up.weights.shape[1]:
            raise ValueError(f"every inner layer must be the same multiple of {LANES} wide, not {wide}")
        sides = ((width, 3 * width), (width, width), (width, wide), (wide, width))
        for dense, (inner, outer) in zip(_products(layer), sides, strict=True):
            shapes += [(dense.weights, (inner, outer)), (dense.scales, (outer,)), (dense.bias, (outer,))]
        for norm in (layer.merged_norm, layer.down_norm):
            shapes += [(norm.weight, (width,)), (norm.bias, (width,))]
    for array, shape in shapes:
        if array.shape != shape:
            raise ValueError(f"weights of shape {array.shape} where {shape} was expected")
