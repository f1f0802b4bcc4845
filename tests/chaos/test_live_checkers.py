"""Every checker on handmade histories: it must be silent on good ones and must speak on bad ones."""

from __future__ import annotations

from typing import Any

import pytest

from chaos.live.checkers import (
    Violation,
    check_copies,
    check_forgets,
    check_history,
    check_leaders,
    check_lists,
)
from chaos.live.history import Attempt, Kind, Operation, Outcome, Seen, content_of, importance_of
from chaos.live.watch import Sighting

KEY = "agent-0/m"


class Story:
    """Operations of one memory; each takes from ``at`` to ``at + 10`` unless told otherwise."""

    def __init__(self) -> None:
        self.history: list[Operation] = []

    def op(self, kind: Kind, at: float, outcome: Outcome = Outcome.OK, **more: Any) -> int:
        number = len(self.history) + 1
        attempts = more.pop("attempts", None) or [Attempt("node-1", at, more.pop("until", at + 10), outcome)]
        more.setdefault("found", kind is Kind.FORGET or more.get("seen") is not None)
        key = more.pop("key", KEY)
        self.history.append(Operation(number, kind, key, 0, attempts, outcome, **more))
        return number

    def store(self, at: float, outcome: Outcome = Outcome.OK, **more: Any) -> int:
        return self.op(Kind.STORE, at, outcome, **more)

    def forget(self, at: float, outcome: Outcome = Outcome.OK, **more: Any) -> int:
        return self.op(Kind.FORGET, at, outcome, **more)

    def read(self, at: float, base: int | None, content: int = 0, importance: int = 0, **more: Any) -> int:
        """A strong read; fields that are not named are the base's."""
        seen = None if base is None else Seen(base, content or base, importance or base)
        return self.op(more.pop("kind", Kind.STRONG_GET), at, seen=seen, **more)

    def promises(self) -> list[str]:
        return [violation.promise for violation in check_history(self.history)]


def test_a_plain_history_is_good() -> None:
    story = Story()
    one = story.store(0)
    story.read(20, one)
    change = story.op(Kind.CONTENT, 40)
    story.read(60, one, content=change)
    weight = story.op(Kind.IMPORTANCE, 80)
    story.read(100, one, content=change, importance=weight)
    story.forget(120)
    story.read(140, None)
    again = story.store(160)
    story.read(180, again)
    assert story.promises() == []


def test_an_acknowledged_store_that_is_gone_is_a_lost_write() -> None:
    story = Story()
    story.store(0)
    story.read(20, None)
    assert story.promises() == ["lost write"]


def test_an_older_value_than_the_acknowledged_one_is_a_lost_write() -> None:
    story = Story()
    old = story.store(0)
    story.store(20)
    story.read(40, old)
    assert story.promises() == ["lost write"]


@pytest.mark.parametrize("kind", [Kind.CONTENT, Kind.IMPORTANCE])
def test_an_acknowledged_change_of_one_field_that_does_not_show_is_a_lost_write(kind: Kind) -> None:
    story = Story()
    base = story.store(0)
    story.op(kind, 20)
    story.read(40, base)
    assert story.promises() == ["lost write"]


def test_a_change_of_one_field_does_not_ask_for_the_other() -> None:
    story = Story()
    base = story.store(0)
    weight = story.op(Kind.IMPORTANCE, 20)
    change = story.op(Kind.CONTENT, 40)
    story.read(60, base, content=change, importance=weight)
    assert story.promises() == []


def test_a_deleted_memory_that_shows_is_a_resurrection() -> None:
    story = Story()
    base = story.store(0)
    story.forget(20)
    story.read(40, base)
    assert story.promises() == ["resurrection"]


def test_a_delete_that_deleted_nothing_promises_nothing() -> None:
    story = Story()
    base = story.store(0)
    story.forget(20, found=False)
    story.read(40, base)
    assert story.promises() == []


def test_concurrent_writes_may_end_either_way() -> None:
    for winner in (1, 2):
        story = Story()
        story.store(0, until=30)
        story.store(10, until=40)
        story.read(50, winner)
        assert story.promises() == []


def test_an_unsure_write_may_show_or_not() -> None:
    for outcome in (Outcome.AMBIGUOUS, Outcome.TIMEOUT):
        for shown in (1, 2):
            story = Story()
            story.store(0)
            story.store(20, outcome)
            story.read(40, shown)
            assert story.promises() == []


