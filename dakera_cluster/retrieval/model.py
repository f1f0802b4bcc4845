"""The ranking model: one weight a feature, read from shipped/weights.json, with where they come from.

The weights are fitted by ops/fit_recall.py over questions of all kinds together and checked with each kind left out; they
are data, so a better fit needs no release of code. Called by the engine and the fit.
"""

from __future__ import annotations

import math
from functools import cache, cached_property
from importlib import resources

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native import order as native
from dakera_cluster.retrieval.features import NAMES

WEIGHTS_FILE = "weights.json"


class Model(msgspec.Struct, frozen=True, dict=True):
    """``weights``: feature to weight, absent is 0. A relevance z becomes the score 1 / (1 + exp(-(z - middle) / spread))."""

    weights: dict[str, float]
    middle: float
    spread: float
    provenance: dict[str, str] = {}

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(NAMES))
        if unknown or not self.spread > 0:
            raise ValueError(
                f"weights of features that do not exist: {unknown}" if unknown else "spread must be positive"
            )

    def relevance(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weighted sum, float64[n] of float64[n, features], added feature by feature: the same on every replica."""
        return native.weighted_rows(np.ascontiguousarray(values.T, np.float64), self._by_column)

    def ordered(
        self,
        values: NDArray[np.float64],
        added: NDArray[np.float64],
        slots: NDArray[np.int64],
        keys: NDArray[np.uint64],
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], bool]:
        """``(relevance float64[n], order int64[n], whether any two are equal)``: the relevance and what is ``added`` (float64[n])
        to it, and the positions by it, then by the key of their slot (``keys``: by slot)."""
        rows = np.ascontiguousarray(values.T, np.float64)
        return native.ordered_sums(rows, self._by_column, added, slots, keys)

    @cached_property
    def _by_column(self) -> NDArray[np.float64]:
        return np.array([self.weights.get(name, 0.0) for name in NAMES])

    def scores(self, relevance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores in (0, 1) with the order of relevance: float64[n] of float64[n]."""
        middle, spread, exp = self.middle, self.spread, math.exp
        beyond = (min(60.0, max(-60.0, (middle - value) / spread)) for value in relevance.tolist())
        return np.array([1.0 / (1.0 + exp(value)) for value in beyond])


@cache
def shipped() -> Model:
    """The model that comes with this package."""
    data = resources.files("dakera_cluster.retrieval").joinpath("shipped", WEIGHTS_FILE).read_bytes()
    return msgspec.json.decode(data, type=Model)
