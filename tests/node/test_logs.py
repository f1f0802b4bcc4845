"""Log lines: their form, their levels, and that a reader who does not read stops nobody."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest

from dakera_cluster.model.config import LogFormat, Observability
from node import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = {name: logging.getLogger(name).level for name in ("dakera_cluster", "node", "aiohttp.access", "some.part")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in named.items():
        logging.getLogger(name).setLevel(old)


def test_away_from_a_terminal_every_line_is_a_json_object_with_the_extras() -> None:
    stream = io.StringIO()
    handler = logs.set_up_logs(Observability(), stream)
    log = logging.getLogger("dakera_cluster.part")
    log.info("stored %d\nrows", 3, extra={"shard": 7})
    try:
        raise ValueError("odd")
    except ValueError:
        log.exception("failed")
    handler.close()
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (first["level"], first["target"], first["message"], first["shard"]) == (
        "INFO",
        "dakera_cluster.part",
        "stored 3\nrows",
        7,
    )
    assert first["timestamp"].endswith("Z")
    assert "ValueError: odd" in second["exception"]


def test_on_a_terminal_lines_are_for_people() -> None:
    stream = Terminal()
    handler = logs.set_up_logs(Observability(), stream)
    logging.getLogger("node").warning("slow", extra={"took_ms": 12})
    handler.close()
    assert stream.getvalue().endswith("WARNING node: slow took_ms=12\n")


def test_the_form_can_be_chosen() -> None:
    stream = Terminal()
    handler = logs.set_up_logs(Observability(log_format=LogFormat.JSON), stream)
    logging.getLogger("node").warning("x")
    handler.close()
    assert json.loads(stream.getvalue())["message"] == "x"


def test_the_filter_sets_levels_by_target_and_dakera_means_this_program() -> None:
    stream = io.StringIO()
    handler = logs.set_up_logs(Observability(log_filter="warn,dakera=debug,some.part=error"), stream)
    logging.getLogger("dakera_cluster.shard").debug("ours")
    logging.getLogger("node.wiring").debug("ours too")
    logging.getLogger("some.part").warning("hidden")
    logging.getLogger("other").info("hidden")
    logging.getLogger("other").warning("shown")
    handler.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["ours", "ours too", "shown"]


def test_a_reader_that_does_not_read_costs_lines_not_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUED_LINES", 10)
    readable, writable = os.pipe()
    with os.fdopen(writable, "w", buffering=1) as stream:
        handler = logs.set_up_logs(Observability(), stream)
        log = logging.getLogger("node")
        done = threading.Event()

        def write() -> None:
            for number in range(5_000):
                log.info("a line of some length, number %d, that will not fit the pipe", number)
            done.set()

        threading.Thread(target=write, daemon=True).start()
        assert done.wait(30), "logging waited for the reader"
        drained: list[str] = []

        def read() -> None:
            with os.fdopen(readable) as reader:
                drained.extend(reader)

        reader = threading.Thread(target=read)
        reader.start()
        handler.close()
    reader.join()
    messages = [json.loads(line)["message"] for line in drained]
    dropped = [int(message.split()[0]) for message in messages if "log lines were dropped" in message]
    assert dropped
    assert sum(dropped) + len(messages) - len(dropped) == 5_000


def test_closing_does_not_wait_for_ever_for_a_reader_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUED_LINES", 10)
    monkeypatch.setattr(logs, "CLOSE_WAIT_S", 0.05)
    readable, writable = os.pipe()
    stream = os.fdopen(writable, "w", buffering=1)
    handler = logs.set_up_logs(Observability(), stream)
    for _ in range(3_000):
        logging.getLogger("node").info("a line of some length that will not fit the pipe together with all the others")
    handler.close()
    os.close(readable)
