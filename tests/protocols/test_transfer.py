from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dakera_cluster.model.ids import NodeId, ShardId
from dakera_cluster.model.shardmap import MemberState, ShardState, majority
from dakera_cluster.protocols.rebalance import (
    LiveNode,
    ReadyReport,
    RebalanceConfig,
    Situation,
    birth,
    plan,
    set_member_state,
)
from dakera_cluster.protocols.transfer import (
    AcceptLoss,
    Duty,
    Effect,
    FetchSnapshot,
    Holding,
    MapChanged,
    Mode,
    Persist,
    Repair,
    RepairDone,
    ReportReady,
    SnapshotChunk,
    SourceFailed,
    Stage,
    Tick,
    Transfer,
    TransferConfig,
    Wipe,
    Wiped,
    duty,
    repairs_needed,
    reporters,
    serves,
    votes,
)

A, B, C, D, E = (NodeId(name) for name in "abcde")
S = ShardId(4)
TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"
CONFIG = TransferConfig(retry_ms=10, report_ms=50)
STABLE = ShardState(7, (A, B, C))
MOVE = ShardState(8, (A, B, C), (D,), (C,))
SHRINK = ShardState(8, (A, B, C), (), (C,))


def record(stage: Stage, *, mode: Mode = Mode.JOIN, version: int = 8, cursor: bytes = b"") -> Holding:
    return Holding(S, version, mode, stage, cursor)


def join(holding: Holding | None = None) -> Transfer:
    return Transfer(S, MOVE, D, Mode.JOIN, config=CONFIG, holding=holding)


def test_a_join_wipes_streams_repairs_with_a_majority_and_reports() -> None:
    transfer = join()
    assert transfer.start(0) == [Persist(record(Stage.WIPING)), Wipe(S)]
    assert transfer.handle(Wiped(), 1) == [Persist(record(Stage.STREAMING)), FetchSnapshot(S, A, b"")]
    assert transfer.handle(SnapshotChunk(A, b"k"), 2) == [
        Persist(record(Stage.STREAMING, cursor=b"k")),
        FetchSnapshot(S, A, b"k"),
    ]
    assert transfer.handle(SnapshotChunk(A, None), 3) == [
        Persist(record(Stage.REPAIRING, cursor=b"k")),
        Repair(S, A, 8),
    ]
    assert transfer.handle(RepairDone(A, 8), 4) == [Repair(S, B, 8)]
    assert transfer.handle(RepairDone(B, 8), 5) == [
        Persist(record(Stage.READY, cursor=b"k")),
        ReportReady(S, 8),
    ]
    assert transfer.handle(Tick(), 54) == []
    assert transfer.handle(Tick(), 55) == [ReportReady(S, 8)]


@pytest.mark.parametrize("version", [7, 9])
def test_a_session_under_another_version_than_ours_does_not_count(version: int) -> None:
    transfer = join(record(Stage.REPAIRING))
    assert transfer.start(0) == [Repair(S, A, 8)]
    assert transfer.handle(RepairDone(A, version), 1) == []
    assert transfer.handle(Tick(), 11) == [Repair(S, B, 8)]
    transfer.handle(RepairDone(B, 8), 12)
    assert transfer.stage is Stage.REPAIRING


def test_a_failing_source_is_replaced_by_the_next_after_a_pause_and_streaming_goes_on_where_it_was() -> None:
    transfer = join(record(Stage.STREAMING, cursor=b"k"))
    assert transfer.start(0) == [FetchSnapshot(S, A, b"k")]
    assert transfer.handle(SourceFailed(A), 5) == []
    assert transfer.next_deadline_ms() == 15
    assert transfer.handle(Tick(), 15) == [FetchSnapshot(S, B, b"k")]


@pytest.mark.parametrize(
    ("holding", "first"),
    [
        (None, Wipe),
        (record(Stage.WIPING), Wipe),
        (record(Stage.STREAMING), FetchSnapshot),
        (record(Stage.REPAIRING), Repair),
        (record(Stage.READY), ReportReady),
        (record(Stage.READY, version=6), Wipe),
        (record(Stage.STREAMING, version=6), Wipe),
        (record(Stage.STREAMING, mode=Mode.REHYDRATE), Wipe),
    ],
)
def test_after_a_crash_a_join_goes_on_only_if_it_began_under_the_same_version(
    holding: Holding | None, first: type
) -> None:
    assert isinstance(join(holding).start(0)[-1], first)


def test_a_rehydration_goes_on_under_a_later_version() -> None:
    holding = record(Stage.STREAMING, mode=Mode.REHYDRATE, version=6, cursor=b"k")
    transfer = Transfer(S, STABLE, C, Mode.REHYDRATE, config=CONFIG, holding=holding)
    assert transfer.start(0) == [FetchSnapshot(S, A, b"k")]


