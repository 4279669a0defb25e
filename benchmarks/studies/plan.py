"""The plan of the studies, written before the runs: every trial with its settings, its seed and its budget.

All trials train on the "train" takes of one recording of CMU motion capture and are judged on its "test" takes. Within
a study all rows have the same number of steps of the same batches. If a row leaves a stage out, its steps go to the
remaining stage, so that every row sees the same number of pictures. Sizes are chosen so that a trial takes one to four
minutes on one thread. A trial whose plan has changed is a new trial: results keep the settings that they were made
with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unihpe_ref.config import RunConfig
from unihpe_ref.presets import preset

SEEDS = (0, 1, 2)

_SMALL = {
    "data.scale": 0.0,
    "data.rotation_degrees": 0.0,
    "model.embedding_dim": 256,
    "model.encoder_width": 64,
    "model.encoder_layers": 2,
    "model.encoder_heads": 4,
    "model.encoder_feedforward": 128,
    "model.encoder_dropout": 0.0,
    "model.decoder_width": 256,
    "model.decoder_time_width": 64,
    "model.decoder_dropout": 0.0,
    "model.noise_draws": 4,
    "model.mlp_width": 256,
    "model.mlp_dropout": 0.0,
    "sampler.steps": 50,
    "stage1.final_learning_rate": 0.0,
    "stage1.learning_rate": 1e-3,
    "stage1.warmup_steps": 20,
    "stage3.final_learning_rate": 0.0,
    "stage3.warmup_steps": 20,
    "stage3.ema_decay": 0.99,
    "evaluation.stride": 60,
}
_POSES = _SMALL | {
    "model.image_encoder": "none",
    "stage1.steps": 150,
    "stage1.batch_size": 128,
    "stage3.steps": 800,
    "stage3.batch_size": 128,
    "stage3.learning_rate": 1e-3,
}
_PICTURES = _SMALL | {
    "data.image_size": (64, 64),
    "model.image_encoder": "hrnet_tiny",
    "stage1.steps": 100,
    "stage1.batch_size": 128,
    "stage2.steps": 150,
    "stage2.batch_size": 32,
    "stage2.learning_rate": 2e-3,
    "stage2.warmup_steps": 20,
    "stage3.steps": 400,
    "stage3.batch_size": 32,
    "stage3.learning_rate": 2e-3,
    "stage3.ema_decay": 0.97,
}
_NO_TRIPLET = {"stage3.alpha": 0.0}  # in stage 3, too, which the preset leaves as it is
_ALIGNMENT = _PICTURES | {"stage2.steps": 800, "stage3.steps": 0, "log_every": 5}
_CONTRAST = _ALIGNMENT | {"stage2.batch_size": 64, "stage2.steps": 300}

# Tables 4 and 6 once more, without the confounders of the first ones. Every decoder's loss is a mean square that starts
# at about 1, L_cl has the same weight relative to it as relative to half a sum over 51 coordinates, and each row gets
# the learning rate of stage 3 with the smallest error of the first seed. In Table 4 encoders have 0.085 million
# parameters and decoders 0.41 and 0.45; in Table 6 all rows have 1.98 million, and the sum of both errors, from 2D and
# from pictures, decides.
_EQUAL_LOSSES = {"model.parameterisation": "preconditioned", "model.denoising_reduction": "mean"}
_EQUAL_CONTRAST = {"stage3.contrastive_weight": 0.04}
_FAIR = (
    _POSES
    | _EQUAL_LOSSES
    | _EQUAL_CONTRAST
    | {
        "model.mlp_width": 96,
        "model.decoder_width": 160,
        "stage1.steps": 100,
        "stage3.steps": 400,
    }
)
_PAIRS_OF_PARTS = {
    "mlp-mlp": ("table4-mlp-mlp", {}),
    "transformer-mlp": ("table4-transformer-mlp", {}),
    "mlp-diffusion": ("table4-mlp-diffusion", {}),
    "transformer-diffusion": ("table4-transformer-diffusion", {}),
    "mlp-spread": ("table4-mlp-diffusion", {"model.posterior_spread": 0.2}),
    "transformer-spread": ("table4-transformer-diffusion", {"model.posterior_spread": 0.2}),
    "transformer-gfpose": ("table4-transformer-diffusion", {"model.parameterisation": "noise"}),
}
_NO_ALIGNMENT = {"stage1.steps": 0, "stage2.steps": 0, "stage3.steps": 550}
# Table 6: row -> (named settings of the paper, what the studies change)
_ALIGNED_BY = {
    "no-contrast": ("table6-no-contrast", _PICTURES | _NO_ALIGNMENT),
    "pairs": ("table6-pairs", _PICTURES | _NO_TRIPLET),
    "pairs-triplet": ("table6-pairs-triplet", _PICTURES),
    "pairs-triplet-token": ("table6-pairs-triplet-token", _PICTURES),
}
RATES = {"table4-fair": ("1e-3", "2e-3", "4e-3", "8e-3", "1.6e-2"), "table6-fair": ("1e-3", "2e-3", "4e-3", "8e-3")}
"""Learning rates of stage 3, ascending, for the studies whose rows are tuned."""
TUNED_ROWS = {"table4-fair": tuple(_PAIRS_OF_PARTS), "table6-fair": tuple(_ALIGNED_BY)}

# Study -> row -> (named settings of the paper, what the study changes)
_ROWS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    # Table 4: which 2D encoder and which 3D decoder lifts best?
    "table4": {
        "mlp-mlp": ("table4-mlp-mlp", _POSES),
        "transformer-mlp": ("table4-transformer-mlp", _POSES),
        "mlp-diffusion": ("table4-mlp-diffusion", _POSES),
        "transformer-diffusion": ("table4-transformer-diffusion", _POSES),
    },
    "table4-fair": {
        f"{pair}-{rate}": (named, _FAIR | changes | {"stage3.learning_rate": float(rate)})
        for rate in RATES["table4-fair"]
        for pair, (named, changes) in _PAIRS_OF_PARTS.items()
    },
    # How does the spread of drawn poses depend on `posterior_spread`? As "mlp-spread", with other values.
    "spread": {
        f"mlp-{spread}": (
            "table4-mlp-diffusion",
            _FAIR | {"model.posterior_spread": float(spread), "stage3.learning_rate": 4e-3},
        )
        for spread in ("0.05", "0.1", "0.4")
    },
    # Table 6: what does alignment change, for lifting and for images? Real photographs go through the last row too.
    "table6": _ALIGNED_BY,
    "table6-fair": {
        f"{row}-{rate}": (
            named,
            changes
            | _EQUAL_LOSSES
            | ({} if row == "no-contrast" else _EQUAL_CONTRAST)
            | {"stage3.learning_rate": float(rate)},
        )
        for rate in RATES["table6-fair"]
        for row, (named, changes) in _ALIGNED_BY.items()
    },
    # Figures 5 and 6: cosines of the positives over the steps of stage 2, and the space at its end.
    "fig5": {
        "pairs": ("table6-pairs", _ALIGNMENT | _NO_TRIPLET),
        "pairs-triplet": ("table6-pairs-triplet", _ALIGNMENT),
    },
    # Ours: B - 1 sampled negatives, or all that hold the anchor's first embedding? The row "sampled-equal-time" takes
    # as many steps as fit into the processor time that "exact" took with the same seed.
    "exact": {
        "sampled": ("table6-pairs-triplet", _CONTRAST),
        "exact": ("table6-pairs-triplet", _CONTRAST | {"stage2.negatives": "all"}),
        "sampled-equal-time": ("table6-pairs-triplet", _CONTRAST),
    },
}
EQUAL_TIME = "exact-sampled-equal-time"
MAX_STRETCH = 4.0  # limit on the steps of a trial, relative to the others


@dataclass(frozen=True)
class Trial:
    """One training run and its evaluations."""

    study: str
    row: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.study}-{self.row}-{self.seed}"

    @property
    def config(self) -> RunConfig:
        """The settings without the recording, whose path differs between machines."""
        named, changes = _ROWS[self.study][self.row]
        return preset(named).override(**changes, seed=self.seed)

    @property
    def aligns_only(self) -> bool:
        """Whether there is no stage 3, and so no pose to evaluate."""
        return self.config.stage3.steps == 0


def rows(study: str) -> tuple[str, ...]:
    """The rows of a study, in the order of its table."""
    return tuple(_ROWS[study])


STUDIES = tuple(_ROWS)
