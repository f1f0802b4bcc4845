"""The row store is a sorted map per column family: in any order of operations, over reopening, and after any crash."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dakera_cluster.storage.batches import WriteBatch
from dakera_cluster.storage.rows import ReadView, RowStore
from tests.support.powerloss import lose_power, make_powerloss_env
from tests.support.row_history import FAMILIES, State, apply, batch_of, read_state
from tests.support.row_writer import SMALL_BUFFERS

BYTES = st.binary(max_size=3)
FAMILY = st.sampled_from(FAMILIES)
OPERATION = st.one_of(
    st.tuples(st.just("put"), FAMILY, BYTES, st.binary(max_size=30)),
    st.tuples(st.just("delete"), FAMILY, BYTES, st.just(b"")),
    st.tuples(st.just("delete_range"), FAMILY, BYTES, BYTES),
)


class RowStoreMachine(RuleBasedStateMachine):
    """Compares a store with dicts after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="rows-model-"))
        self.store = self.open()
        self.model: State = {family: {} for family in FAMILIES}

    def open(self) -> RowStore:
        return RowStore.open(self.directory / "db", FAMILIES, settings=SMALL_BUFFERS)

    @rule(operations=st.lists(OPERATION, max_size=6))
    def commit(self, operations: list[tuple[str, str, bytes, bytes]]) -> None:
        batch = WriteBatch()
        for kind, family, key, value in operations:
            if kind == "put":
                batch.put(family, key, value)
            elif kind == "delete":
                batch.delete(family, key)
            elif key < value:
                batch.delete_range(family, key, value)
        self.store.commit_blocking(batch)
        apply(batch, self.model)

    @rule(family=FAMILY, key=BYTES, suffix=BYTES)
    def append(self, family: str, key: bytes, suffix: bytes) -> None:
        def prepare(view: ReadView) -> tuple[WriteBatch, bytes | None]:
            old = view.get(family, key)
            return WriteBatch().put(family, key, (old or b"") + suffix), old

        assert self.store.commit_blocking(prepare) == self.model[family].get(key)
        self.model[family][key] = self.model[family].get(key, b"") + suffix

    @rule(family=FAMILY, start=BYTES, end=BYTES, reverse=st.booleans(), limit=st.none() | st.integers(0, 5))
    def scan(self, family: str, start: bytes, end: bytes, reverse: bool, limit: int | None) -> None:
        found = list(self.store.scan(family, start=start, end=end, reverse=reverse, limit=limit))
        expected = sorted((row for row in self.model[family].items() if start <= row[0] < end), reverse=reverse)
        assert found == expected[:limit]

    @rule(family=FAMILY, prefix=BYTES, reverse=st.booleans())
    def scan_prefix(self, family: str, prefix: bytes, reverse: bool) -> None:
        found = list(self.store.scan(family, prefix=prefix, reverse=reverse))
        assert found == sorted(
            (row for row in self.model[family].items() if row[0].startswith(prefix)), reverse=reverse
        )

    @rule(family=FAMILY, keys=st.lists(BYTES, max_size=4))
    def multi_get(self, family: str, keys: list[bytes]) -> None:
        assert self.store.multi_get(family, keys) == [self.model[family].get(key) for key in keys]

    @rule(family=FAMILY)
    def compact(self, family: str) -> None:
        handle = self.store._handle
        assert handle is not None
        handle.compact(family)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.open()

    @invariant()
    def holds_the_same_rows(self) -> None:
        for family, rows in self.model.items():
            assert list(self.store.scan(family)) == sorted(rows.items())

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory, ignore_errors=True)


RowStoreMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
test_the_row_store_is_a_sorted_map = RowStoreMachine.TestCase


@pytest.mark.parametrize("seed", range(4))
def test_after_any_crash_the_store_holds_a_prefix_of_history_with_all_that_was_acknowledged(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    directory, state, done = tmp_path / "db", {family: dict[bytes, bytes]() for family in FAMILIES}, 0
    for _ in range(3):
        env = make_powerloss_env(directory, sync_delay_ms=2)
        command = [sys.executable, "-m", "tests.support.row_history", str(directory), str(seed), str(done), "6"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(rng.randint(1, 200))]
            child.kill()
            lines += child.stdout.readlines()
        acknowledged = {int(line) for line in lines if line.endswith(b"\n")}
        # Commits are applied in the order of the queue, so that those below an acknowledged one are there as well.
        least = max(acknowledged) + 1
        lose_power(directory, seed=rng.choice([None, rng.randrange(1 << 30)]))
        found = read_state(directory)
        while done < least:
            apply(batch_of(seed, done), state)
            done += 1
        while state != found:
            assert done < least + 600, f"the state after the crash is of no moment from batch {least} on"
            apply(batch_of(seed, done), state)
            done += 1
