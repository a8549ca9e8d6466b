"""The role `{lines}`: a link to the lines that define a name, or to one line of it, found when the site is built.

{lines}`medkd.losses.lowrank.shrink` links to the whole function, {lines}`medkd.losses.lowrank.shrink : kept =` to its
one line that holds "kept =". A name that does not exist, or a text that does not stand in exactly one line, fails the
build.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)

VIEWCODE_BREAKS = re.compile(r'(<div class="viewcode-block"[^\n]*|<a class="viewcode-back"[^\n]*?</a>|</div>)\n')
"""Line breaks that viewcode adds around its blocks: without them a listing has the lines of the file."""

BLOCK_TAGS = re.compile(r'^(?:</div>|<div class="viewcode-block"[^>]*>|<a class="viewcode-back".*?</a>)*')
"""Ends and starts of its blocks at the start of a line; the line's number goes behind them."""


class LinesRole(SphinxRole):
    """A reference to the listing of a module, at its first line."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """The reference."""
        name, _, text = self.text.partition(" : ")
        try:
            module, path, first, last = locate(name.strip(), text.strip())
        except ExtensionError as error:
            logger.warning("%s", error, location=self.get_location())  # an error of the build, which runs with -W
            return [nodes.literal("", self.text)], []
        self.env.note_dependency(str(path))
        place = module.replace(".", "/")
        shown = f"{place}.py, lines {first}–{last}" if last > first else f"{place}.py, line {first}"
        target = "../" * self.env.docname.count("/") + f"_modules/{place}.html#L{first}"
        label = nodes.literal("", shown)
        return [nodes.reference("", "", label, refuri=target, internal=True, classes=["code-lines"])], []


def locate(name: str, text: str = "") -> tuple[str, Path, int, int]:
    """Where a name is defined.

    Args:
        name: dotted, such as "medkd.losses.lowrank.LowRankLoss.forward"; functions, classes, methods and constants.
        text: part of one line of it; empty for all of it.

    Returns:
        Module, file, first and last line (from 1).

    Raises:
        ExtensionError: there is no such name, or the text does not stand in exactly one of its lines.
    """
    module, path, tree, lines = _module_of(name)
    first, last = 1, len(lines)
    scope: Any = tree
    for part in name.removeprefix(module).lstrip(".").split("."):
        scope = next((node for node in scope.body if part in _names(node)), None) if part else scope
        if scope is None:
            raise ExtensionError(f"{{lines}}`{name}`: {path} defines no {part}; correct the name on the page")
        if part:
            first = min([scope.lineno, *(decorator.lineno for decorator in getattr(scope, "decorator_list", []))])
            last = scope.end_lineno
    if not text:
        return module, path, first, last
    found = [number for number in range(first, last + 1) if text in lines[number - 1]]
    if len(found) != 1:
        raise ExtensionError(f"{{lines}}`{name} : {text}`: the text stands in {len(found)} lines of {name}, not in one")
    return module, path, found[0], _end_of_statement(scope, found[0])


def _end_of_statement(scope: ast.AST, line: int) -> int:
    """Last line of the shortest statement that starts in this line (of a compound one, its first line)."""
    ends = [
        node.body[0].lineno - 1 if hasattr(node, "body") else node.end_lineno
        for node in ast.walk(scope)
        if isinstance(node, ast.stmt) and node.lineno == line
    ]
    return max(line, min(ends, default=line))


@cache
def _module_of(name: str) -> tuple[str, Path, ast.Module, list[str]]:
    parts = name.split(".")
    for n_parts in range(len(parts), 0, -1):
        module = ".".join(parts[:n_parts])
        try:
            spec = find_spec(module)
        except ModuleNotFoundError:
            continue
        if spec and spec.origin:
            source = Path(spec.origin).read_text()
            return module, Path(spec.origin), ast.parse(source), source.splitlines()
    raise ExtensionError(f"{{lines}}`{name}`: no such module; correct the name on the page")


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def number_lines(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give every line of a listing of `sphinx.ext.viewcode` a number and an anchor."""
    if not page.startswith("_modules/") or "<pre>" not in context.get("body", ""):
        return
    before, code, after = re.fullmatch(r"(.*?<pre>)(.*)(</pre>.*)", context["body"], re.DOTALL).groups()
    # a block's end goes to the next line's start, where a <pre> shows no empty line for it
    code = VIEWCODE_BREAKS.sub(r"\1", code.removeprefix("\n")).replace("</div>\n", "\n</div>")
    code = re.sub(r"\n((?:</div>)+)$", r"\1", code)
    lines = [
        BLOCK_TAGS.sub(rf'\g<0><a id="L{number}" class="line"></a>', line, count=1)
        for number, line in enumerate(code.splitlines(), start=1)
    ]
    context["body"] = before + "\n".join(lines) + after


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role and the numbers of lines."""
    app.add_role("lines", LinesRole())
    app.connect("html-page-context", number_lines)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
