"""Contrastive losses for two, three and N modalities: exact, fast, tested.

>>> import torch
>>> import multicontrast as mc
>>> x_img, x_2d, x_3d = torch.randn(3, 8, 32)
>>> loss = mc.trimodal_infonce(x_img, x_2d, x_3d, tau=0.07)

Importing this package loads torch and numpy, and nothing else.
"""

from multicontrast import distributed, linalg, metrics
from multicontrast._version import __version__
from multicontrast.cached import cached_step
from multicontrast.losses import (
    Diagnostics,
    MemoryQueue,
    MultimodalInfoNCE,
    PairwiseInfoNCE,
    TermDiagnostics,
    TrimodalInfoNCE,
    TripletInfoNCE,
    multimodal_infonce,
    pairwise_infonce,
    sample_tuples,
    trimodal_infonce,
    triplet_infonce,
)
from multicontrast.temperature import Temperature, param_groups

__all__ = [
    "Diagnostics",
    "MemoryQueue",
    "MultimodalInfoNCE",
    "PairwiseInfoNCE",
    "Temperature",
    "TermDiagnostics",
    "TrimodalInfoNCE",
    "TripletInfoNCE",
    "__version__",
    "cached_step",
    "distributed",
    "linalg",
    "metrics",
    "multimodal_infonce",
    "pairwise_infonce",
    "param_groups",
    "sample_tuples",
    "trimodal_infonce",
    "triplet_infonce",
]
