"""One row of the configuration table: `Annotated[type, Var(...)] = default` on a field of a section.

The field carries the type and the default, the `Var` everything else, so nothing about a setting is said twice: the
loader, the documentation and the redacted view all read these rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec

from dakera_cluster.model.config.values import Kind, SecretText


@dataclass(frozen=True, slots=True)
class Var:
    name: str
    """The canonical variable."""
    kind: Kind[Any]
    meaning: str
    aliases: tuple[str, ...] = ()
    """Other accepted names, the more specific first; the canonical name wins when both are set."""
    toml: str = ""
    """`section.key` in the file; the field's own `section.field` when empty."""
    effect: bool = False
    """Whether the node acts on it. A row without effect is accepted so that existing stacks start unchanged."""
    relied_on: bool = False
    """Whether an operator who sets it relies on it for safety: without effect, it is warned about by name."""
    unset: str = "–"
    """What holds when the field's default is None, as the table shows it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A `Var` together with where it stands."""

    section: str
    field: str
    default: Any
    var: Var

    @property
    def toml(self) -> str:
        return self.var.toml or f"{self.section}.{self.field}"

    @property
    def secret(self) -> bool:
        return isinstance(self.var.kind, SecretText)

    @property
    def default_text(self) -> str:
        if self.default is None or self.default == ():
            return self.var.unset
        return self.var.kind.show(self.default)


def rows_of(section: str, struct: type[msgspec.Struct]) -> tuple[Row, ...]:
    """The rows of one section in the order of its fields; every field must carry exactly one `Var`."""
    hints = get_type_hints(struct, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        marks = [mark for mark in get_args(hint)[1:] if isinstance(mark, Var)] if get_origin(hint) is Annotated else []
        if len(marks) != 1 or field.default is msgspec.NODEFAULT:
            raise TypeError(f"{struct.__name__}.{field.name} needs one Var and a default")
        rows.append(Row(section, field.name, field.default, marks[0]))
    return tuple(rows)
