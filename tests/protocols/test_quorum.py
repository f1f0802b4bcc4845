"""Every combination of answers for small replica sets, against the definition of each level."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.hlc import Stamp
from dakera_cluster.model.ids import NodeId
from dakera_cluster.model.rows import Kind, delete_document, merge, put_document
from dakera_cluster.model.shardmap import ShardState, majority
from dakera_cluster.protocols.quorum import (
    ReadDecision,
    ReadLevel,
    ReadOperation,
    WriteDecision,
    WriteLevel,
    WriteOperation,
)

A, B, C, D, E = (NodeId(name) for name in "abcde")
STATES = [
    ShardState(1, (A,)),
    ShardState(1, (A, B)),
    ShardState(1, (A, B, C)),
    ShardState(1, (A, B, C), (D,), (C,)),
    ShardState(1, (A,), (B, C)),
    ShardState(1, (A, B, C), (), (C,)),
    ShardState(1, (A, B, C), (D, E), (B, C)),
]
OLD = merge(Kind.DOCUMENT, None, put_document(Stamp(1, 1), {"v": 1}))
NEW = merge(Kind.DOCUMENT, None, put_document(Stamp(2, 1), {"v": 2}))
DEAD = merge(Kind.DOCUMENT, None, delete_document(Stamp(3, 1)))


def is_quorum(state: ShardState, nodes: set[NodeId]) -> bool:
    return all(len(nodes & set(group)) >= majority(len(group)) for group in state.quorum_sets)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("level", WriteLevel)
def test_the_outcome_of_a_write_is_what_its_level_promises_for_every_combination_of_answers(
    state: ShardState, level: WriteLevel
) -> None:
    wanted = {
        WriteLevel.ONE: lambda nodes: bool(nodes & set(state.replicas)),
        WriteLevel.QUORUM: lambda nodes: is_quorum(state, nodes),
        WriteLevel.ALL: lambda nodes: nodes == set(state.write_set),
    }[level]
    for answers in itertools.product(["ack", "stored", "refused", "unknown"], repeat=len(state.write_set)):
        operation = WriteOperation(state, level)
        given_answers = dict(zip(state.write_set, answers, strict=True))
        acked = {node for node, answer in given_answers.items() if answer == "ack"}
        seen: set[NodeId] = set()
        for node, answer in given_answers.items():
            if operation.decision is WriteDecision.PENDING:
                seen.add(node)
            getattr(operation, answer)(node)
        decision = operation.deadline()
        certain = all(given_answers[node] == "refused" for node in state.write_set)
        if wanted(acked):
            assert decision is WriteDecision.SUCCESS
        elif certain:
            assert decision in (WriteDecision.FAILED, WriteDecision.AMBIGUOUS)
            assert (decision is WriteDecision.FAILED) == (seen == set(state.write_set))
        else:
            assert decision is WriteDecision.AMBIGUOUS


@settings(max_examples=300)
@given(st.sampled_from(STATES), st.sampled_from(WriteLevel), st.data())
def test_a_decision_never_changes_and_failed_means_nobody_may_have_it(
    state: ShardState, level: WriteLevel, data: st.DataObject
) -> None:
    operation = WriteOperation(state, level)
    touched = False
    decisions = []
    for node in data.draw(st.permutations(state.write_set)):
        answer = data.draw(st.sampled_from(["ack", "stored", "refused", "unknown", "outdated"]))
        touched |= answer in ("ack", "stored", "unknown")
        decisions.append(getattr(operation, answer)(node))
    decisions.append(operation.deadline())
    final = next((decision for decision in decisions if decision is not WriteDecision.PENDING), decisions[-1])
    assert all(decision in (WriteDecision.PENDING, final) for decision in decisions)
    assert final is not WriteDecision.PENDING
    if final is WriteDecision.FAILED:
        assert not touched


def test_a_write_is_undecided_until_the_majority_and_decided_with_it() -> None:
    operation = WriteOperation(STATES[2])
    assert operation.ack(A) is WriteDecision.PENDING
    assert operation.ack(A) is WriteDecision.PENDING, "one replica has one vote"
    assert operation.ack(E) is WriteDecision.PENDING, "a stranger has none"
    assert operation.ack(C) is WriteDecision.SUCCESS


def test_a_moving_shard_needs_the_majority_of_both_sets() -> None:
    operation = WriteOperation(STATES[6])
    assert operation.ack(A) is WriteDecision.PENDING
    assert operation.ack(B) is WriteDecision.PENDING
    assert operation.ack(C) is WriteDecision.PENDING
    assert operation.ack(D) is WriteDecision.SUCCESS


def test_a_replica_without_a_vote_needs_no_hint_and_gives_no_vote() -> None:
    operation = WriteOperation(STATES[2])
    operation.stored(A)
    assert operation.ack(B) is WriteDecision.PENDING
    assert operation.refused(C) is WriteDecision.AMBIGUOUS
    assert operation.hints_due() == (C,)


def test_whoever_did_not_ack_is_due_a_hint() -> None:
    operation = WriteOperation(STATES[2])
    operation.ack(A)
    operation.unknown(B)
    assert operation.ack(C) is WriteDecision.SUCCESS
    assert operation.hints_due() == (B,)


def test_a_write_that_lost_to_a_younger_stamp_must_be_stamped_anew_whatever_else_was_acked() -> None:
    operation = WriteOperation(STATES[2])
    operation.ack(A)
    assert operation.ack(B, outrun_by=Stamp(9, 1)) is WriteDecision.RESTAMP
    assert operation.outrun_by == Stamp(9, 1)
    assert operation.ack(C) is WriteDecision.RESTAMP


def test_an_outdated_map_is_fetched_anew_before_anything_is_said() -> None:
    operation = WriteOperation(STATES[2])
    operation.ack(A)
    assert operation.outdated(B) is WriteDecision.REFRESH


def read(state: ShardState, level: ReadLevel, **options: float) -> ReadOperation:
    return ReadOperation(state, Kind.DOCUMENT, level, **options)


def test_an_eventual_read_takes_the_first_body_and_believes_a_miss_only_when_everybody_was_asked() -> None:
    operation = read(STATES[2], ReadLevel.EVENTUAL)
    assert operation.answer(A, None) is ReadDecision.PENDING
    assert operation.failed(B) is ReadDecision.PENDING
    assert operation.answer(C, OLD) is ReadDecision.SUCCESS
    assert operation.merged == OLD
    assert operation.lagging() == (A,)
    operation = read(STATES[2], ReadLevel.EVENTUAL)
    for node in (A, B):
        operation.answer(node, None)
    assert operation.failed(C) is ReadDecision.SUCCESS
    assert operation.merged is None


def test_an_eventual_read_fails_only_when_nobody_answers() -> None:
    operation = read(STATES[2], ReadLevel.EVENTUAL)
    operation.failed(A)
    operation.failed(B)
    assert operation.failed(C) is ReadDecision.FAILED


def test_a_strong_read_merges_a_majority_and_writes_back_what_it_lacks_before_it_answers() -> None:
    operation = read(STATES[2], ReadLevel.STRONG)
    assert operation.answer(A, OLD) is ReadDecision.PENDING
    assert operation.answer(B, NEW) is ReadDecision.WRITE_BACK
    assert operation.merged == NEW
    assert operation.lagging() == (A,)
    assert operation.repaired(A, NEW) is ReadDecision.SUCCESS


def test_a_strong_read_whose_majority_agrees_answers_at_once() -> None:
    operation = read(STATES[2], ReadLevel.STRONG)
    operation.answer(A, NEW)
    assert operation.answer(C, NEW) is ReadDecision.SUCCESS
    operation = read(STATES[2], ReadLevel.STRONG)
    operation.answer(A, None)
    assert operation.answer(C, None) is ReadDecision.SUCCESS


def test_a_strong_read_finishes_with_a_third_answer_when_a_write_back_fails() -> None:
    operation = read(STATES[2], ReadLevel.STRONG)
    operation.answer(A, OLD)
    operation.answer(B, DEAD)
    assert operation.repair_failed(A) is ReadDecision.WRITE_BACK
    both = merge(Kind.DOCUMENT, OLD, DEAD)
    assert operation.answer(C, both) is ReadDecision.WRITE_BACK
    assert operation.lagging() == (B,)
    assert operation.repaired(B, both) is ReadDecision.SUCCESS
    assert operation.merged == both


def test_a_write_back_of_what_was_known_before_a_later_answer_does_not_count() -> None:
    operation = read(STATES[2], ReadLevel.STRONG)
    operation.answer(A, None)
    operation.answer(B, OLD)
    operation.answer(C, NEW)
    assert operation.repaired(A, OLD) is ReadDecision.WRITE_BACK
    assert operation.repaired(A, NEW) is ReadDecision.SUCCESS


def test_a_strong_read_without_a_majority_fails_and_one_that_meets_a_newer_map_starts_over() -> None:
    operation = read(STATES[2], ReadLevel.STRONG)
    operation.failed(A)
    assert operation.failed(B) is ReadDecision.FAILED
    operation = read(STATES[3], ReadLevel.STRONG)
    operation.answer(A, OLD)
    operation.answer(C, OLD)
    assert operation.outdated(D) is ReadDecision.REFRESH


def test_a_strong_read_of_a_moving_shard_hears_both_sets() -> None:
    operation = read(STATES[6], ReadLevel.STRONG)
    operation.answer(A, NEW)
    operation.answer(B, NEW)
    assert operation.answer(C, NEW) is ReadDecision.PENDING
    assert operation.answer(E, NEW) is ReadDecision.SUCCESS


def test_a_bounded_read_takes_a_fresh_enough_replica_and_else_a_majority() -> None:
    operation = read(STATES[2], ReadLevel.BOUNDED_STALENESS, max_staleness_ms=100)
    assert operation.answer(A, OLD, staleness_ms=101) is ReadDecision.PENDING
    assert operation.answer(B, OLD, staleness_ms=100) is ReadDecision.SUCCESS
    operation = read(STATES[2], ReadLevel.BOUNDED_STALENESS, max_staleness_ms=100)
    operation.answer(A, OLD)
    assert operation.answer(B, NEW) is ReadDecision.SUCCESS
    assert operation.merged == NEW


@settings(max_examples=300)
@given(st.sampled_from(STATES), st.data())
def test_a_strong_read_sees_every_acknowledged_write(state: ShardState, data: st.DataObject) -> None:
    write = WriteOperation(state)
    stored: dict[NodeId, bytes] = dict.fromkeys(state.write_set, OLD)
    for node in data.draw(st.permutations(state.write_set)):
        answer = data.draw(st.sampled_from(["ack", "ack", "refused", "unknown"]))
        if answer == "ack":
            stored[node] = NEW
        getattr(write, answer)(node)
    operation = read(state, ReadLevel.STRONG)
    for node in data.draw(st.permutations(state.write_set)):
        if data.draw(st.booleans()):
            operation.answer(node, stored[node])
        else:
            operation.failed(node)
        for lagging in operation.lagging() if operation.decision is ReadDecision.WRITE_BACK else ():
            operation.repaired(lagging, operation.merged)
    if write.decision is WriteDecision.SUCCESS and operation.decision is ReadDecision.SUCCESS:
        assert operation.merged == NEW
