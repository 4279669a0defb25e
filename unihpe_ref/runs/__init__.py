"""A run: its assembly from a configuration, its checkpoints, its memory and its environment."""

from unihpe_ref.runs.assembly import (
    evaluate_model,
    new_model,
    open_motion,
    open_source,
    open_training_source,
    train_model,
)

__all__ = ["evaluate_model", "new_model", "open_motion", "open_source", "open_training_source", "train_model"]
