"""BERT's layers in plain numpy float64, one text at a time, no mask: an independent account of what graphs and kernels compute.

Devlin et al. 2019: post-layer-norm, exact GELU. How a product is taken (in floats, in 8 bits) is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Named = Callable[[Array, str], Array]
"""What a weight of that name makes of rows float64[n, width]."""


def normalised(rows: Array, weight: NDArray[Any], bias: NDArray[Any], epsilon: float) -> Array:
    gaps = rows - rows.mean(-1, keepdims=True)
    return np.asarray(gaps / np.sqrt((gaps**2).mean(-1, keepdims=True) + epsilon) * weight + bias)


def gelu(rows: Array) -> Array:
    return np.asarray(rows * 0.5 * (1 + np.vectorize(math.erf)(rows / math.sqrt(2))))


def attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """The context of every row, heads side by side."""
    width = query.shape[1] // heads
    context = np.empty_like(query)
    for start in range(0, query.shape[1], width):
        cut = slice(start, start + width)
        scores = query[:, cut] @ key[:, cut].T / math.sqrt(width)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        context[:, cut] = shares / shares.sum(-1, keepdims=True) @ value[:, cut]
    return context


def layers(state: Array, depth: int, heads: int, linear: Named, norm: Named) -> Array:
    """The stack over embeddings that are normalised already."""
    for layer in range(depth):
        prefix = f"encoder.layer.{layer}."
        query, key, value = (linear(state, f"{prefix}attention.self.{part}") for part in ("query", "key", "value"))
        merged = linear(attention(query, key, value, heads), prefix + "attention.output.dense")
        state = norm(merged + state, prefix + "attention.output.LayerNorm")
        inner = gelu(linear(state, prefix + "intermediate.dense"))
        state = norm(linear(inner, prefix + "output.dense") + state, prefix + "output.LayerNorm")
    return state


def float_parts(weights: Mapping[str, NDArray[np.float32]], epsilon: float) -> tuple[Named, Named]:
    """``linear`` and ``norm`` over tensors by their bare BERT names."""
    wide = {name: tensor.astype(np.float64) for name, tensor in weights.items()}

    def linear(rows: Array, name: str) -> Array:
        return np.asarray(rows @ wide[name + ".weight"].T + wide[name + ".bias"])

    def norm(rows: Array, name: str) -> Array:
        return normalised(rows, wide[name + ".weight"], wide[name + ".bias"], epsilon)

    return linear, norm
