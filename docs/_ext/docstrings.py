"""Docstrings as they are written here, made fit for Sphinx: plain text around formulas, and stages' parameters."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

MARKUP = re.compile(r":math:`[^`]*`|`[^`]*`|[|*_](?=\W|$)|[|*]")
"""What is left alone (formulas and code), and single characters that would start markup."""


def escape(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape `|`, `*` and a final `_` outside of code and formulas: docstrings use them as themselves."""
    formula = -1
    for index, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith(".. math::"):
            formula = indent
        elif line.strip() and indent <= formula:
            formula = -1
        if formula < 0:
            lines[index] = _escaped(line)


def stage_fields(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Append the parameters of a stage (name, type, default, meaning) to the docstring of its class."""
    if what != "class" or not (isinstance(obj, type) and issubclass(obj, BaseModel)) or not obj.model_fields:
        return
    lines += ["", ".. list-table:: Parameters", "   :widths: 25 20 55", "   :header-rows: 1", ""]
    rows = [("name", "default", "meaning")]
    rows += [
        (f"``{field}``", f"``{info.get_default(call_default_factory=True)!r}``", _escaped(info.description or ""))
        for field, info in obj.model_fields.items()
    ]
    for cells in rows:
        lines += [f"   {'* -' if not index else '  -'} {cell}" for index, cell in enumerate(cells)]
    lines.append("")


def _escaped(text: str) -> str:
    return MARKUP.sub(lambda found: found[0] if "`" in found[0] else "\\" + found[0], text)


def skip_tuple_fields(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the members of a named tuple: they are told under its attributes."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def short_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    """A stage's class is made by `checked` or `collect`: its keyword arguments are in the table, not repeated."""
    return ("", "") if isinstance(obj, type) and issubclass(obj, BaseModel) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Escape before napoleon (priority 500) reads the sections, and add fields after it."""
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("autodoc-process-docstring", stage_fields, priority=600)
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("autodoc-process-signature", short_signature)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