def test_a_confirmation_wipes_and_streams_nothing_and_leaves_the_record_alone() -> None:
    transfer = Transfer(S, SHRINK, A, Mode.CONFIRM, config=CONFIG)
    assert transfer.start(0) == [Repair(S, B, 8)]
    assert transfer.handle(RepairDone(B, 8), 1) == [ReportReady(S, 8)]


def test_a_changed_map_ends_the_transfer_for_good() -> None:
    transfer = join()
    transfer.start(0)
    assert transfer.handle(MapChanged(MOVE), 1) == []
    assert transfer.stage is Stage.WIPING
    transfer.handle(MapChanged(STABLE), 1)
    assert transfer.handle(Wiped(), 2) == []
    assert transfer.next_deadline_ms() is None


def test_a_lone_replica_that_lost_its_disk_and_an_operator_who_accepts_a_loss_are_not_stuck() -> None:
    lone = Transfer(S, ShardState(2, (A,)), A, Mode.REHYDRATE, config=CONFIG)
    lone.start(0)
    assert lone.handle(Wiped(), 1)[-1] == ReportReady(S, 2)
    transfer = join(record(Stage.STREAMING))
    transfer.start(0)
    assert transfer.handle(AcceptLoss(), 1)[-1] == ReportReady(S, 8)


@pytest.mark.parametrize(
    ("holding", "state", "node", "same_disk", "expected"),
    [
        (None, STABLE, D, True, Duty.NOTHING),
        (record(Stage.READY), STABLE, D, True, Duty.DROP),
        (record(Stage.STREAMING), STABLE, D, True, Duty.DROP),
        (None, MOVE, D, True, Duty.JOIN),
        (record(Stage.READY), MOVE, D, True, Duty.JOIN),
        (None, ShardState(1, (A,)), A, True, Duty.BIRTH),
        (None, ShardState(1, (A,)), A, False, Duty.REHYDRATE),
        (None, STABLE, A, True, Duty.REHYDRATE),
        (record(Stage.STREAMING), STABLE, A, True, Duty.REHYDRATE),
        (record(Stage.READY), STABLE, A, False, Duty.SERVE),
        (record(Stage.READY), MOVE, A, True, Duty.SERVE),
        (record(Stage.READY), MOVE, C, True, Duty.SERVE),
        (record(Stage.READY), SHRINK, A, True, Duty.CONFIRM),
        (record(Stage.READY), SHRINK, C, True, Duty.SERVE),
    ],
)
def test_what_a_node_has_to_do_about_a_shard(
    holding: Holding | None, state: ShardState, node: NodeId, same_disk: bool, expected: Duty
) -> None:
    assert duty(holding, state, node, same_disk=same_disk) is expected


@pytest.mark.parametrize(
    ("holding", "node", "may_vote", "may_serve"),
    [
        (None, A, False, False),
        (record(Stage.READY, version=3), A, True, True),
        (record(Stage.REPAIRING, mode=Mode.REHYDRATE), A, False, False),
        (record(Stage.READY, version=3), C, True, True),
        (record(Stage.WIPING), D, False, False),
        (record(Stage.STREAMING), D, True, False),
        (record(Stage.READY), D, True, False),
        (record(Stage.STREAMING, version=3), D, False, False),
        (record(Stage.READY), E, False, False),
    ],
)
def test_who_votes_and_who_serves(holding: Holding | None, node: NodeId, may_vote: bool, may_serve: bool) -> None:
    assert votes(holding, MOVE, node) is may_vote
    assert serves(holding, MOVE, node) is may_serve


def test_joining_nodes_report_and_where_none_joins_those_that_stay() -> None:
    assert reporters(MOVE) == (D,)
    assert reporters(SHRINK) == (A, B)
    assert reporters(STABLE) == ()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("mode", Mode)
