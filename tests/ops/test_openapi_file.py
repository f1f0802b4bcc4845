"""docs/openapi.json."""

from __future__ import annotations

from ops.openapi_file import TARGET, text


def test_the_file_is_current() -> None:
    assert TARGET.read_text(encoding="utf-8") == text(), "run `make docs`"
