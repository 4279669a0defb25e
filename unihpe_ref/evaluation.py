"""Evaluates a model: lifting, image to 3D and image to 2D, each beside a baseline that sees no input.

3D errors are millimetres relative to the pelvis: MPJPE (Protocol 1, all joints, no scaling) and PA-MPJPE (Protocol 2,
after a similarity without reflection), the latter also over LSP's 14 joints, as on 3DPW. MPI-INF-3DHP's protocol adds
3DPCK at 150 mm and its AUC, as the data set's own evaluation has them. 2D errors follow mmpose, with which the paper
compares: PCK@0.05, whose norm is the larger side of the tight box times 1.2, and EPE in pixels of the full image. Every
number is reported as a mean over frames and as the unweighted mean over the actions' means, because papers print
either. Retrieval reports how often the nearest embedding of another modality is from the same frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from multicontrast.metrics import (
    auc3d,
    cosine_alignment,
    epe,
    median_rank,
    mpjpe,
    pa_mpjpe,
    pck,
    pck3d,
    retrieval_recall,
)
from multicontrast.metrics.keypoints import AUC3D_THRESHOLDS
from unihpe_ref.config import EvaluationConfig
from unihpe_ref.data import SKELETON, PoseBatch, denormalise_joints, tight_box_size
from unihpe_ref.data.layouts import LSP_14
from unihpe_ref.data.source import FrameSource
from unihpe_ref.flipping import lift_flipped
from unihpe_ref.models import UniHPE
from unihpe_ref.models.decoders import MLPDecoder

_MILLIMETRES = 1000.0
_PCK_THRESHOLD, _PCK_BOX = 0.05, 1.2  # mmpose's box for Human3.6M relative to the tight one
_RETRIEVED = 10
_PCK3D_THRESHOLD = 150.0  # mm
UNITS = {
    "MPJPE": "mm",
    "PA-MPJPE": "mm",
    "PA-MPJPE-14": "mm",
    "3DPCK@150": "%",
    "AUC": "%",
    "PCK@0.05": "%",
    "EPE": "px",
}


@dataclass(frozen=True)
class PathResult:
    """The results of one path through the model: both means of each metric, and the actions' means."""

    name: str
    frame_mean: Mapping[str, float]
    action_mean: Mapping[str, float]
    per_action: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """Results of every path on the same frames."""

    frames: int
    actions: Sequence[str]
    paths: Sequence[PathResult]
    retrieval: Mapping[str, Mapping[str, float]]  # "img to 3d" -> recall@1, recall@10 (%), median rank, cosine

    def path(self, name: str) -> PathResult:
        """The result of that name; KeyError if the model lacks the path."""
        return {result.name: result for result in self.paths}[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "frames": self.frames,
            "units": UNITS,
            "paths": {
                result.name: {key: held for key, held in asdict(result).items() if key != "name"}
                for result in self.paths
            },
            "retrieval": {name: dict(values) for name, values in self.retrieval.items()},
        }


@dataclass(frozen=True)
class MeanPose:
    """The baseline without input: the mean of the training poses, in the frame of the camera and of the box."""

    joints_3d: Tensor  # (J, 3) metres
    joints_2d: Tensor  # (J, 2) normalised by the box

    @staticmethod
    def of(source: FrameSource, config: EvaluationConfig) -> MeanPose:
        """Over every ``config.stride``-th frame of ``source``, the training split without images."""
        sums_3d, sums_2d, count = [], [], 0
        for batch in _batches(source, config):
            sums_3d.append(batch.joints_3d.double().sum(0))
            sums_2d.append(batch.joints_2d_normalised().double().sum(0))
            count += len(batch)
        return MeanPose(*((sum(sums[1:], start=sums[0]) / count).float() for sums in (sums_3d, sums_2d)))


def evaluate(
    model: UniHPE, source: FrameSource, mean_pose: MeanPose | None, config: EvaluationConfig, *, seed: int = 0
) -> Evaluation:
    """Runs every path of ``model`` over ``source``.

    Args:
        model: in evaluation mode.
        source: the split to evaluate; with images if the model encodes them.
        mean_pose: of the training split; None leaves the baseline out.
        config: which frames.
        seed: of the score-based decoders' noise.
    """
    generator = torch.Generator().manual_seed(seed)
    errors: dict[str, dict[str, list[Tensor]]] = {}
    actions: list[Tensor] = []
    embeddings: dict[str, list[Tensor]] = {}
    for batch in _batches(source, config):
        actions.append(batch.action)
        for name, rows in _embed(model, batch).items():
            embeddings.setdefault(name, []).append(rows)
        for name, values in _errors(model, batch, mean_pose, source, generator).items():
            for metric, value in values.items():
                errors.setdefault(name, {}).setdefault(metric, []).append(value.cpu())
    action = torch.cat(actions)
    present = [name for k, name in enumerate(source.action_names) if bool((action == k).any())]
    results = []
    for name, parts in errors.items():
        values = {metric: torch.cat(rows).double() for metric, rows in parts.items()}
        per_action = {
            chosen: {
                metric: v[action == source.action_names.index(chosen)].mean().item() for metric, v in values.items()
            }
            for chosen in present
        }
        results.append(
            PathResult(
                name,
                {metric: v.mean().item() for metric, v in values.items()},
                {metric: sum(means[metric] for means in per_action.values()) / len(present) for metric in values},
                per_action,
            )
        )
    return Evaluation(len(action), present, results, _retrieval(embeddings))


