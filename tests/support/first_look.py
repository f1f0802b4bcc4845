"""A question's first look over postings that a test writes down: the key of a term is its number."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dakera_cluster.native import candidates, postings, terms, windows

K1, NORMS = 1.5, (0.5, 0.25)


def lists_of(held: Sequence[Mapping[int, int]], lengths: np.ndarray, documents: int) -> postings.Lists:
    """``held``: of each term, how often a slot holds it."""
    keys = np.repeat(np.arange(len(held), dtype=np.uint64), [len(each) for each in held])
    slots = np.array([slot for each in held for slot in each], np.int32)
    counts = np.array([count for each in held for count in each.values()], np.uint16)
    homes = np.ones(len(lengths), np.uint8)
    return postings.Lists(postings.Segments([], []), homes, (keys, slots, counts), len(keys), lengths, documents, 0.0)


def asked_of(count: int, named: Collection[int] = (), rare_holders: float = 1e9) -> candidates.Asked:
    """The first ``count`` terms, some of them ``named``."""
    return candidates.Asked(list(range(count)), [term in named for term in range(count)], K1, NORMS, rare_holders)


def outlook(
    by_words: int = 0, by_vector: int = 0, by_name: int = 0, around: int = 0, reach: int = 4, budget: int = 30
) -> windows.Outlook:
    """With windows of six memories and 30 words on each side."""
    return windows.Outlook(by_words, by_vector, by_name, around, reach, budget, (6, 30), (1.2, 0.75))


def found_of(
    held: Sequence[Mapping[int, int]],
    lengths: np.ndarray,
    documents: int,
    named: Collection[int] = (),
    rare_holders: float = 1e9,
) -> terms.Found:
    """What the words of a question with all the terms say."""
    nobody = np.full(len(lengths), -1, np.int32)
    talk = windows.Talk(nobody, nobody, np.zeros(len(lengths), np.uint16), nobody, np.zeros(len(lengths), np.uint64))
    lists, asked = lists_of(held, lengths, documents), asked_of(len(held), named, rare_holders)
    return candidates.look(lists, talk, None, outlook(), asked, None, None, None, None)[0]


def sessions_of(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Who precedes and who follows whom (int32[size]) in sessions of ten, anybody with anybody."""
    order = rng.permutation(size)
    previous, following = np.full(size, -1, np.int32), np.full(size, -1, np.int32)
    for start in range(0, size, 10):
        run = order[start : start + 10]
        previous[run[1:]], following[run[:-1]] = run[:-1], run[1:]
    return previous, following
