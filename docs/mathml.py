"""Formulas as MathML, which browsers show without a script or a network.

docutils converts them; an unknown command stops the build. The font, DejaVu Serif, comes from matplotlib's package with
its licence; it has the MATH table for stretching brackets, sums and roots.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONT_FILES = (_FONTS / "DejaVuSerif.ttf", _FONTS / "LICENSE_DEJAVU")

# TeX takes one digit as an argument, the converter the whole number: \tfrac13 would become thirteen over what follows.
_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_ROOT_OR_SCRIPT = re.compile(r"(\\sqrt|[_^])\s*(\d)(?=\d)")
_SYNONYMS = ((re.compile(r"\\([bB]ig)(?![a-zA-Z])"), r"\\\1l"), (re.compile(r"\\dots(?![a-zA-Z])"), r"\\ldots"))


def to_mathml(tex: str, *, block: bool = False) -> str:
    """The formula as a ``<math>`` element; ``MathError`` where the converter does not know a command."""
    tex = _FRACTION.sub(r"\1{\2}{\3}", tex)
    tex = _ROOT_OR_SCRIPT.sub(r"\1{\2}", tex)
    for command, known in _SYNONYMS:
        tex = command.sub(known, tex)
    return tex2mathml(tex, as_block=block)


def _written(writer, node: nodes.Element, *, block: bool) -> str:
    try:
        return to_mathml(node.astext(), block=block)
    except MathError as error:
        raise ValueError(
            f"{node.source or writer.docnames}: formulas must be ones that docutils can write as MathML; {error} "
            f"Write it with other commands: {node.astext()}"
        ) from error


def _inline(writer, node: nodes.math) -> None:
    writer.body.append(f'<span class="math">{_written(writer, node, block=False)}</span>')
    raise nodes.SkipNode


def _display(writer, node: nodes.math_block) -> None:
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(f"{_written(writer, node, block=True)}</div>\n")
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