@torch.no_grad()
def _embed(model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
    """Embeddings by modality."""
    batch = batch.to(model.device)
    rows = {"2d": model.encode(**batch.inputs_2d()).cpu()}
    if model.config.lifting_only:
        return rows
    rows["3d"] = model.encode(kp3d=batch.joints_3d).cpu()
    if model.image_encoder is None or batch.image is None:
        return rows
    return {"img": model.encode(image=batch.image).cpu(), **rows}


def _retrieval(parts: Mapping[str, Sequence[Tensor]]) -> dict[str, dict[str, float]]:
    """Retrieval between any two modalities that every frame has; empty if there are too few frames."""
    embeddings = {name: torch.cat(list(rows)) for name, rows in parts.items()}
    whole = [name for name, rows in embeddings.items() if len(rows) > _RETRIEVED and bool(rows.isfinite().all())]
    return {
        f"{a} to {b}": {
            "recall@1": 100 * retrieval_recall(embeddings[a], embeddings[b], k=1).item(),
            f"recall@{_RETRIEVED}": 100 * retrieval_recall(embeddings[a], embeddings[b], k=_RETRIEVED).item(),
            "median rank": median_rank(embeddings[a], embeddings[b]).item(),
            "cosine": cosine_alignment(embeddings[a], embeddings[b]).item(),
        }
        for a, b in permutations(whole, 2)
    }


@torch.no_grad()
def _errors(
    model: UniHPE, batch: PoseBatch, mean_pose: MeanPose | None, source: FrameSource, generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """One number per sample, by path and by metric."""
    batch = batch.to(model.device)
    inputs: dict[str, Any] = batch.inputs_2d()
    lifted = model.lift(**inputs, generator=generator)
    found = {}
    if mean_pose is not None:
        guess = mean_pose.joints_3d.to(model.device).expand_as(batch.joints_3d)
        found["mean pose, 3D"] = _errors_3d(guess, batch, source)
    found["2D to 3D"] = _errors_3d(lifted, batch, source)
    if isinstance(model.decoder_3d, MLPDecoder):  # decoding twice is cheap
        found["2D to 3D, flip"] = _errors_3d(lift_flipped(model, **inputs), batch, source)
    if model.image_encoder is not None and batch.image is not None:
        estimate = model.estimate(batch.image, batch.box_info(), generator=generator)
        found["image to 3D"] = _errors_3d(estimate.joints_3d, batch, source)
        if mean_pose is not None:
            guess = mean_pose.joints_2d.to(model.device).expand_as(batch.joints_2d)
            found["mean pose, 2D"] = _errors_2d(guess, batch)
        found["image to 2D"] = _errors_2d(estimate.joints_2d, batch)
    return found


def _errors_3d(joints: Tensor, batch: PoseBatch, source: FrameSource) -> dict[str, Tensor]:
    """3D errors relative to the pelvis, whichever joints are averaged (and aligned for PA-MPJPE)."""
    chosen, lsp = list(source.evaluated_joints), list(LSP_14)
    estimate, truth = joints[:, chosen], batch.joints_3d[:, chosen]
    errors = {
        "MPJPE": mpjpe(estimate, truth, reduction="none") * _MILLIMETRES,
        "PA-MPJPE": pa_mpjpe(estimate, truth, reduction="none") * _MILLIMETRES,
    }
    estimate, truth = joints[:, lsp], batch.joints_3d[:, lsp]
    if len(chosen) == SKELETON.num_joints:
        errors["PA-MPJPE-14"] = pa_mpjpe(estimate, truth, reduction="none") * _MILLIMETRES
    if "3DPCK@150" in source.evaluated_metrics:  # over the same 14: without pelvis, spine and the middle of the head
        poses = estimate * _MILLIMETRES, truth * _MILLIMETRES
        share = pck3d(*poses, threshold=_PCK3D_THRESHOLD, root=None, reduction="none")
        area = auc3d(*poses, thresholds=AUC3D_THRESHOLDS, root=None, reduction="none")
        errors |= {"3DPCK@150": 100 * share, "AUC": 100 * area}
    return errors


def _errors_2d(joints: Tensor, batch: PoseBatch) -> dict[str, Tensor]:
    pixels = denormalise_joints(joints, batch.box)
    size = _PCK_BOX * tight_box_size(batch.joints_2d).amax(-1)
    share = pck(pixels, batch.joints_2d, size, threshold=_PCK_THRESHOLD, reduction="none")
    return {"PCK@0.05": 100 * share, "EPE": epe(pixels, batch.joints_2d, reduction="none")}


def _batches(source: FrameSource, config: EvaluationConfig) -> Iterator[PoseBatch]:
    for indices in source.evaluation_indices(config.stride).split(config.batch_size):
        yield source.evaluation_batch(indices)
