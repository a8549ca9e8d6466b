"""Formulas as MathML, which browsers draw by themselves: no script, no font and no request to another host."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def mathml(latex: str, *, block: bool) -> str:
    """The `<math>` element of a formula.

    Args:
        latex: the formula without dollar signs.
        block: whether it stands on a line of its own.

    Raises:
        ExtensionError: the formula cannot be converted, or holds a command that the converter does not know (it would
            be printed as it stands).
    """
    try:
        found = convert(latex, display="block" if block else "inline")
    except Exception as error:  # the converter has a dozen exceptions without a common class
        raise ExtensionError(f"the formula {latex!r} cannot be converted to MathML: {error!r}") from error
    if "\\" in found or ">&<" in found:
        raise ExtensionError(f"the formula {latex!r} holds what latex2mathml does not know; write it otherwise")
    return found


def _drawn(node: nodes.Element, *, block: bool) -> str:
    """As `mathml`; what cannot be drawn is an error of the build, which runs with -W."""
    try:
        return mathml(node.astext(), block=block)
    except ExtensionError as error:
        logger.warning("%s", error, location=node)
        return ""


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{_drawn(node, block=False)}</span>')
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math-block"))
    translator.body.append(_drawn(node, block=True))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer; conf.py chooses it by `html_math_renderer`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
