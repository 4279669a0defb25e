"""The gallery: its order, and pictures of a program's variable ``figure`` that is made without pyplot."""

from __future__ import annotations

from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

# In the order of a new user's questions.
ORDER = ("xor", "retrieval", "temperature", "eigenvalue", "sampled_against_exact", "eigenvalue_accuracy", "lifting",
         "pose_report", "procrustes")  # fmt: skip


class Chosen:
    """Sphinx-gallery's sort key; a program without a place is an error."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> int:
        return ORDER.index(file.removeprefix("plot_").removesuffix(".py"))

    def __repr__(self) -> str:  # part of the settings that Sphinx compares between builds
        return f"Chosen{ORDER}"


def ink(_: dict[str, Any], __: str) -> None:
    """Grey on a transparent background, before each program, for light and dark pages."""
    grey = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor"),
        "#7d8590",
    )
    pyplot.rcParams.update(grey | {"axes.facecolor": "none", "savefig.transparent": True, "legend.framealpha": 0})


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
