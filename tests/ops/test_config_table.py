"""The configuration tables of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dakera_cluster.model.config import ROWS
from ops.config_table import BEGIN, END, README, render, tables

ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert render(text) == text, "run `make docs`"


def test_every_variable_stands_in_exactly_one_table() -> None:
    named = re.findall(r"^\| `([A-Z0-9_]+)`", tables(), flags=re.MULTILINE)
    assert sorted(named) == sorted(row.var.name for row in ROWS)


def test_what_stands_around_the_markers_is_kept() -> None:
    rendered = render(f"before\n{BEGIN}\nstale words\n{END}\nafter")
    assert rendered.startswith(f"before\n{BEGIN}\n")
    assert rendered.endswith(f"{END}\nafter")
    assert "stale words" not in rendered


def test_a_text_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold"):
        render("no markers")


DERIVED = {
    r"cluster\.gossip_keys_text": ("cluster.gossip_key", "cluster.gossip_key_previous"),
    r"storage\.tiering": ("storage.tiered",),
    r"settings\.gossip_bind": ("cluster.gossip_bind", "cluster.gossip_port"),
    r"settings\.drain_s": ("server.drain_s",),
}
"""Properties of the settings that stand for several of their fields."""


def test_the_tables_say_the_truth_about_effects() -> None:
    """A setting has an effect exactly when some code outside the table reads it as `section.field`."""
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for package in ("dakera_cluster", "node")
        for path in (ROOT / package).rglob("*.py")
        if "model/config/" not in path.as_posix()
    )
    code += "\n".join("\n".join(fields) for pattern, fields in DERIVED.items() if re.search(pattern + r"\b", code))
    read = {row.var.name for row in ROWS if re.search(rf"\b{row.section}\.{row.field}\b", code)}
    marked = {row.var.name for row in ROWS if row.var.effect}
    assert marked - read == set(), "marked effect=True, but nothing reads it"
    assert read - marked == set(), "read, but marked effect=False"
