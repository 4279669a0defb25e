"""The paths of the shipped lifter's weights.

``lifter.safetensors`` is in the package. ``lifter-whole.safetensors``, the same with a 3D encoder and a 2D decoder, is
for retrieval and for the export of encoders; it is not in the wheel. It is searched beside the first, where a checkout
has it, and in the folder ``UNIHPE_WEIGHTS``, and used if its checksum is that of the lifter's model card.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from multicontrast._checks import three_beats
from unihpe_ref.files import file_hash

ASSETS = Path(__file__).with_name("assets")
LIFTER, WHOLE, CARD = "lifter.safetensors", "lifter-whole.safetensors", "lifter.json"
FOLDER = "UNIHPE_WEIGHTS"


def lifter_path() -> Path:
    """The lifter, which every installation has."""
    return ASSETS / LIFTER


def whole_path() -> Path:
    """The lifter with its 3D encoder and 2D decoder.

    Raises: FileNotFoundError if it is not found; ValueError if a file of that name has another checksum.
    """
    named = os.environ.get(FOLDER)
    needed = f"retrieval and the export of encoders need `{WHOLE}`, which pip does not install"
    remedy = (
        f"Take `unihpe_ref/assets/{WHOLE}` from the repository at this version, put it into a folder and name that in "
        f"the variable {FOLDER}; or give a checkpoint of your own. Lifting works without it."
    )
    found = [folder / WHOLE for folder in (ASSETS, *([Path(named)] if named else []))]
    found = [path for path in found if path.is_file()]
    if not found:
        came = f"no such file in {named}" if named else f"none beside the package, and no {FOLDER}"
        raise FileNotFoundError(three_beats(needed, came, remedy))
    wanted = json.loads((ASSETS / CARD).read_text())["whole_sha256"]
    for path in found:
        if file_hash(path) == wanted:
            return path
    raise ValueError(three_beats(needed, f"other bytes in {found[-1]}", remedy))
