"""Sphinx settings. The build is offline and strict: `sphinx-build -W docs docs/_build/html`."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from pathlib import Path

_root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_root / "docs"))  # `api_pages`, `lift_page`, `links`, `mathml`
_version_file = (_root / "multicontrast" / "_version.py").read_text()

project = "multicontrast"
author = "The multicontrast developers"
copyright = "The multicontrast developers, Apache-2.0"
release = version = re.search(r'__version__ = "(.+)"', _version_file).group(1)

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "api_pages",
    "links",
    "mathml",
]
html_math_renderer = "mathml"
exclude_patterns = ["_build", "gallery_source"]

sphinx_gallery_conf = {
    "examples_dirs": "gallery_source",
    "gallery_dirs": "gallery",
    "within_subsection_order": "gallery_pictures.Chosen",
    "remove_config_comments": True,
    "first_notebook_cell": "# Once: %pip install multicontrast matplotlib",
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10**9,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "image_scrapers": ("gallery_pictures", "matplotlib"),
    "reset_modules": ("matplotlib", "gallery_pictures.ink"),
    "capture_repr": (),  # what a program prints, and nothing that it only happens to end in
    "backreferences_dir": None,
    "matplotlib_animations": False,
}
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_title = f"multicontrast {release}"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # else `a, b: what they are` says it once for each
napoleon_custom_sections = ["Reference", "Accuracy"]

_ONE_LINE_SECTION = re.compile(
    r"^((?:\w+, )*(?:Returns|Yields|Raises|Accuracy|Reference|Warning|Convention|Memory|Cost|Source)): +(?=\S)"
)

# A broken reference is an error. PyTorch's own names have no target here, because no inventory is fetched.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|np|nn|F|collections|typing|pathlib|types|os)\..*"),
    ("py:.*", r"Tensor|Generator|Module|ProcessGroup|Figure|Path"),  # annotations that are not evaluated
    ("py:.*", r"Sequence|Callable|Iterable|Mapping|Literal|optional|(.*\.)?Tally|Gather|Examples"),
    ("py:.*", r"(multicontrast|unihpe_ref)\.(.*\.)?_.*"),  # private names in annotations
    (
        "py:class",
        r"PIL\..*|unihpe_ref\.data\.layouts\.Layout|unihpe_ref\.applications\.detector\.Detected|unihpe_ref\.data\.protocols\.Protocol",
    ),  # of annotations
]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _short_signature(app, what, name, obj, options, signature, returns):  # noqa: ARG001 (Sphinx fixes the signature)
    """Types if they are short; leaves out long tuples of numbers."""
    if signature and len(signature) > 400:  # the parameters' text says what they may be
        plain = inspect.signature(obj)
        bare = [parameter.replace(annotation=plain.empty) for parameter in plain.parameters.values()]
        signature = str(plain.replace(parameters=bare, return_annotation=plain.empty))
    return signature and re.sub(r"\((?:-?[\d.e-]+, ){8,}[^()]*\)", "(...)", signature), returns


def _sections_on_one_line(app, what, name, obj, options, lines) -> None:  # noqa: ARG001 (Sphinx fixes the signature)
    """Let ``Returns: (B,) losses`` be a section, as our docstrings write it; napoleon wants a line break there."""
    if lines and lines[0].startswith("Alias for field number"):  # namedtuple's own words
        lines.clear()
    lines[:] = [_ONE_LINE_SECTION.sub(r":\1: ", line) for line in lines]


def _finish_lift_page(app, error) -> None:
    """Write the weights for the page that lifts a dragged skeleton, so that the repository holds them once."""
    if error is None and app.builder.format == "html":
        from lift_page import write_weights

        write_weights(Path(app.outdir) / "_static" / "lift" / "weights.js")


def _add_math_font(app, error) -> None:
    """Copy the font for stretching brackets and roots from matplotlib's package."""
    if error is None and app.builder.format == "html":
        from mathml import FONT_FILES

        folder = Path(app.outdir) / "_static" / "fonts"
        folder.mkdir(parents=True, exist_ok=True)
        for file in FONT_FILES:
            shutil.copy(file, folder)


def setup(app) -> None:
    """Called by Sphinx; runs before napoleon (priority 500)."""
    app.connect("autodoc-process-signature", _short_signature)
    app.connect("autodoc-process-docstring", _sections_on_one_line, priority=400)
    app.connect("build-finished", _finish_lift_page)
    app.connect("build-finished", _add_math_font)