def test_the_sources_of_a_repair_meet_every_majority_that_may_have_acknowledged_a_write(size: int, mode: Mode) -> None:
    old = tuple(NodeId(f"n{i}") for i in range(size))
    me = E if mode is Mode.JOIN else old[0]
    state = ShardState(2, old, (E,) if mode is Mode.JOIN else (), ())
    others = [node for node in old if node != me]
    needed = repairs_needed(mode, state, me)
    if mode is Mode.REHYDRATE and size == 1:
        assert needed == 0
        return
    for sources in itertools.combinations(others, needed):
        heard = {*sources, me} if mode is Mode.CONFIRM else set(sources)
        for quorum in itertools.combinations(old, majority(size)):
            assert heard & (set(quorum) - ({me} if mode is Mode.REHYDRATE else set()))


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["chunk", "last", "done", "old", "fail", "wiped", "tick", "crash"]), st.integers(0, 30)
        ),
        max_size=40,
    )
)
def test_ready_comes_only_after_the_wipe_a_whole_stream_and_two_good_sessions_since_the_last_crash(
    steps: list[tuple[str, int]],
) -> None:
    disk: Holding | None = None
    wiped = streamed = False
    sessions: set[NodeId] = set()
    now, ask = 0.0, None
    transfer = join()
    effects = transfer.start(now)
    for action, wait in steps:
        for effect in effects:
            if isinstance(effect, Persist):
                disk = effect.holding
            elif isinstance(effect, ReportReady):
                assert wiped
                assert streamed
                assert len(sessions) >= 2
                assert disk is not None
                assert disk.stage is Stage.READY
            else:
                ask = effect
        now += wait
        effects = []
        if action == "crash":
            if disk is None or disk.stage is not Stage.READY:
                sessions = set()
            transfer = join(disk)
            effects = transfer.start(now)
        elif action == "tick":
            effects = transfer.handle(Tick(), now)
        elif isinstance(ask, Wipe) and action == "wiped":
            wiped, ask = True, None
            effects = transfer.handle(Wiped(), now)
        elif isinstance(ask, FetchSnapshot) and action in ("chunk", "last", "fail"):
            source, ask = ask.source, None
            if action == "fail":
                effects = transfer.handle(SourceFailed(source), now)
            else:
                streamed |= action == "last"
                effects = transfer.handle(SnapshotChunk(source, b"k" if action == "chunk" else None), now)
        elif isinstance(ask, Repair) and action in ("done", "old", "fail"):
            source, ask = ask.source, None
            if action == "done":
                sessions.add(source)
            event = SourceFailed(source) if action == "fail" else RepairDone(source, 8 if action == "done" else 7)
            effects = transfer.handle(event, now)
    if disk is not None and disk.stage is Stage.READY:
        assert len(sessions) >= 2


def test_a_shard_moves_as_in_the_golden_story() -> None:
    """Leader and joining node together: plan, adopt, transfer through a failing source and a crash, report, finalise."""
    lines: list[str] = []
    live = {node: LiveNode(disk=1) for node in (A, B, C)}
    shardmap = birth("c", 1, live, 1, 3)
    live[D] = LiveNode(disk=1)
    shardmap = set_member_state(shardmap, 1, C, MemberState.DRAINING)
    ready: set[ReadyReport] = set()
    config = RebalanceConfig()

    def lead(epoch: int) -> None:
        nonlocal shardmap
        found = plan(shardmap, epoch, Situation(live, {}, ready), config)
        if found.next_map is None:
            lines.append(f"leader {epoch}: nothing to do")
            return
        shardmap = found.next_map
        state = shardmap.shards[0]
        steps = ",".join(step.value for step in found.steps.values()) or "stamped"
        joint = f" joining={','.join(state.joining) or '-'} leaving={','.join(state.leaving) or '-'}"
        lines.append(f"leader {epoch}: {steps} v{state.version} replicas={','.join(sorted(state.replicas))}{joint}")

    disk: Holding | None = None

    def tell(effects: list[Effect]) -> None:
        nonlocal disk
        for effect in effects:
            match effect:
                case Persist(holding):
                    disk = holding
                    lines.append(f"  d: persist {holding.stage.name} cursor={holding.cursor.decode() or '-'}")
                case Wipe():
                    lines.append("  d: wipe")
                case FetchSnapshot(_, source, cursor):
                    lines.append(f"  d: fetch after {cursor.decode() or '-'} from {source}")
                case Repair(_, source, version):
                    lines.append(f"  d: repair with {source} under v{version}")
                case ReportReady(_, version):
                    ready.add(ReadyReport(ShardId(0), version, D))
                    lines.append(f"  d: ready under v{version}")

    def begin(now: float) -> Transfer:
        state = shardmap.shards[0]
        lines.append(f"  d: {duty(disk, state, D, same_disk=True).value}")
        moving = Transfer(ShardId(0), state, D, Mode.JOIN, config=CONFIG, holding=disk)
        tell(moving.start(now))
        return moving

    lead(1)
    lead(1)
    moving = begin(0)
    source = shardmap.shards[0].replicas
    for at, event in enumerate([Wiped(), SnapshotChunk(source[0], b"k50"), SourceFailed(source[0])], start=1):
        tell(moving.handle(event, at))
    lines.append("  d: crash; the leader dies as well")
    moving = begin(100)
    lead(2)
    for at, event in enumerate(
        [
            SnapshotChunk(source[0], None),
            RepairDone(source[0], 1),
            Tick(),
            RepairDone(source[1], 2),
            SourceFailed(source[0]),
            Tick(),
            RepairDone(source[2], 2),
        ],
        start=1,
    ):
        tell(moving.handle(event, 100 + 20 * at))
    lead(2)
    lead(2)
    lines.append(
        f"  c: {duty(Holding(ShardId(0), 1, Mode.JOIN, Stage.READY), shardmap.shards[0], C, same_disk=True).value}"
    )
    assert "\n".join(lines) + "\n" == (TRANSCRIPTS / "shard_move.txt").read_text()