def test_an_unsure_write_may_happen_after_later_ones() -> None:
    story = Story()
    unsure = story.store(0, Outcome.TIMEOUT)
    story.store(20)
    story.read(40, unsure)
    assert story.promises() == []


def test_an_acknowledged_write_with_an_unsure_attempt_is_settled_and_may_happen_again() -> None:
    attempts = [Attempt("node-1", 0, 5, Outcome.TIMEOUT), Attempt("node-2", 5, 10, Outcome.OK)]
    story = Story()
    twice = story.store(0, attempts=attempts)
    story.forget(20)
    story.read(40, twice)
    assert story.promises() == []

    lost = Story()
    lost.store(0, attempts=attempts)
    lost.read(40, None)
    assert lost.promises() == ["lost write"]


def test_an_unsure_delete_excuses_an_absence() -> None:
    story = Story()
    story.store(0)
    story.forget(20, Outcome.AMBIGUOUS)
    story.read(40, None)
    assert story.promises() == []


def test_a_retried_delete_that_found_nothing_may_have_deleted_at_first() -> None:
    attempts = [Attempt("node-1", 20, 25, Outcome.AMBIGUOUS), Attempt("node-2", 25, 30, Outcome.OK)]
    for shown in (None, 1):
        story = Story()
        story.store(0)
        story.forget(20, found=False, attempts=attempts)
        story.read(40, shown)
        assert story.promises() == []


def test_an_old_delete_does_not_excuse_an_absence() -> None:
    story = Story()
    story.store(0)
    story.forget(20)
    story.store(40)
    story.read(60, None)
    assert story.promises() == ["lost write"]


def test_what_a_majority_has_shown_once_is_settled() -> None:
    story = Story()
    old = story.store(0)
    unsure = story.store(20, Outcome.AMBIGUOUS)
    story.read(40, unsure)
    story.read(60, old)
    assert story.promises() == ["lost write"]


def test_an_eventual_read_may_be_late_but_may_not_invent() -> None:
    story = Story()
    old = story.store(0)
    story.store(20)
    story.read(40, old, kind=Kind.EVENTUAL_GET)
    assert story.promises() == []
    story.read(60, 99, kind=Kind.EVENTUAL_GET)
    assert story.promises() == ["origin"]


def test_a_value_of_another_kind_of_write_is_invented() -> None:
    story = Story()
    base = story.store(0)
    weight = story.op(Kind.IMPORTANCE, 20)
    story.read(40, base, content=weight)
    assert story.promises() == ["origin"]


def test_a_value_from_the_future_is_invented() -> None:
    story = Story()
    story.read(0, 2)
    story.store(50)
    assert story.promises() == ["origin"]


def test_a_write_that_certainly_failed_must_not_show() -> None:
    story = Story()
    failed = story.store(0, Outcome.FAILED)
    story.read(20, failed, kind=Kind.EVENTUAL_GET)
    assert story.promises() == ["failed write seen"]


def test_a_field_older_than_the_store_beneath_it_is_torn() -> None:
    story = Story()
    story.store(0)
    change = story.op(Kind.CONTENT, 20)
    base = story.store(40)
    story.read(60, base, content=change, kind=Kind.EVENTUAL_GET)
    assert story.promises() == ["torn memory"]


def test_a_recall_must_not_invent_either() -> None:
    story = Story()
    base = story.store(0)
    story.op(Kind.RECALL, 20, others={KEY: Seen(base, base, base)}, key="agent-0/other")
    assert story.promises() == []
    story.op(Kind.RECALL, 40, others={KEY: Seen(base, 77, base)}, key="agent-0/other")
    assert story.promises() == ["origin"]


def test_a_forget_that_misses_an_acknowledged_memory_is_found() -> None:
    story = Story()
    story.store(0)
    story.forget(20, found=False)
    assert [v.promise for v in check_forgets(story.history)] == ["missed forget"]


def test_a_forget_may_find_nothing_after_another_forget() -> None:
    story = Story()
    story.store(0)
    story.forget(20)
    story.forget(40, found=False)
    assert check_forgets(story.history) == []


