"""The picture on the front page of the docs: that of the gallery's program on XOR.

python docs/xor_figure.py
"""

from __future__ import annotations

import runpy
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from gallery_pictures import ink

DOCS = Path(__file__).resolve().parent

if __name__ == "__main__":
    ink({}, "")
    figure = runpy.run_path(str(DOCS / "gallery_source" / "plot_xor.py"))["figure"]
    figure.savefig(DOCS / "_static" / "xor.png", dpi=110)
