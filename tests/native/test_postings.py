import numpy as np
import pytest

from dakera_cluster.native import postings

HOME = 3
Tail = tuple[np.ndarray, np.ndarray, np.ndarray]


def segment(held: dict[int, list[tuple[int, int]]], kinds: tuple[type, type, type]) -> dict[str, np.ndarray]:
    """Key to (slot, count) pairs, in numbers of the given kinds."""
    ordered = sorted(held)
    flat = [pair for key in ordered for pair in held[key]]
    return {
        "keys": np.array(ordered, np.uint64),
        "starts": np.cumsum([0, *(len(held[key]) for key in ordered)]).astype(kinds[0]),
        "slots": np.array([slot for slot, _ in flat], kinds[1]),
        "frequencies": np.array([count for _, count in flat], kinds[2]),
    }


def tail_of(pairs: list[tuple[int, int, int]], room: int = 0) -> Tail:
    columns = list(zip(*pairs, strict=True)) if pairs else [(), (), ()]
    kinds = (np.uint64, np.int32, np.uint16)
    return tuple(np.append(np.array(c, k), np.zeros(room, k)) for c, k in zip(columns, kinds, strict=True))  # type: ignore[return-value]


def found(
    segments: list[dict[str, np.ndarray]], home: np.ndarray, tail: Tail, size: int, keys: list[int]
) -> list[list[tuple[int, int]]]:
    table = postings.Segments(range(HOME, HOME + len(segments)), segments)
    lists = postings.Lists(table, home, tail, size, np.zeros(len(home)), len(home), 0.0)
    slots, counts, ends = postings.of(lists, np.array(keys, np.uint64))
    assert len(ends) == len(keys)
    pairs = list(zip(slots.tolist(), counts.tolist(), strict=True))
    stops = ends.tolist()
    assert not stops or stops[-1] == len(pairs)
    return [pairs[first:last] for first, last in zip([0, *stops], stops, strict=False)]


@pytest.mark.parametrize(
    "kinds",
    [
        (np.uint8, np.uint8, np.uint8),
        (np.uint16, np.uint16, np.uint8),
        (np.uint32, np.uint32, np.uint8),
        (np.uint64, np.uint32, np.uint16),
    ],
)
def test_live_postings_come_segment_by_segment_then_from_the_tail(kinds: tuple[type, type, type]) -> None:
    rng = np.random.default_rng(1)
    home = rng.choice(np.array([0, 1, HOME, HOME + 1], np.uint8), 200)
    top = 2**64 - 1
    keys = [0, 7, 8, 9, 500, top]

    def held(seed: int) -> dict[int, list[tuple[int, int]]]:
        own = np.random.default_rng(seed)
        chosen = own.choice(np.array(keys, np.uint64), 4, replace=False).tolist()
        return {
            key: [(int(slot), int(own.integers(1, 200))) for slot in sorted(own.choice(200, 9, replace=False))]
            for key in chosen
        }

    parts = [held(2), held(3)]
    loose = [(keys[int(rng.integers(6))], int(rng.integers(-1, 200)), int(rng.integers(1, 300))) for _ in range(70)]
    expected = [
        [
            (slot, count)
            for number, part in enumerate(parts)
            for slot, count in part.get(key, [])
            if home[slot] == HOME + number
        ]
        + [(slot, count) for own, slot, count in loose if own == key and slot >= 0]
        for key in (*keys, 10)
    ]
    result = found([segment(part, kinds) for part in parts], home, tail_of(loose, room=40), len(loose), [*keys, 10])
    assert result == expected
    assert any(expected)
    assert result[-1] == []


def test_more_postings_than_there_is_room_for_at_first_are_all_found() -> None:
    many = 3 * postings.FIRST_ROOM
    pairs = [(slot, slot % 250 + 1) for slot in range(many)]
    one = segment({5: pairs, 6: pairs[:10]}, (np.uint32, np.uint32, np.uint8))
    assert found([one], np.full(many, HOME, np.uint8), tail_of([]), 0, [6, 5]) == [pairs[:10], pairs]


def test_nothing_is_found_in_nothing() -> None:
    empty = segment({}, (np.uint8, np.uint8, np.uint8))
    assert found([], np.zeros(0, np.uint8), tail_of([]), 0, [1, 2]) == [[], []]
    assert found([empty], np.zeros(3, np.uint8), tail_of([]), 0, [1]) == [[]]
    assert found([empty], np.zeros(3, np.uint8), tail_of([]), 0, []) == []
    # What lies in the tail's room for more is no posting.
    assert found([], np.zeros(3, np.uint8), tail_of([(4, 1, 2)], room=20), 1, [0, 4]) == [[], [(1, 2)]]


def test_slots_and_starts_beyond_the_arrays_are_passed_over() -> None:
    one = segment({5: [(2, 1), (9, 1)]}, (np.uint8, np.uint8, np.uint8))
    home = np.full(4, HOME, np.uint8)
    assert found([one], home, tail_of([]), 0, [5]) == [[(2, 1)]]
    assert found([one | {"starts": np.array([0, 200], np.uint8)}], home, tail_of([]), 0, [5]) == [[(2, 1)]]


def test_arrays_that_do_not_fit_are_refused() -> None:
    one = segment({5: [(2, 1)]}, (np.uint8, np.uint8, np.uint8))
    with pytest.raises(ValueError, match="do not fit"):
        postings.Segments([HOME], [one | {"starts": np.zeros(1, np.uint8)}])
    with pytest.raises(ValueError, match="do not fit"):
        postings.Segments([HOME], [one | {"frequencies": np.zeros(3, np.uint8)}])
    with pytest.raises(TypeError, match="unsigned"):
        postings.Segments([HOME], [one | {"slots": np.zeros(1, np.int8)}])
    table = postings.Segments([HOME], [one])
    with pytest.raises(ValueError, match="longer"):
        postings.Lists(table, np.zeros(3, np.uint8), tail_of([]), 1, np.zeros(3), 3, 0.0)
