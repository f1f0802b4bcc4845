"""The precedence of claims: the whole table, and the laws that make beliefs converge."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.protocols.members import (
    ALIVE,
    DEAD,
    LEFT,
    SUSPECT,
    Address,
    Member,
    Membership,
    NodeState,
    SelfVerdict,
    Update,
    Verdict,
    judge,
    judge_self,
)

HERE, THERE = Address("10.0.0.1", 7946), Address("10.0.0.2", 7946)
X = NodeId("x")
NO, A, C, D, K, F = (
    Verdict.IGNORE,
    Verdict.ADOPT,
    Verdict.CONFIRM,
    Verdict.DOUBT,
    Verdict.CONDEMN,
    Verdict.CONFLICT,
)


def held(state: NodeState, boot: int = 5, incarnation: int = 5) -> Member:
    return Member(X, BootId(boot), incarnation, state, HERE, {})


def news(state: NodeState, boot: int = 5, incarnation: int = 5, addr: Address | None = None) -> Update:
    return Update(X, BootId(boot), incarnation, state, NodeId("teller"), addr, None if addr is None else {})


# One row per held state; columns: alive, suspect, dead, left. The first table is for the same incarnation.
SAME = {
    ALIVE: (NO, A, D, A),
    SUSPECT: (NO, C, K, A),
    DEAD: (NO, NO, NO, A),
    LEFT: (NO, NO, NO, NO),
}
NEWER = {
    ALIVE: (A, A, D, A),
    SUSPECT: (A, A, D, A),
    DEAD: (A, A, A, A),
    LEFT: (A, A, A, A),
}
STATES = list(NodeState)
CELLS = list(itertools.product(STATES, range(4)))


@pytest.mark.parametrize(("state", "column"), CELLS)
def test_claims_about_the_same_incarnation(state: NodeState, column: int) -> None:
    assert judge(held(state), news(STATES[column], addr=HERE), True) is SAME[state][column]


@pytest.mark.parametrize(("state", "column"), CELLS)
def test_claims_about_a_newer_incarnation(state: NodeState, column: int) -> None:
    assert judge(held(state), news(STATES[column], incarnation=6), True) is NEWER[state][column]


@pytest.mark.parametrize(("state", "column"), CELLS)
def test_claims_about_a_newer_boot_win_whatever_their_incarnation(state: NodeState, column: int) -> None:
    assert judge(held(state), news(STATES[column], boot=6, incarnation=0, addr=THERE), True) is NEWER[state][column]


@pytest.mark.parametrize(("state", "column"), CELLS)
@pytest.mark.parametrize(("boot", "incarnation"), [(5, 4), (4, 5), (4, 99)])
def test_old_claims_are_ignored(state: NodeState, column: int, boot: int, incarnation: int) -> None:
    for addr in (None, THERE):
        assert judge(held(state), news(STATES[column], boot, incarnation, addr), True) is NO


@pytest.mark.parametrize(("state", "column"), CELLS)
def test_plain_swim_adopts_deaths_instead_of_doubting_them(state: NodeState, column: int) -> None:
    trusting = {D: A, K: A}
    same, newer = SAME[state][column], NEWER[state][column]
    assert judge(held(state), news(STATES[column], addr=HERE), False) is trusting.get(same, same)
    assert judge(held(state), news(STATES[column], incarnation=6), False) is trusting.get(newer, newer)


@pytest.mark.parametrize("claim", STATES)
def test_an_unknown_member_is_taken_up_only_with_an_address(claim: NodeState) -> None:
    assert judge(None, news(claim), True) is NO
    assert judge(None, news(claim, addr=HERE), True) is A


@pytest.mark.parametrize("claim", [SUSPECT, DEAD])
def test_an_accusation_of_an_unknown_later_life_waits_for_that_life_to_be_known(claim: NodeState) -> None:
    assert judge(held(ALIVE), news(claim, boot=6), True) is NO


@pytest.mark.parametrize("state", [ALIVE, SUSPECT])
def test_one_incarnation_at_two_addresses_is_a_conflict(state: NodeState) -> None:
    assert judge(held(state), news(ALIVE, addr=THERE), True) is F


@pytest.mark.parametrize(
    ("claim", "boot", "incarnation", "addr", "expected"),
    [
        (ALIVE, 5, 4, HERE, SelfVerdict.IGNORE),
        (ALIVE, 5, 5, HERE, SelfVerdict.IGNORE),
        (ALIVE, 5, 5, THERE, SelfVerdict.DUPLICATE),
        (ALIVE, 5, 6, HERE, SelfVerdict.DUPLICATE),
        (SUSPECT, 5, 4, None, SelfVerdict.REASSERT),
        (SUSPECT, 5, 5, None, SelfVerdict.REFUTE),
        (SUSPECT, 5, 6, None, SelfVerdict.REFUTE),
        (DEAD, 5, 4, None, SelfVerdict.REASSERT),
        (DEAD, 5, 5, None, SelfVerdict.REFUTE),
        (LEFT, 5, 5, None, SelfVerdict.REFUTE),
        (ALIVE, 4, 9, THERE, SelfVerdict.REASSERT),
        (DEAD, 4, 9, None, SelfVerdict.REASSERT),
        (ALIVE, 6, 0, HERE, SelfVerdict.SUPERSEDED),
        (DEAD, 6, 0, None, SelfVerdict.SUPERSEDED),
    ],
)
def test_claims_about_this_process(
    claim: NodeState, boot: int, incarnation: int, addr: Address | None, expected: SelfVerdict
) -> None:
    assert judge_self(held(ALIVE), news(claim, boot, incarnation, addr)) is expected


@pytest.mark.parametrize("claim", [SUSPECT, DEAD, LEFT])
def test_a_process_that_announced_its_leave_does_not_fight_for_its_life(claim: NodeState) -> None:
    assert judge_self(held(LEFT), news(claim)) is SelfVerdict.IGNORE


claims = st.builds(
    lambda state, boot, incarnation: news(state, boot, incarnation, HERE),
    st.sampled_from(STATES),
    st.integers(1, 3),
    st.integers(0, 3),
)


def believe(heard: list[Update]) -> tuple[int, int, int] | None:
    belief: Member | None = None
    for claim in heard:
        if judge(belief, claim, False) is A:
            belief = Member(X, claim.boot, claim.incarnation, claim.state, HERE, {})
    return None if belief is None else (belief.boot, belief.incarnation, int(belief.state))


@given(st.lists(claims, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_and_repetition_of_news_do_not_matter(heard: list[Update], rng) -> None:  # type: ignore[no-untyped-def]
    again = heard + heard[: len(heard) // 2]
    rng.shuffle(again)
    assert believe(again) == believe(heard) == max((c.boot, c.incarnation, int(c.state)) for c in heard)


def test_the_count_of_present_members_follows_every_change() -> None:
    table = Membership()
    for step, (name, state) in enumerate(
        [("a", ALIVE), ("b", SUSPECT), ("c", DEAD), ("a", DEAD), ("b", ALIVE), ("c", ALIVE), ("b", LEFT)]
    ):
        table.put(Member(NodeId(name), BootId(1), step, state, HERE, {}))
        assert table.present == sum(member.state.is_present for member in table)
    table.drop(NodeId("c"))
    table.drop(NodeId("nobody"))
    assert table.present == 0
    assert len(table) == 2
