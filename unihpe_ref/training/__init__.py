"""The training loop, its log, its seeds and its processes."""

from unihpe_ref.training.loop import Stage, StageState, choose_trained, fit, learning_rate_factor, make_optimizer

__all__ = ["Stage", "StageState", "choose_trained", "fit", "learning_rate_factor", "make_optimizer"]
