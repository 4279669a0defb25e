"""Run by torchrun: the recipes over ranks one after another, in one start of the processes."""

from __future__ import annotations

import importlib
import os
import sys

for name in sys.argv[1:]:
    if os.environ["RANK"] == "0":
        print(f"{name}:", flush=True)
    importlib.import_module(name).main()
