"""Score-based generative modelling: the equations and a network, independent of poses and data.

``sde`` holds the processes (sub-VP, VP, VE), ``score_network`` the noise estimate, ``loss`` denoising score matching,
``sampler`` the samplers from noise to data.
"""

from unihpe_ref.diffusion.loss import denoising_loss
from unihpe_ref.diffusion.sampler import SAMPLERS, sample
from unihpe_ref.diffusion.score_network import ScoreNetwork
from unihpe_ref.diffusion.sde import SDES, VE, VP, SubVP, make_sde

__all__ = ["SAMPLERS", "SDES", "VE", "VP", "ScoreNetwork", "SubVP", "denoising_loss", "make_sde", "sample"]
