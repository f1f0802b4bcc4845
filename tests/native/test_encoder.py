"""The encoder's kernels against the same arithmetic in plain numpy, text by text and row by row."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dakera_cluster.native.encoder import (
    Dense,
    Layer,
    NativeEncoder,
    Norm,
    Outcome,
    Wanted,
    Weights,
    runs_here,
    tiles_here,
)
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


def ran(encoder: NativeEncoder, texts: list[list[int]], *, by_first: bool = False) -> list[Outcome]:
    return encoder.run(texts, by_first=by_first, wanted=Wanted.SIGNS_AND_HALVES)


def directions(encoder: NativeEncoder, text: list[int]) -> Array:
    """The states of a text at length 1, in 16 bits."""
    (found,) = ran(encoder, [text])
    return np.frombuffer(found.halves, "<f2").reshape(len(text), -1).astype(np.float64)


def pooled_of(outcomes: list[Outcome]) -> NDArray[np.float32]:
    return np.array([np.frombuffer(found.pooled, "<f4") for found in outcomes])


@pytest.mark.parametrize(
    ("width", "heads", "wide"), [(32, 2, 64), (96, 6, 96), (64, 1, 80), (384, 12, 1536), (160, 5, 208)]
)
def test_one_layer_is_that_of_the_reference(width: int, heads: int, wide: int) -> None:
    weights = made(width, heads, wide, depth=1)
    encoder = NativeEncoder(weights)
    # Every number of rows that goes through whole, and those left over by blocks of six, by vectors of sixteen, and by blocks of
    # the inner layer.
    for text in texts_of([*range(1, 21), 33, 63, 64, 65, 71, PLACES]):
        found, expected = directions(encoder, text), reference(weights, text)
        lengths = np.linalg.norm(expected, axis=1, keepdims=True)
        # A step of 8 bits may fall either way where two accounts differ in the last digit of a float.
        np.testing.assert_allclose(found * lengths, expected, atol=0.25)
        assert np.abs(found * lengths - expected).mean() < 1e-3


def test_depth_keeps_the_direction_of_every_row() -> None:
    weights = made(64, 4, 256, depth=6)
    (text,) = texts_of([40])
    found, expected = directions(NativeEncoder(weights), text), reference(weights, text)
    cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


def test_a_text_is_the_same_bit_for_bit_whatever_it_is_encoded_with() -> None:
    encoder = NativeEncoder(made(96, 6, 192, depth=3))
    texts = texts_of([3, 64, 1, 17, 40, 70, 8, 14, 5])
    together = ran(encoder, texts)
    assert [outcome for text in texts for outcome in ran(encoder, [text])] == together
    assert ran(encoder, texts[::-1]) == together[::-1]


@pytest.mark.parametrize("width", [16, 32, 48, 96, 384])
def test_tokens_are_left_as_numpy_leaves_their_states(width: int) -> None:
    """To the bit: other nodes may have made theirs on ONNX Runtime."""
    rng = np.random.default_rng(width)
    plain = made(width, 1, 32, depth=1)
    for trial in range(60):
        # The last norm gives the same state to every token: its bias.
        state = drawn(rng, width, size=10.0 ** rng.integers(-6, 3))
        state *= rng.choice([1, 1, 1, 0, -0.0], width).astype(np.float32) if trial % 2 else np.float32(1)
        if trial == 1:
            state[:] = 0
        layer = replace(plain.layers[0], down_norm=Norm(np.zeros(width, np.float32), state))
        (found,) = ran(NativeEncoder(replace(plain, layers=(layer,))), [[1, 2, 3]])
        states = np.tile(state, (3, 1))
        norms = np.sqrt(np.einsum("ij,ij->i", states, states))
        halves = states / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
        assert found.signs == np.packbits(states > 0, axis=-1).tobytes()
        assert np.array_equal(np.frombuffer(found.halves, "<f2"), halves.astype("<f2").reshape(-1))


def test_special_tokens_are_left_out_and_count_in_the_mean() -> None:
    weights = made(64, 4, 128, depth=2)
    special = {5, 7, VOCABULARY + 3}
    texts = [[5, 1, 7, 2, 7], [5, 7], [1, 2, 3], [7, 5, 5, 9]]
    plain, leaving_out = NativeEncoder(weights), NativeEncoder(weights, special=special)
    for text, all_of, some in zip(texts, ran(plain, texts), ran(leaving_out, texts), strict=True):
        assert some.pooled == all_of.pooled
        places = [place for place, token in enumerate(text) if token not in special]
        for mine, theirs, size in ((some.signs, all_of.signs, 8), (some.halves, all_of.halves, 128)):
            assert mine == b"".join(theirs[place * size : (place + 1) * size] for place in places)


def test_what_is_not_wanted_is_not_left() -> None:
    encoder = NativeEncoder(made(64, 4, 128, depth=1))
    texts = texts_of([4, 9])
    for wanted in Wanted:
        for found, whole in zip(encoder.run(texts, by_first=False, wanted=wanted), ran(encoder, texts), strict=True):
            signs = whole.signs if wanted >= Wanted.SIGNS else b""
            halves = whole.halves if wanted >= Wanted.SIGNS_AND_HALVES else b""
            assert found == (whole.pooled, signs, halves)


@pytest.mark.skipif(not tiles_here(), reason="this processor has no tiles, or the system keeps them")
@pytest.mark.parametrize(("width", "heads", "wide"), [(64, 4, 128), (384, 12, 1536), (64, 1, 80), (96, 6, 192)])
def test_tiles_give_the_same_bits_as_vectors(width: int, heads: int, wide: int) -> None:
    weights = made(width, heads, wide, depth=2)
    tiled, plain = NativeEncoder(weights), NativeEncoder(weights, tiles=False)
    # Rows that fill tiles, that are left over by them, and that lie beyond a block of the inner layer.
    for lengths in ([1], [14], [15], [16], [17], [40], [64, 16], [70, 3, 31, 80]):
        texts = texts_of(lengths)
        assert ran(tiled, texts) == ran(plain, texts)


@pytest.mark.parametrize("by_first", [True, False])
def test_pooling_is_the_mean_or_the_first_row_at_length_one(by_first: bool) -> None:
    texts = texts_of([1, 9, 30])
    weights = made(64, 4, 128, depth=1)
    pooled = pooled_of(ran(NativeEncoder(weights), texts, by_first=by_first))
    parts = [reference(weights, text) for text in texts]
    expected = np.array([part[0] if by_first else part.mean(axis=0) for part in parts])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(pooled, expected, atol=0.01)
    np.testing.assert_allclose((pooled * expected).sum(axis=1), 1, atol=1e-5)


def test_nothing_to_encode_is_nothing() -> None:
    assert ran(NativeEncoder(made(32, 2, 64, depth=1)), []) == []


@pytest.mark.parametrize("text", [[], [0] * (PLACES + 1), [-1], [VOCABULARY], [2**31]])
def test_texts_that_reach_out_of_the_weights_are_refused(text: list[int]) -> None:
    encoder = NativeEncoder(made(32, 2, 64, depth=1))
    expected = ran(encoder, [[1, 2]])
    with pytest.raises((ValueError, OverflowError)):
        ran(encoder, [[1, 2], text])
    assert ran(encoder, [[1, 2]]) == expected


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
        encoder, (text,) = NativeEncoder(one), texts_of([20])
        assert np.isfinite(directions(encoder, text)).all() and np.isfinite(pooled_of(ran(encoder, [text]))).all()


def test_threads_do_not_disturb_one_another() -> None:
    encoder = NativeEncoder(made(96, 6, 384, depth=3))
    texts = texts_of([70, 64, 33, 80])
    expected = [ran(encoder, [text]) for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(50):
            assert list(pool.map(lambda text: ran(encoder, [text]), texts)) == expected
