from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.protocols.fence import WAITING_MAX, Admit, Fence, Persist, Refuse


def test_an_older_epoch_is_refused_and_told_the_highest() -> None:
    assert Fence(5).offer(4, 1) == [Refuse(1, 5)]


def test_the_known_epoch_is_admitted_without_touching_the_disk() -> None:
    assert Fence(5).offer(5, 1) == [Admit(1)]


def test_a_higher_epoch_is_durable_before_its_first_command_runs() -> None:
    fence = Fence(5)
    assert fence.offer(6, 1) == [Persist(6)]
    assert fence.offer(6, 2) == []
    assert fence.offer(5, 3) == [Refuse(3, 6)]
    assert fence.persisted(6) == [Admit(1), Admit(2)]
    assert fence.offer(6, 4) == [Admit(4)]


def test_a_command_overtaken_while_it_waited_is_refused() -> None:
    fence = Fence(5)
    fence.offer(6, 1)
    assert fence.offer(7, 2) == [Persist(7)]
    assert fence.persisted(6) == [Refuse(1, 7)]
    assert fence.persisted(7) == [Admit(2)]


def test_what_waits_is_bounded() -> None:
    fence = Fence()
    for ticket in range(WAITING_MAX):
        fence.offer(1, ticket)
    assert fence.offer(1, WAITING_MAX) == [Refuse(WAITING_MAX, 1)]
    assert len(fence.persisted(1)) == WAITING_MAX


@given(st.lists(st.one_of(st.integers(0, 6), st.just("sync"), st.just("crash")), max_size=60))
def test_admitted_epochs_never_go_back_even_over_crashes(steps: list[int | str]) -> None:
    disk, fence, to_sync = 0, Fence(), list[int]()
    epochs: dict[int, int] = {}
    admitted: list[int] = []
    for ticket, step in enumerate(steps):
        if step == "crash":
            fence, to_sync = Fence(disk), []
            continue
        if step == "sync":
            effects = []
            if to_sync:
                disk = to_sync.pop(0)
                effects = fence.persisted(disk)
        else:
            epochs[ticket] = int(step)
            effects = fence.offer(int(step), ticket)
        for effect in effects:
            if isinstance(effect, Persist):
                to_sync.append(effect.epoch)
            elif isinstance(effect, Admit):
                admitted.append(epochs[effect.ticket])
                assert epochs[effect.ticket] <= disk, "admitted before it was durable"
    assert admitted == sorted(admitted)
