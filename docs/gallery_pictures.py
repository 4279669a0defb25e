"""Pictures of the gallery that pyplot does not know: a program's variable ``figure``, made without it."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst


def scrape(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:  # noqa: ARG001 (the gallery's form)
    """The picture of ``figure`` after the block that made it; nothing where pyplot shows it anyway."""
    figure = variables["example_globals"].get("figure")
    if not isinstance(figure, Figure) or getattr(figure, "was_shown", False):
        return ""
    figure.was_shown = True  # here, or by the scraper for pyplot, which comes next and forgets the figure
    if figure in [pyplot.figure(number) for number in pyplot.get_fignums()]:
        return ""
    path = next(variables["image_path_iterator"])
    figure.savefig(path)
    return figure_rst([path], settings["src_dir"])


def _get_sg_image_scraper() -> Any:
    """Called by sphinx-gallery."""
    return scrape