def sight(node: str, at: float, leader: str | None, epoch: int, **more: Any) -> Sighting:
    order = more.pop("order", (epoch, 1))
    return Sighting(
        node=node,
        boot=more.pop("boot", 1),
        start_ms=at,
        end_ms=at + 5,
        leader=leader,
        epoch=epoch,
        acting=more.pop("acting", False),
        map_epoch=order[0],
        map_version=order[1],
        states={},
    )


def promises(violations: list[Violation]) -> list[str]:
    return [violation.promise for violation in violations]


def test_a_succession_is_good() -> None:
    seen = [
        sight("node-1", 0, "node-1", 1, acting=True),
        sight("node-2", 10, "node-1", 1),
        sight("node-2", 20, None, 1),
        sight("node-2", 30, "node-2", 2, acting=True),
        sight("node-1", 40, "node-2", 2, boot=2),
    ]
    assert check_leaders(seen) == []


def test_two_holders_of_an_epoch_are_found() -> None:
    assert promises(check_leaders([sight("node-1", 0, "node-1", 3), sight("node-2", 10, "node-2", 3)])) == [
        "one leader"
    ]


def test_an_old_leader_that_acts_after_the_new_one_is_found() -> None:
    seen = [
        sight("node-1", 0, "node-1", 1, acting=True),
        sight("node-2", 10, "node-2", 2, acting=True),
        sight("node-1", 20, "node-1", 1, acting=True),
    ]
    assert promises(check_leaders(seen)) == ["one leader"]


def test_an_old_leader_that_only_says_what_it_knew_is_no_violation() -> None:
    seen = [sight("node-2", 10, "node-2", 2, acting=True), sight("node-1", 20, "node-1", 1)]
    assert check_leaders(seen) == []


@pytest.mark.parametrize("order", [(2, 4), (1, 9)])
def test_a_map_that_goes_back_is_found_even_over_a_restart(order: tuple[int, int]) -> None:
    seen = [
        sight("node-1", 0, "node-1", 2, order=(2, 5)),
        sight("node-1", 10, "node-1", 2, order=order, boot=2),
    ]
    assert promises(check_leaders(seen)) == ["epochs go up"]


def test_a_lease_epoch_that_goes_back_is_found() -> None:
    seen = [sight("node-1", 0, "node-1", 4, order=(1, 1)), sight("node-1", 10, "node-2", 3, order=(1, 1))]
    assert "epochs go up" in promises(check_leaders(seen))


def memory(**more: Any) -> dict[str, Any]:
    return {"content": "a", "importance": 0.5, **more}


def test_copies_that_are_the_same_are_good() -> None:
    copies = {"agent-0": {node: {"m": memory()} for node in ("node-1", "node-2", "node-3")}}
    assert check_copies(copies, 3, 0.0) == []


@pytest.mark.parametrize("other", [{}, {"m": memory(content="b")}, {"m": memory(), "n": memory()}])
def test_copies_that_differ_are_found(other: dict[str, Any]) -> None:
    copies = {"agent-0": {"node-1": {"m": memory()}, "node-2": {"m": memory()}, "node-3": other}}
    found = check_copies(copies, 3, 0.0)
    assert promises(found) == ["replicas"]
    assert "node-3" in found[0].text


def test_a_missing_copy_is_found() -> None:
    copies = {"agent-0": {"node-1": {"m": memory()}, "node-2": {"m": memory()}}}
    assert promises(check_copies(copies, 3, 0.0)) == ["replicas"]
    assert check_copies(copies, 2, 0.0) == []


def listing(number: int) -> dict[str, Any]:
    return {"content": content_of(number, "a"), "importance": importance_of(number), "metadata": {"op": number}}


def test_lists_that_show_what_a_majority_reads_are_good() -> None:
    story = Story()
    story.read(0, 7)
    story.read(20, None, key="agent-0/gone")
    copies = {"agent-0": {node: {"m": listing(7)} for node in ("node-1", "node-2")}}
    assert check_lists(story.history, copies, 0.0) == []


@pytest.mark.parametrize("listed", [{}, {"m": listing(6)}, {"m": listing(7), "gone": listing(8)}])
def test_a_list_that_all_nodes_share_and_no_majority_reads_is_found(listed: dict[str, Any]) -> None:
    story = Story()
    story.read(0, 7)
    story.read(20, None, key="agent-0/gone")
    copies = {"agent-0": dict.fromkeys(("node-1", "node-2"), listed)}
    assert promises(check_lists(story.history, copies, 0.0)) == ["lists", "lists"]
