"""What is told, how often, and in which order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.dissemination import Dissemination, Urgency, update_bytes
from dakera_cluster.protocols.members import ALIVE, SUSPECT, Address, NodeState, Update


def update(name: str, state: NodeState = SUSPECT, incarnation: int = 0) -> Update:
    addr = Address("10.0.0.1", 7946) if state is ALIVE else None
    return Update(NodeId(name), BootId(1), incarnation, state, NodeId("o"), addr)


def names(updates: list[Update]) -> list[str]:
    return [item.node for item in updates]


def test_an_update_is_told_as_often_as_the_limit_and_then_forgotten() -> None:
    queue = Dissemination()
    queue.add(update("a"), Urgency.ACCUSATION)
    assert [names(queue.take(1000, 4)) for _ in range(5)] == [["a"], ["a"], ["a"], ["a"], []]
    assert not queue.is_pending


def test_newer_news_of_a_member_replaces_older_and_starts_afresh() -> None:
    queue = Dissemination()
    queue.add(update("a", incarnation=1), Urgency.ACCUSATION)
    queue.take(1000, 3)
    queue.add(update("a", ALIVE, incarnation=2), Urgency.PRESENCE)
    told = [queue.take(1000, 3) for _ in range(4)]
    assert [[item.incarnation for item in packet] for packet in told] == [[2], [2], [2], []]


def test_fresh_news_goes_before_old_and_urgent_before_calm() -> None:
    queue = Dissemination()
    one = update_bytes(update("a"))
    queue.add(update("told"), Urgency.ACCUSATION)
    queue.take(1000, 9)
    queue.add(update("dead"), Urgency.DEATH)
    queue.add(update("join"), Urgency.PRESENCE)
    queue.add(update("mine"), Urgency.SELF)
    queue.add(update("susp"), Urgency.ACCUSATION)
    queue.add(update("late"), Urgency.ACCUSATION)
    order = [names(queue.take(one + 3, 9))[0] for _ in range(6)]
    assert order == ["mine", "late", "susp", "join", "dead", "mine"]


def test_what_does_not_fit_gives_way_to_what_does_and_is_not_counted_as_told() -> None:
    queue = Dissemination()
    queue.add(update("a" * 60), Urgency.SELF)
    queue.add(update("b"), Urgency.DEATH)
    small = update_bytes(update("b"))
    assert names(queue.take(small, 1)) == ["b"]
    assert names(queue.take(1000, 1)) == ["a" * 60]


def test_a_nudge_keeps_packets_going_without_updates() -> None:
    queue = Dissemination()
    queue.nudge(3)
    sent = 0
    while queue.is_pending:
        assert queue.take(1000, 4) == []
        sent += 1
    assert sent == 3


def test_clear_forgets_everything() -> None:
    queue = Dissemination()
    queue.add(update("a"), Urgency.SELF)
    queue.nudge(5)
    queue.clear()
    assert not queue.is_pending
    assert queue.take(1000, 4) == []
    queue.add(update("b"), Urgency.SELF)
    assert names(queue.take(1000, 4)) == ["b"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 9), st.sampled_from(list(Urgency))),
            st.tuples(st.just("take"), st.integers(0, 200), st.just(Urgency.SELF)),
            st.tuples(st.just("forget"), st.integers(0, 9), st.just(Urgency.SELF)),
        ),
        max_size=60,
    )
)
def test_no_update_is_told_too_often_and_no_packet_is_overfilled(steps: list[tuple[str, int, Urgency]]) -> None:
    queue, limit = Dissemination(), 3
    told: dict[str, int] = {}
    for kind, number, urgency in steps:
        if kind == "add":
            told[str(number)] = 0
            queue.add(update(str(number)), urgency)
        elif kind == "forget":
            queue.forget(NodeId(str(number)))
            told.pop(str(number), None)
        else:
            taken = queue.take(number, limit)
            assert sum(map(update_bytes, taken)) <= number
            for item in taken:
                told[item.node] += 1
                assert told[item.node] <= limit
    assert len(queue) == sum(count < limit for count in told.values())
