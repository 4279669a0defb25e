"""The tools of the built docs: formulas as MathML, and checked links."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the docs are built with the extra `dev`")

import links
import mathml
from docutils.utils.math import MathError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("tex", "meant"),
    [
        (r"\tfrac13 x", r"\tfrac{1}{3} x"),
        (r"\frac 92\eta^2", r"\frac{9}{2}\eta^2"),
        (r"\sqrt3, x^12", r"\sqrt{3}, x^{1}2"),
        (r"\big[x\big]^2", r"\bigl[x\bigl]^2"),
        (r"1, \dots, n", r"1, \ldots, n"),
    ],
)
def test_formulas_are_read_as_tex_reads_them(tex, meant):
    assert mathml.to_mathml(tex) == mathml.to_mathml(meant)


def test_a_fraction_of_two_digits_is_not_thirteen():
    numbers = re.findall(r"<mn>(\d+)</mn>", mathml.to_mathml(r"\tfrac13 x"))
    assert numbers == ["1", "3"]


def test_a_formula_that_cannot_be_written_is_an_error():
    with pytest.raises(MathError):
        mathml.to_mathml(r"\nosuchcommand x")


def test_the_font_of_the_formulas_stretches_brackets_and_roots():
    fonts = pytest.importorskip("fontTools.ttLib", reason="comes with matplotlib")
    font, licence = mathml.FONT_FILES
    assert "redistribution" in licence.read_text() or "reproduce and distribute" in licence.read_text()
    table = fonts.TTFont(font)["MATH"].table
    stretching = set(table.MathVariants.VertGlyphCoverage.glyphs)
    assert {"parenleft", "parenright", "bracketleft", "braceleft", "bar", "radical", "summation"} <= stretching
    style = (ROOT / "docs" / "_static" / "site.css").read_text()
    assert f"fonts/{font.name}" in style


@pytest.mark.parametrize(
    ("link", "leads_nowhere"),
    [
        ('<a href="other.html">', False),
        ('<a href="other.html#there">', False),
        ('<a href="#here">', False),
        ('<a href="https://example.org/gone">', False),
        ('<img src="data:image/png;base64,">', False),
        ('<a href="folder/">', False),
        ('<a href="gone.html">', True),
        ('<a href="other.html#gone">', True),
        ('<a href="#gone">', True),
        ('<a href="../outside.html">', True),
        ('<img srcset="gone.png 2x">', True),
        ('<script src="https://example.org/script.js">', True),
        ('<link rel="stylesheet" href="//example.org/style.css">', True),
    ],
)
def test_links_are_followed_to_their_anchor(tmp_path, link, leads_nowhere):
    site = tmp_path / "site"
    (site / "folder").mkdir(parents=True)
    (tmp_path / "outside.html").write_text("")
    (site / "folder" / "index.html").write_text("")
    (site / "other.html").write_text('<h2 id="there">')
    (site / "index.html").write_text(f'<h1 id="here">{link}')
    assert bool(links.broken(site)) is leads_nowhere


def test_a_source_page_may_link_to_a_page_without_the_name_it_defines(tmp_path):
    (tmp_path / "_modules").mkdir()
    (tmp_path / "api.html").write_text("<h1>API</h1>")
    source = tmp_path / "_modules" / "package.html"
    source.write_text('<a href="../api.html#package.name">')
    assert links.broken(tmp_path) == []
    source.write_text('<a href="../gone.html#package.name">')
    assert links.broken(tmp_path) != []


def test_every_program_of_the_gallery_has_a_place_in_its_order():
    pytest.importorskip("sphinx_gallery", reason="comes with the extra `dev`")
    import gallery_pictures

    programs = {path.stem.removeprefix("plot_") for path in (ROOT / "docs" / "gallery_source").glob("plot_*.py")}
    assert set(gallery_pictures.ORDER) == programs
    assert sorted(("plot_temperature.py", "plot_xor.py"), key=gallery_pictures.Chosen("")) == [
        "plot_xor.py",
        "plot_temperature.py",
    ]


def test_a_figure_that_pyplot_does_not_know_is_shown_once(tmp_path):
    pytest.importorskip("sphinx_gallery", reason="comes with the extra `dev`")
    import gallery_pictures
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    def shown(figure):
        paths = iter([str(tmp_path / "one.png"), str(tmp_path / "two.png")])
        variables = {"example_globals": {"figure": figure}, "image_path_iterator": paths}
        return [gallery_pictures.scrape(None, variables, {"src_dir": str(tmp_path)}) != "" for _ in range(2)]

    assert shown(Figure()) == [True, False]
    assert (tmp_path / "one.png").exists()
    ours = pyplot.figure()
    assert shown(ours) == [False, False]  # the scraper for pyplot shows it
    pyplot.close(ours)
    assert shown(None) == [False, False]


def test_a_program_of_the_gallery_runs_as_a_notebook(tmp_path):
    """The notebook that readers download: made by the gallery's converter with its settings, run cell by cell."""
    pytest.importorskip("sphinx_gallery", reason="comes with the extra `dev`")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from sphinx_gallery.gen_gallery import DEFAULT_GALLERY_CONF
    from sphinx_gallery.notebook import jupyter_notebook
    from sphinx_gallery.py_source_parser import split_code_and_text_blocks

    settings = runpy.run_path(str(ROOT / "docs" / "conf.py"))["sphinx_gallery_conf"]
    _, blocks = split_code_and_text_blocks(str(ROOT / "docs" / "gallery_source" / "plot_retrieval.py"))
    notebook = jupyter_notebook(blocks, DEFAULT_GALLERY_CONF | settings, tmp_path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0]["source"] == ["# Once: %pip install multicontrast matplotlib"]
    names = {"__name__": "__main__"}
    for cell in cells:
        exec("".join(cell["source"]), names)
    assert names["after"].nanmean() > names["before"].nanmean() + 50  # per cent
    assert pyplot.get_fignums()
    pyplot.close("all")


def test_the_picture_of_costs_is_that_of_the_rows_on_file():
    pytest.importorskip("matplotlib")
    import cost_figure

    from benchmarks import pictures

    assert pictures.digest_in(cost_figure.OUT) == pictures.digest(cost_figure.costs()), (
        "run `python docs/cost_figure.py`"
    )


def test_a_page_of_the_api_begins_with_its_names_and_folds_long_parameters(tmp_path):
    """Built by Sphinx: a table in front of three names, and a fold where parameters are long."""
    from sphinx.application import Sphinx

    source = tmp_path / "source"
    (source / "api").mkdir(parents=True)
    (source / "conf.py").write_text("extensions = ['api_pages']\n")
    (source / "index.rst").write_text("Start\n=====\n\n.. toctree::\n\n   api/names\n")
    long = "very " * 100 + "long"
    names = ""
    for name, text in (("first", long), ("second", "short"), ("third", "short")):
        names += f".. py:function:: {name}(x, y)\n\n   What *{name}* does.\n\n"
        names += f"   :Parameters: * **x** -- {text}\n                * **y** -- short\n\n"
    (source / "api" / "names.rst").write_text("Names\n=====\n\n" + names)
    app = Sphinx(source, source, tmp_path / "out", tmp_path / "trees", "html", status=None, warningiserror=True)
    app.build()
    page = (tmp_path / "out" / "api" / "names.html").read_text()
    table = page[page.index("<table") : page.index("</table>")]
    assert re.findall(r'href="#(\w+)"', table) == ["first", "second", "third"]
    assert "What <em>second</em> does." in table
    assert re.findall(r"<summary>(.*?)</summary>", page) == ["x, y"]
    assert page.index("<table") < page.index("<summary>") < page.index(long)
