"""A run of the paper: its parts from a configuration, its checkpoints, what it needs and where it ran."""

from unihpe_ref.runs.assembly import (
    evaluate_model,
    new_model,
    open_motion,
    open_source,
    open_training_source,
    train_model,
)

__all__ = ["evaluate_model", "new_model", "open_motion", "open_source", "open_training_source", "train_model"]
