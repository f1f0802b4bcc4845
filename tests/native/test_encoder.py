"""The encoder's kernels against the same arithmetic in plain numpy, text by text and row by row."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from dakera_cluster.native.encoder import Dense, Layer, NativeEncoder, Norm, Weights, runs_here, tiles_here
from tests.support import bert_reference
from tests.support.bert_reference import Array

pytestmark = pytest.mark.skipif(not runs_here(), reason="this processor has no 8-bit dot products")

VOCABULARY, PLACES = 97, 80


def drawn(rng: np.random.Generator, *shape: int, size: float = 1.0) -> NDArray[np.float32]:
    return rng.normal(0, size, shape).astype(np.float32)


def made(width: int, heads: int, wide: int, depth: int, seed: int = 3) -> Weights:
    rng = np.random.default_rng(seed)

    def dense(inner: int, outer: int) -> Dense:
        weights = rng.integers(-127, 128, (inner, outer)).astype(np.int8)
        scales = (np.abs(drawn(rng, outer)) + 0.2) / (60 * math.sqrt(inner))
        return Dense(weights, scales.astype(np.float32), drawn(rng, outer, size=0.2))

    def norm() -> Norm:
        return Norm(1 + drawn(rng, width, size=0.2), drawn(rng, width, size=0.2))

    layers = tuple(
        Layer(dense(width, 3 * width), dense(width, width), norm(), dense(width, wide), dense(wide, width), norm())
        for _ in range(depth)
    )
    words = rng.integers(-127, 128, (VOCABULARY, width)).astype(np.int8)
    word_scales = np.abs(drawn(rng, VOCABULARY)) / 100 + np.float32(0.001)
    return Weights(heads, 1e-12, words, word_scales, drawn(rng, PLACES, width, size=0.3), norm(), layers)


def product(rows: Array, dense: Dense) -> Array:
    """The rows in 8 bits, one scale each, times the matrix: exact integers, then floats."""
    peaks = np.maximum(np.abs(rows).max(axis=1, keepdims=True), 1e-9)
    steps = np.rint(rows * (127 / peaks)).astype(np.int64)
    return (steps @ dense.weights.astype(np.int64)) * (peaks / 127) * dense.scales.astype(np.float64) + dense.bias


def reference(weights: Weights, ids: list[int]) -> Array:
    width = weights.words.shape[1]
    products: dict[str, Dense] = {}
    norms: dict[str, Norm] = {}
    for place, layer in enumerate(weights.layers):
        prefix = f"encoder.layer.{place}."
        for part, name in enumerate(("query", "key", "value")):
            cut = slice(part * width, (part + 1) * width)
            joined = layer.attended
            products[f"{prefix}attention.self.{name}"] = Dense(
                joined.weights[:, cut], joined.scales[cut], joined.bias[cut]
            )
        products |= {
            prefix + "attention.output.dense": layer.merged,
            prefix + "intermediate.dense": layer.up,
            prefix + "output.dense": layer.down,
        }
        norms |= {
            prefix + "attention.output.LayerNorm": layer.merged_norm,
            prefix + "output.LayerNorm": layer.down_norm,
        }

    def norm(rows: Array, by: Norm) -> Array:
        return bert_reference.normalised(rows, by.weight, by.bias, weights.epsilon)

    words = weights.words[ids].astype(np.float64) * weights.word_scales[ids, None]
    return bert_reference.layers(
        norm(words + weights.positions[: len(ids)], weights.norm),
        len(weights.layers),
        weights.heads,
        lambda rows, name: product(rows, products[name]),
        lambda rows, name: norm(rows, norms[name]),
    )


def texts_of(lengths: list[int], seed: int = 5) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]


@pytest.mark.parametrize(
    ("width", "heads", "wide"), [(32, 2, 64), (96, 6, 96), (64, 1, 80), (384, 12, 1536), (160, 5, 208)]
)
def test_one_layer_is_that_of_the_reference(width: int, heads: int, wide: int) -> None:
    weights = made(width, heads, wide, depth=1)
    # Every number of rows that is left over by blocks of six, by vectors of sixteen, and by blocks of the inner layer.
    for text in texts_of([1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 33, 63, 64, 65, 71, PLACES]):
        _, states = NativeEncoder(weights).run([text], by_first=False)
        expected = reference(weights, text)
        # A step of 8 bits may fall either way where two accounts differ in the last digit of a float.
        np.testing.assert_allclose(states, expected, atol=0.25)
        assert np.abs(states - expected).mean() < 5e-4


def test_depth_keeps_the_direction_of_every_row() -> None:
    weights = made(64, 4, 256, depth=6)
    (text,) = texts_of([40])
    _, states = NativeEncoder(weights).run([text], by_first=False)
    expected = reference(weights, text)
    cosines = (states * expected).sum(axis=1) / np.linalg.norm(states, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


def test_a_text_is_the_same_bit_for_bit_whatever_it_is_encoded_with() -> None:
    encoder = NativeEncoder(made(96, 6, 192, depth=3))
    texts = texts_of([3, 64, 1, 17, 40, 70, 8, 5])
    pooled, states = encoder.run(texts, by_first=False)
    edges = np.cumsum([0, *map(len, texts)]).tolist()
    for place, (text, (start, stop)) in enumerate(zip(texts, pairwise(edges), strict=True)):
        alone_pooled, alone = encoder.run([text], by_first=False)
        assert np.array_equal(alone, states[start:stop])
        assert np.array_equal(alone_pooled[0], pooled[place])


@pytest.mark.skipif(not tiles_here(), reason="this processor has no tiles, or the system keeps them")
@pytest.mark.parametrize(("width", "heads", "wide"), [(64, 4, 128), (384, 12, 1536), (64, 1, 80), (96, 6, 192)])
def test_tiles_give_the_same_bits_as_vectors(width: int, heads: int, wide: int) -> None:
    weights = made(width, heads, wide, depth=2)
    tiled, plain = NativeEncoder(weights), NativeEncoder(weights, tiles=False)
    # Rows that fill tiles, that are left over by them, and that lie beyond a block of the inner layer.
    for lengths in ([1], [15], [16], [17], [40], [64, 16], [70, 3, 31, 80]):
        texts = texts_of(lengths)
        for one, other in zip(tiled.run(texts, by_first=False), plain.run(texts, by_first=False), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("by_first", [True, False])
def test_pooling_is_the_mean_or_the_first_row_at_length_one(by_first: bool) -> None:
    texts = texts_of([1, 9, 30])
    pooled, states = NativeEncoder(made(64, 4, 128, depth=2)).run(texts, by_first=by_first)
    parts = np.split(states.astype(np.float64), np.cumsum([len(text) for text in texts])[:-1])
    expected = np.array([part[0] if by_first else part.mean(axis=0) for part in parts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_nothing_to_encode_is_nothing() -> None:
    pooled, states = NativeEncoder(made(32, 2, 64, depth=1)).run([], by_first=False)
    assert pooled.shape == (0, 32) and states.shape == (0, 32)


@pytest.mark.parametrize("text", [[], [0] * (PLACES + 1), [-1], [VOCABULARY], [2**31]])
def test_texts_that_reach_out_of_the_weights_are_refused(text: list[int]) -> None:
    encoder = NativeEncoder(made(32, 2, 64, depth=1))
    with pytest.raises((ValueError, OverflowError)):
        encoder.run([[1, 2], text], by_first=False)


def test_weights_that_do_not_fit_are_refused() -> None:
    weights = made(64, 4, 128, depth=2)
    layer = weights.layers[0]
    wrong = [
        replace(weights, heads=3),
        replace(weights, heads=8),
        replace(weights, layers=()),
        replace(weights, word_scales=weights.word_scales[1:]),
        replace(weights, positions=weights.positions[:, 1:]),
        replace(weights, layers=(replace(layer, up=layer.down), layer)),
        replace(weights, layers=(layer, replace(layer, merged=layer.up))),
        replace(weights, layers=(replace(layer, down_norm=Norm(layer.down_norm.weight[1:], layer.down_norm.bias)),)),
        replace(weights, layers=(replace(layer, down=replace(layer.down, bias=layer.down.bias[1:])),)),
    ]
    for one in wrong:
        with pytest.raises(ValueError, match=r"wide|shape"):
            NativeEncoder(one)


def test_extreme_activations_stay_finite() -> None:
    weights = made(64, 4, 128, depth=2)
    loud = replace(weights, words=np.full_like(weights.words, 127), word_scales=np.full_like(weights.word_scales, 1e30))
    silent = replace(weights, words=np.zeros_like(weights.words), positions=np.zeros_like(weights.positions))
    for one in (loud, silent):
        pooled, states = NativeEncoder(one).run(texts_of([20]), by_first=False)
        assert np.isfinite(states).all() and np.isfinite(pooled).all()


def test_threads_do_not_disturb_one_another() -> None:
    encoder = NativeEncoder(made(96, 6, 384, depth=3))
    texts = texts_of([70, 64, 33, 80])
    expected = [encoder.run([text], by_first=False)[1] for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(50):
            found = list(pool.map(lambda text: encoder.run([text], by_first=False)[1], texts))
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
