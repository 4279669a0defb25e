"""Run by torchrun: the recipes over ranks one after another, in one start of the processes and one group.

A second group in the same store sometimes finds the addresses of the first and waits forever, so recipes share one
group.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import torch.distributed as dist

_start, _end = dist.init_process_group, dist.destroy_process_group


def _start_once(*arguments: Any, **options: Any) -> None:
    if not dist.is_initialized():
        _start(*arguments, **options)


def _not_yet(group: Any = None) -> None:
    """The end is after the last recipe."""


dist.init_process_group, dist.destroy_process_group = _start_once, _not_yet
for name in sys.argv[1:]:
    if os.environ["RANK"] == "0":
        print(f"{name}:", flush=True)
    importlib.import_module(name).main()
_end()
# Gloo's threads race with the interpreter's end: one process in about ten of a busy machine aborts, with a plain
# DistributedDataParallel of PyTorch 2.14 as well ("terminate called without an active exception").
sys.stdout.flush()
os._exit(0)
