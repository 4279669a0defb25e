"""Contrastive losses: a function for each, and a thin module over it that owns or shares a temperature."""

from multicontrast.losses.api import multimodal_infonce, pairwise_infonce, trimodal_infonce, triplet_infonce
from multicontrast.losses.candidates import sample_tuples
from multicontrast.losses.diagnostics import Diagnostics, TermDiagnostics
from multicontrast.losses.modules import MultimodalInfoNCE, PairwiseInfoNCE, TrimodalInfoNCE, TripletInfoNCE
from multicontrast.losses.queue import MemoryQueue

__all__ = [
    "Diagnostics",
    "MemoryQueue",
    "MultimodalInfoNCE",
    "PairwiseInfoNCE",
    "TermDiagnostics",
    "TrimodalInfoNCE",
    "TripletInfoNCE",
    "multimodal_infonce",
    "pairwise_infonce",
    "sample_tuples",
    "trimodal_infonce",
    "triplet_infonce",
]
