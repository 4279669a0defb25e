"""Contrastive losses: a function for each, and a thin module over it that owns or shares a temperature."""

from multicontrast.losses._diagnostics import Diagnostics, TermDiagnostics
from multicontrast.losses.multimodal import MultimodalInfoNCE, multimodal_infonce
from multicontrast.losses.pairwise import PairwiseInfoNCE, pairwise_infonce
from multicontrast.losses.queue import MemoryQueue
from multicontrast.losses.trimodal import TrimodalInfoNCE, trimodal_infonce
from multicontrast.losses.triplet import TripletInfoNCE, triplet_infonce

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
    "trimodal_infonce",
    "triplet_infonce",
]
