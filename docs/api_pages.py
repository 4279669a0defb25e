"""API pages: a table of names before each group, and folded lists of parameters."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx import addnodes

_OPEN = 400  # characters: lists of parameters up to this length are shown unfolded


def summarise_and_fold(app: Any, doctree: nodes.document) -> None:
    """Called by Sphinx when a page was read."""
    if not app.env.docname.startswith("api/"):
        return
    for section in doctree.findall(nodes.section):
        names = [node for node in section.children if isinstance(node, addnodes.desc)]
        if len(names) > 2:
            at = section.index(names[0])
            at -= isinstance(section[at - 1], addnodes.index)
            section.insert(at, _table(names))
    for field in doctree.findall(nodes.field):
        if field[0].astext() == "Parameters" and len(field[1].astext()) > _OPEN:
            _fold(field[1])


def _table(names: list[addnodes.desc]) -> nodes.table:
    """A row for each name: a link, and the first line of its docstring."""
    body = nodes.tbody()
    for desc in names:
        signature, content = desc[0], desc[-1]
        (written,) = signature.findall(addnodes.desc_name)
        link = nodes.reference("", "", nodes.literal(text=written.astext()), refid=signature["ids"][0], internal=True)
        first = next(iter(content.findall(nodes.paragraph)), nodes.paragraph())
        cells = nodes.paragraph("", "", link), nodes.paragraph("", "", *(child.deepcopy() for child in first))
        body += nodes.row("", *(nodes.entry("", cell) for cell in cells))
    columns = [nodes.colspec(colwidth=width) for width in (30, 70)]
    return nodes.table("", nodes.tgroup("", *columns, body, cols=2), classes=["summary"])


def _fold(body: nodes.field_body) -> None:
    """Hide what ``body`` holds behind the names of the parameters."""
    listed = body.findall(nodes.list_item)
    names = ", ".join(next(iter(item.findall(nodes.strong))).astext() for item in listed)
    body.insert(0, nodes.raw("", f"<details><summary>{names or 'show'}</summary>", format="html"))
    body.append(nodes.raw("", "</details>", format="html"))


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", summarise_and_fold)
    return {"parallel_read_safe": True}
