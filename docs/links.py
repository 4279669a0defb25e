"""Checks that every link inside the built pages leads to an existing file and anchor.

Sphinx checks only its own references; this reads the built pages. Links that leave the site are not followed. A script,
a style or a picture that a page would load from elsewhere is reported, because the pages work without a network.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.util import logging


class _Page(HTMLParser):
    """The links of a page, what it loads, and the anchors on it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value is not None:
                self.links.append(value)
                if name == "src" or (tag == "link" and ("rel", "stylesheet") in attrs):
                    self.loaded.add(value)
            elif name == "srcset" and value:
                self.links += [part.split()[0] for part in value.split(",") if part.strip()]


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def broken(folder: Path) -> list[str]:
    """``page: link`` for every link of the pages below ``folder`` that leads nowhere, or loads from elsewhere."""
    folder = folder.resolve()
    pages = {path: _read(path) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:  # https:, mailto:, data:, javascript:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{path.relative_to(folder)}: {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            inside = target.is_relative_to(folder)
            anchor = unquote(parts.fragment)
            # Source pages link back by the module that defines a name; one shown under another leads to its page alone.
            source = "_modules" in path.relative_to(folder).parts
            lost = anchor and not source and target in pages and anchor not in pages[target].anchors
            if not inside or not target.is_file() or lost:
                found.append(f"{path.relative_to(folder)}: {link}")
    return found


def _check(app, error) -> None:
    if error is None and app.builder.format == "html":
        for link in broken(Path(app.outdir)):
            logging.getLogger(__name__).warning("a link leads nowhere, or loads from elsewhere: %s", link)


def setup(app) -> dict[str, bool]:
    """Called by Sphinx; after the other steps of the end, which still write files (priority 500)."""
    app.connect("build-finished", _check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
