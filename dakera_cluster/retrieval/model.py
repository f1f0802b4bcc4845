"""The ranking model: one weight a feature, read from shipped/weights.json, with where they come from.

The weights are fitted by ops/fit_recall.py over questions of all kinds together and checked with each kind left out; they
are data, so a better fit needs no release of code. Called by the engine and the fit.
"""

from __future__ import annotations

from functools import cache, cached_property
from importlib import resources

import msgspec
import numpy as np
from numpy.typing import NDArray

from dakera_cluster.native.order import weighted_rows
from dakera_cluster.native.pool import Weights
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
        return weighted_rows(np.ascontiguousarray(values.T, np.float64), self._by_column)

    def scores(self, relevance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores in (0, 1) with the order of relevance: float64[n] of float64[n]."""
        return self.native.scores(relevance)

    @cached_property
    def native(self) -> Weights:
        """The same for kernels."""
        return Weights(self._by_column, self.middle, self.spread)

    @cached_property
    def _by_column(self) -> NDArray[np.float64]:
        return np.array([self.weights.get(name, 0.0) for name in NAMES])


@cache
def shipped() -> Model:
    """The model that comes with this package."""
    data = resources.files("dakera_cluster.retrieval").joinpath("shipped", WEIGHTS_FILE).read_bytes()
    return msgspec.json.decode(data, type=Model)
