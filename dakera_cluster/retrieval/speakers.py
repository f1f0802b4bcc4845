"""The names of those who speak in a namespace, indexed by word: which of them does a question name, and how clearly.

Built from the live speakers alone, so replicas agree. Kept by evidence.py until somebody new speaks or somebody's last memory
goes; read by features.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[a-z0-9]+")


class SpeakerNames:
    """See the module. A part that many speakers share (a title, a family's name) tells little of who is meant."""

    def __init__(self, names: Mapping[int, str]) -> None:
        parts = {code: sorted(set(_WORD.findall(name))) for code, name in names.items()}
        self._bearers: dict[str, list[int]] = {}
        for code, words in parts.items():
            for word in words:
                self._bearers.setdefault(word, []).append(code)
        self._totals = np.zeros(1 + max(parts, default=-1))
        for code, words in parts.items():
            self._totals[code] = sum(1 / len(self._bearers[word]) for word in words)

    @property
    def is_empty(self) -> bool:
        """Whether nobody is known by name."""
        return not self._bearers

    def shares(self, words: Iterable[str]) -> NDArray[np.float64]:
        """By code: how much of each speaker's name stands among ``words`` (lower case), 0 to 1. The last cell, of nobody, is 0."""
        shares = np.zeros(len(self._totals) + 1)
        for word in sorted(set(words)):
            for code in self._bearers.get(word, ()):
                shares[code] += 1 / len(self._bearers[word])
        named = np.flatnonzero(shares)
        shares[named] /= self._totals[named]
        return shares
