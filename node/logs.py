"""Logs of the process: what is written, in which form, and without ever making the event loop wait for a pipe.

A record is formatted where it is made and written by one background thread; when that thread falls behind by more than
``QUEUED_LINES`` (a reader that does not read), lines are dropped and counted, and the count is logged when there is room.
Set up once by the process entry, before anything else logs.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import queue
import sys
import threading
from typing import TextIO

from dakera_cluster.model.config import LogFormat, Observability

QUEUED_LINES = 10_000
CLOSE_WAIT_S = 2.0

_LEVELS = {
    "trace": 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 10,
}
_OUR_LOGGERS = ("dakera_cluster", "node")
_STANDARD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_CHATTY = ("aiobotocore", "aiohttp.access", "botocore", "urllib3")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, target, message, whatever `extra` held, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "timestamp": _utc(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "target": record.name,
            "message": record.getMessage(),
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """For people: time, level, target, message, then `key=value` for whatever `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        extras = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES]
        time = _utc(record).strftime("%H:%M:%S.%f")[:-3]
        text = " ".join([f"{time} {record.levelname:<7} {record.name}: {record.getMessage()}", *extras])
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _utc(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


class QueuedLines(logging.Handler):
    """Formats a record at once and leaves the writing to a thread of its own. Never waits."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUED_LINES)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write, name="logs", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            line = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if self._dropped and self._lines.qsize() < QUEUED_LINES // 2:
            self._offer(self._dropped_line())
        if not self._offer(line):
            self._dropped += 1

    def close(self) -> None:
        """Writes what is queued, waiting at most ``CLOSE_WAIT_S`` for a reader that does not read. May be called twice."""
        if self._writer.is_alive():
            with contextlib.suppress(queue.Full):
                if self._dropped:
                    self._lines.put(self._dropped_line(), timeout=CLOSE_WAIT_S)
                self._lines.put(None, timeout=CLOSE_WAIT_S)
            self._writer.join(CLOSE_WAIT_S)
        super().close()

    def _offer(self, line: str) -> bool:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            return False
        return True

    def _dropped_line(self) -> str:
        count, self._dropped = self._dropped, 0
        message = f"{count} log lines were dropped: they were not read fast enough"
        return self.format(logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None))

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return


def set_up_logs(observability: Observability, stream: TextIO | None = None) -> QueuedLines:
    """Replace the root logger's handlers by ours. `close` flushes; the interpreter calls it at exit."""
    stream = stream or sys.stderr
    as_text = observability.log_format is LogFormat.TEXT or (
        observability.log_format is LogFormat.AUTO and stream.isatty()
    )
    handler = QueuedLines(stream)
    handler.setFormatter(TextLines() if as_text else JsonLines())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    _set_levels(observability.log_filter)
    return handler


def _set_levels(log_filter: str) -> None:
    """`level` is everybody's; `target=level` that of one logger, where `dakera` means this program as a whole."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for part in log_filter.split(","):
        target, _, level_name = part.rpartition("=")
        level = _LEVELS[level_name]
        if target in ("dakera", "dakera_cluster"):
            for name in _OUR_LOGGERS:
                logging.getLogger(name).setLevel(level)
        else:
            logging.getLogger(target.replace("::", ".") or None).setLevel(level)
