"""Logs of the process: what is written, in which form, and without ever making the event loop wait for a pipe.

A record is formatted where it is made and written by one background thread; when that thread falls behind by more than
``QUEUED_LINES`` (a reader that does not read), lines are dropped and counted, and the count is logged when there is room.
Set up once by the process entry, before anything else logs.
"""

from __future__ import annotations

import atexit
import datetime
import json
import logging
import logging.handlers
import queue
import sys
from typing import TextIO

from dakera_cluster.model.config import LogFormat, Observability

QUEUED_LINES = 10_000

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


class _Queue(logging.handlers.QueueHandler):
    """Formats at once, never waits."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self._lines = lines
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return logging.makeLogRecord({"msg": self.format(record), "levelno": record.levelno})

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped and self._lines.qsize() < QUEUED_LINES // 2:
                dropped, self._dropped = self._dropped, 0
                self._lines.put_nowait(logging.makeLogRecord({"msg": f"{dropped} log lines were dropped"}))
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1


def set_up_logs(settings: Observability, stream: TextIO | None = None) -> logging.handlers.QueueListener:
    """Replace the root logger's handlers by ours. The listener's `stop` flushes; it runs at exit."""
    stream = stream or sys.stderr
    as_text = settings.log_format is LogFormat.TEXT or (settings.log_format is LogFormat.AUTO and stream.isatty())
    lines: queue.Queue[logging.LogRecord] = queue.Queue(QUEUED_LINES)
    handler = _Queue(lines)
    handler.setFormatter(TextLines() if as_text else JsonLines())
    listener = logging.handlers.QueueListener(lines, logging.StreamHandler(stream))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    _set_levels(settings.log_filter)
    listener.start()
    atexit.register(listener.stop)
    return listener


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
