"""Public functions return a right value or raise an error in three parts, for any argument; see ``any_argument``.

``python tests/test_any_argument.py metrics linalg`` prints what falls, by function.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from any_argument import Subject, falls, falls_in_twos, show
from torch import Tensor, nn

import multicontrast as mc
import unihpe_ref
from multicontrast import _checks, metrics
from multicontrast.losses import sample_tuples
from unihpe_ref import data, diffusion, models
from unihpe_ref.config import ModelConfig, SamplerConfig
from unihpe_ref.models.vit import ViTEncoder
from unihpe_ref.parts import Part
from unihpe_ref.report import PoseReport

# --- Valid calls: an argument has the value of its name, unless a call says otherwise ---------------------------------


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _subject(function: Callable[..., Any], values: dict[str, Any], like: Any = None, **others: Any) -> Subject:
    """A call with those of the values that the function takes, and with all others. ``like`` has its signature."""
    names = inspect.signature(like or function).parameters
    if like is not None:
        function.__signature__ = inspect.signature(like)  # type: ignore[attr-defined]
    return Subject(function, {name: value for name, value in (values | others).items() if name in {*names, *others}})


def _subjects(home: Any, values: dict[str, Any], calls: dict[str, Any], prefix: str = "") -> dict[str, Subject]:
    """One call of each function of a module, or method of an object, by name."""
    return {f"{prefix}{name}": _subject(getattr(home, name), values, **others) for name, others in calls.items()}


def _several(names: str, **others: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names.split(), others)


_XS = [_random(4, 5, seed=m) for m in range(3)]


def _loss_values(count: int) -> dict[str, Any]:
    """By the number of modalities."""
    values = {"x": _XS[0], "y": _XS[1], "x_img": _XS[0], "x_2d": _XS[1], "x_3d": _XS[2], "embeddings": _XS}
    values |= {"tau": 0.1, "temperature": 0.1, "reduction": "mean", "normalize": True, "tiled": False, "gather": False}
    values |= {"ring": False, "label_smoothing": 0.1, "hardness": 0.5, "similarity": "eigenvalue", "alpha": 1.0}
    values |= {"negatives": "permutation", "num_negatives": 2, "anchor": 0, "generator": torch.Generator()}
    values |= {"pairs": ((0, 1), (0, 2), (1, 2)), "diagnostics": mc.Diagnostics(), "ids": torch.tensor([0, 1, 2, 2])}
    values |= {"weight": torch.tensor([1.0, 2.0, 0.5, 1.0]), "present": torch.ones(4, count, dtype=torch.bool)}
    return values | {"extra_negatives": [_random(2, 5, seed=9 + m) for m in range(count)]}


class _Encoder(nn.Module):
    """Of anything that has rows: what an encoder raises is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x.float().reshape(len(x), math.prod(x.shape[1:])).cumsum(1) + self.weight


def _losses() -> dict[str, Subject]:
    index = torch.tensor([[0, 0, 0], [1, 2, 3]]).repeat(4, 1, 1)
    index[:, 0] = torch.arange(4)[:, None]
    found: dict[str, Subject] = {}
    for kind, symmetric in (("Pairwise", True), ("Triplet", False), ("Multimodal", False), ("Trimodal", True)):
        values = _loss_values(2 if kind == "Pairwise" else 3) | {"symmetric": symmetric}
        module, name = getattr(mc, f"{kind}InfoNCE"), f"{kind.lower()}_infonce"
        inputs = [values[name] for name in inspect.signature(module.forward).parameters if name in _INPUTS]
        found[name] = _subject(getattr(mc, name), values)
        found[module.__name__] = _subject(lambda m=module, xs=inputs, **given: m(**given)(*xs), values, module)
        found[f"{module.__name__}.forward"] = _subject(
            module(0.1).forward, values | {"negatives": index, "diagnostics": None}
        )
    held, tau, queue = mc.Temperature(0.1), mc.Temperature, mc.MemoryQueue
    optimizer = torch.optim.SGD(mc.param_groups(held, 0.1), lr=0.1)
    module = nn.ModuleList([nn.Linear(2, 2), held])
    bounds = {"max": 10.0, "learnable": True}
    names = {"similarity": "multilinear", "num_modalities": 3, "dim": 8, "base": 0.07, "min": 0.001}
    steps = {"encoders": [_Encoder(), _Encoder()], "inputs": [_random(4, 2), _random(4, 2, seed=1)], "chunk_size": 2}
    steps |= {"loss": mc.PairwiseInfoNCE(0.1), "scaler": torch.amp.GradScaler("cpu", enabled=False)}
    tuples = {"batch_size": 4, "num_modalities": 3, "num_negatives": 2, "scheme": "permutation", "device": "cpu"}
    tuples |= {"exclude_positive": True, "generator": torch.Generator()}
    groups = mc.param_groups
    return found | {
        "Diagnostics": Subject(mc.Diagnostics, {"sampling_gap": True}),
        "MemoryQueue": _subject(lambda **o: queue(**o)(), {"size": 3, "dim": 5, "num_modalities": 2}, queue),
        "MemoryQueue.push": Subject(queue(3, 5).push, {"embeddings": [_random(2, 5), _random(2, 5, seed=1)]}),
        "Temperature": _subject(lambda **o: tau(**o)(), bounds, tau, init=0.2, min=0.1),
        "Temperature.preset": _subject(lambda **o: tau.preset(**o)(), bounds, tau.preset, name="clip"),
        "Temperature.for_similarity": _subject(
            lambda **o: tau.for_similarity(**o)(), bounds, tau.for_similarity, **names
        ),
        "Temperature.check_optimizer": Subject(
            lambda optimizers: held.check_optimizer(optimizers), {"optimizers": optimizer}
        ),
        "param_groups": _subject(
            lambda **o: [group["weight_decay"] for group in groups(**o)], {}, groups, module=module, weight_decay=0.1
        ),
        "cached_step": Subject(mc.cached_step, steps),
        "sample_tuples": Subject(sample_tuples, tuples),
    }


_INPUTS = ("x", "y", "x_img", "x_2d", "x_3d", "embeddings")


def _linalg() -> dict[str, Subject]:
    square = _random(2, 3, 3)
    values = {"A": square + square.mT, **{name: 0.3 * _random(4, seed=m).tanh() for m, name in enumerate("abc")}}
    return _subjects(mc.linalg, values, _several("eigh3 eigmax eigvalsh3 gram3_eigmax gram3_eigvals"))


def _pose_values(*shape: int) -> dict[str, Any]:
    """By the shape of the poses."""
    target = 100 * _random(*shape)
    values = {"pred": target + _random(*shape, seed=1), "target": target, "reduction": "mean", "root": 0, "fps": 25.0}
    values |= {"mask": torch.ones(shape[:-1], dtype=torch.bool), "scale": True, "allow_reflection": False, "dim": 0}
    values |= {"norm": torch.ones(2), "threshold": 0.5 if shape[-1] == 2 else 150.0, "thresholds": [0.0, 50.0, 150.0]}
    values |= {"strict": True, "average": "micro", "mode": "pose", "procrustes": False, "area": torch.ones(2)}
    values |= {"sigmas": list(metrics.COCO_SIGMAS), "scores": torch.tensor([0.9, 0.8]), "max_detections": 20}
    values |= {"pred_image": torch.tensor([0, 1]), "target_image": torch.tensor([0, 1]), "group": ["a", "b"]}
    return values | {"ids": [0, 1], "groups": ["a", "b"]}


_POSES, _PIXELS, _CLIPS = _pose_values(2, 17, 3), _pose_values(2, 17, 2), _pose_values(2, 5, 17, 3)
_OF_ALL = {"mask": torch.ones(17, dtype=torch.bool)}
_DRAWN = _POSES | {"pred": 100 * _random(4, 2, 17, 3), "joints": [0, 1, 2]}
_EMBEDDED = {"x": _XS[0], "y": _XS[1], "embeddings": _XS, "query": _XS[0], "gallery": _XS[1], "normalize": True}
_EMBEDDED |= {"match": torch.tensor([0, 1, 2, 3]), "ties": "pessimistic", "k": [1, 2], "reduction": "mean", "t": 2.0}
_EMBEDDED |= {"alpha": 2.0, "ids": [0, 1, 2, 3]}
_EMBEDDINGS = "cosine_alignment alignment modality_gap uniformity effective_rank cosine_matrix sign_flipped_share"
_EMBEDDINGS += " retrieval_ranks retrieval_recall median_rank mean_reciprocal_rank"
_CLASSES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("MPJPE", "NMPJPE", "PAMPJPE", "PCK3D", "AUC3D"), _POSES),
    **dict.fromkeys(("EPE", "PCK", "PCKh", "OKS"), _PIXELS),
    **dict.fromkeys(("MPJVE", "AccelError"), _CLIPS),
    **dict.fromkeys(("MinMPJPE", "CPS"), _DRAWN),
    **dict.fromkeys(("RetrievalRecall", "ModalityAlignment"), _EMBEDDED),
}


def _metric(name: str, values: dict[str, Any]) -> dict[str, Subject]:
    kind = getattr(metrics, name)
    options = _subject(kind, values, sync_on_compute=True).arguments
    update = _subject(kind.update, values).arguments

    def used(**given: Any) -> Any:
        metric = kind(**given)
        grouped = given.get("groups") is not None
        metric.update(**{key: value for key, value in update.items() if key != "group" or grouped})
        return metric.compute()

    def updated(**given: Any) -> Any:
        metric = kind(**options)
        metric.update(**given)
        return metric.compute()

    return {name: _subject(used, {}, kind, **options), f"{name}.update": _subject(updated, update, kind.update)}


def _metrics() -> dict[str, Subject]:
    found = _subjects(metrics, _POSES, _several("mpjpe n_mpjpe pa_mpjpe pck3d auc3d procrustes_align"))
    found |= _subjects(metrics, _PIXELS, _several("epe pck pckh oks") | {"keypoint_ap": {"thresholds": [0.5, 0.75]}})
    found |= _subjects(metrics, _CLIPS, _several("mpjve accel_error"))
    found |= _subjects(metrics, _DRAWN, _several("cps min_mpjpe"))
    norms: dict[str, dict[str, Any]] = {"bbox_norm": {"kind": "max"}, "torso_norm": {"first": 0, "second": 1}}
    norms["head_norm"] = {"box": torch.tensor([[0.0, 0.0, 2.0, 3.0]])}
    found |= _subjects(metrics, _PIXELS | _OF_ALL, norms)
    found |= _subjects(metrics, _EMBEDDED, _several(_EMBEDDINGS))
    for name, values in _CLASSES.items():
        found |= _metric(name, values)
    found["Accumulator.merge"] = Subject(metrics.MPJPE(root=0).merge, {"other": metrics.MPJPE(root=0)})
    return found


def _report() -> dict[str, Subject]:
    options = {"actions": ["a", "b"], "subjects": ["s"], "joint_names": [str(j) for j in range(17)], "root": 0}
    options |= {"parents": [-1, *range(16)], "unit": "mm", "unit_scale": 1.0, "examples": 4}
    batch = {"pred": _POSES["pred"], "target": _POSES["target"], "ids": [0, 1], **_OF_ALL}
    batch |= {"action": ["a", "b"], "subject": ["s", "s"]}

    def used(**given: Any) -> Any:
        report = PoseReport(**given)
        report.update(**batch)
        return report.compute()

    def updated(**given: Any) -> Any:
        report = PoseReport(**options, metrics={"MPJPE": metrics.MPJPE})
        report.update(**given)
        return report.compute()

    report = PoseReport(**options)
    report.update(**batch)
    tables = _several("to_markdown to_latex", digits=1)
    return {
        "PoseReport": _subject(used, options, PoseReport),
        "PoseReport.update": _subject(updated, batch, PoseReport.update),
        "PoseReport.merge": Subject(PoseReport(**options).merge, {"other": PoseReport(**options)}),
        **_subjects(report, {}, tables, "PoseReport."),
        **_subjects(report.compute(), {}, tables, "PoseResult."),
    }


def _distributed() -> dict[str, Subject]:
    return {"gather_rows": _subject(mc.distributed.gather_rows, {"x": _XS[0]})}


def _lifter() -> dict[str, Subject]:
    lifter, load = unihpe_ref.load_lifter(), {"device": "cpu", "joints_2d": "annotated", "whole": False}
    seen = {"joints_px": 200 * _random(2, 17, 2).sigmoid(), "image_size": torch.tensor([640.0, 480.0])}
    known = seen | {"intrinsics": torch.tensor([[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]])}

    def lift(**given: Any) -> Any:
        return vars(lifter.lift(**given))

    return {
        "load_lifter": _subject(unihpe_ref.load_lifter, load),
        "Lifter.lift": _subject(lift, known, lifter.lift, flip=True, generator=torch.Generator()),
        "Lifter.lift by image_size": _subject(lift, seen, lifter.lift),
        "Lifter.embed_2d": _subject(lifter.embed_2d, known),
    }


def _halved(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x


def _diffusion() -> dict[str, Subject]:
    times = torch.tensor([0.0, 0.5, 1.0])

    def process(kind: type, **options: float) -> Subject:
        def made(**given: Any) -> list[Tensor]:
            held = kind(**given)
            return [getattr(held, name)(times) for name in ("mean", "std", "drift", "diffusion_squared")]

        return _subject(made, options, kind)

    def network(**given: Any) -> Tensor:
        made = diffusion.ScoreNetwork(**given)
        projected = made.project(torch.ones(3, made.stem.condition.in_features))
        return made(torch.ones(3, made.out.out_features), torch.ones(3), projected)

    sizes = {"size": 6, "condition_width": 4, "width": 32, "time_width": 8, "blocks": 1}
    values = {"estimate_noise": _halved, "sde": diffusion.SubVP(), "generator": torch.Generator(), "x0": _random(2, 5)}
    values |= {"reduction": "mean", "part": Part.whole(2), "time_steps": 10, "weight": torch.ones_like}
    values |= {"shape": (2, 3), "sampler": "sde", "steps": 3, "device": "cpu", "dtype": torch.float32, "name": "vp"}
    values |= sizes | {"dropout": 0.25, "parameterisation": "preconditioned", "spread": 0.2}
    return {
        "VP": process(diffusion.VP, beta_min=0.1, beta_max=20.0),
        "SubVP": process(diffusion.SubVP, beta_min=0.1, beta_max=20.0),
        "VE": process(diffusion.VE, sigma_min=0.01, sigma_max=50.0),
        "ScoreNetwork": _subject(network, values, diffusion.ScoreNetwork),
        "ScoreNetwork.project": _subject(
            torch.no_grad()(diffusion.ScoreNetwork(**sizes).project), {"condition": _random(3, 4)}
        ),
        **_subjects(diffusion, values, _several("make_sde denoising_loss sample")),
    }


class _Mean(nn.Module):
    """Stands for an image encoder."""

    def forward(self, image: Tensor) -> Tensor:
        _checks.check_shape("_Mean", "image", image, ("B", 3, "H", "W"))
        return image.mean((2, 3)).repeat(1, 3)[:, :8]


def _models() -> dict[str, Subject]:
    sizes = {"encoder_width": 8, "encoder_layers": 1, "encoder_heads": 2, "encoder_feedforward": 8, "decoder_blocks": 0}
    sizes |= {"decoder_width": 64, "decoder_time_width": 4, "embedding_dim": 8, "image_encoder": "none"}
    config, sampler = ModelConfig(**sizes, encoder_noise_token=True), SamplerConfig(steps=2)
    model = models.UniHPE(config, sampler).eval()
    model.image_encoder = _Mean()
    with torch.device("meta"):
        encoder = ViTEncoder("vit_s", 8)
    weights, generator = encoder.backbone.state_dict(), torch.Generator()
    poses, image = _random(2, 17, 3), _random(2, 3, 32, 32)
    seen = {"kp2d": _random(2, 17, 2), "box_info": _random(2, 3), "joint_noise": torch.full((2,), 0.01)}
    values = {"embedding": _random(2, 8), "box_info": _random(2, 3), "hypotheses": 2, "sampling": sampler}
    values |= {"generator": generator, "modality": "2d", "source": "2d", "target": "3d", "part": Part.whole(2)}
    values |= {"embeddings": {"2d": _random(2, 8)}, "joints_2d": _random(2, 17, 2), "joints_3d": poses}
    methods = {"encode": seen, "with_joint_noise": {"joint_noise": 0.01}, "lift": seen, "estimate": {"image": image}}
    methods |= _several("decode decode_2d decode_3d decoding_losses")

    def method(name: str, values: dict[str, Any], **others: Any) -> Subject:
        bound = getattr(model, name)
        return _subject(torch.no_grad()(bound), values, bound, **others)

    hypotheses, target = _random(3, 2, 17, 3), _random(2, 17, 3, seed=1)
    calls = {
        "parameters": {"module": nn.Linear(2, 2)},
        "multiply_adds": {"call": lambda: torch.eye(2) @ torch.eye(2)},
        "costs": {"config": config, "image_size": (256, 192)},
        "mean_hypothesis": {"hypotheses": hypotheses},
        "best_hypothesis": {"hypotheses": hypotheses, "target": target},
        "retrieve": {"query": _random(2, 5), "gallery": _random(4, 5, seed=1), "k": 2},
        "load_pose_weights": {"encoder": encoder, "weights": weights, "fuse_init": "zero", "imagenet": weights},
    }

    def made(**given: Any) -> Tensor:
        return models.UniHPE(**given).encode(kp3d=poses).detach()

    return {
        "UniHPE": _subject(made, {"config": config, "sampler": sampler}, models.UniHPE),
        "UniHPE.encode by kp3d": method("encode", {"kp3d": poses}),
        "UniHPE.encode by image": method("encode", {"image": image}),
        **{f"UniHPE.{name}": method(name, {} if name == "encode" else values, **own) for name, own in methods.items()},
        **_subjects(models, {}, calls),
    }


def _geometry() -> dict[str, Subject]:
    camera, skeleton = data.fixed_cameras()[:2], data.SKELETON
    own = {field.name: getattr(camera, field.name) for field in dataclasses.fields(camera)}
    tree = {field.name: getattr(skeleton, field.name) for field in dataclasses.fields(skeleton)}
    points, pixels = _random(2, 17, 3) + torch.tensor([0.0, 0.0, 5.0]), 500 + 100 * _random(2, 17, 2)
    affine = torch.tensor([[[2.0, 0.1, 3.0], [0.1, 2.0, 1.0]]] * 2)
    ranges = {"distance": (4.0, 6.0), "height": (1.0, 2.0), "focal": (1000.0, 1100.0), "roll_degrees": 2.0, "count": 2}
    values = own | {"points": points, "affine": affine, "intrinsics": camera.intrinsics, "joints_px": pixels}
    values |= {"box": torch.tensor([[500.0, 500.0, 300.0]] * 2), "image": _random(2, 3, 4, 4), "distort": True}
    values |= {"eye": _random(2, 3), "target": _random(2, 3, seed=1), "padding": 1.25, "aspect": 0.75}
    values |= {"crop_size": (256, 192), "convention": "udp", "joints": _random(2, 17, 3), "angle": _random(2)}
    plain = "Camera project intrinsic_matrix crop_intrinsics look_at joint_box tight_box_size normalise_joints"
    plain += " box_information crop_affine invert_affine flip_joints limb_lengths normalise_image denormalise_image"
    calls = _several(plain) | {
        "random_camera": ranges | {"generator": torch.Generator()},
        "denormalise_joints": {"joints": _random(2, 17, 2)},
        "apply_affine": {"points": pixels},
        "Skeleton": tree,
        "flip_pixels": {"width": torch.tensor([640.0, 1000.0])},
    }
    return {
        **_subjects(data, values, calls),
        **_subjects(camera, values, _several("world_to_camera camera_to_world project rolled"), "Camera."),
        "flip_pixels by number": _subject(data.flip_pixels, values, width=640.0),
        "Skeleton.index": Subject(skeleton.index, {"name": "head"}),
    }


def _motion() -> dict[str, Subject]:
    motion = data.generate_motion(0, actions=("walk", "wave"), num_subjects=2, num_test_subjects=1, seconds=0.4)
    source, generator = data.PoseSource(motion, augment=True), torch.Generator()
    fields = {field.name: getattr(motion, field.name) for field in dataclasses.fields(motion)}
    shares = {field.name: 0.1 for field in dataclasses.fields(data.Augmentation)}
    indices = torch.tensor([0, 5, 12])
    options = {"motion": motion, "cameras": "fixed", "augment": False, "seed": 0, "view": "box", "joint_noise": 0.01}
    options |= {"action_names": ["walk", "wave"], "subject_names": ["G1", "G2"], "image_size": None}
    made = {"seed": 0, "actions": ["walk"], "num_subjects": 2, "num_test_subjects": 1, "takes": 1, "seconds": 0.2}

    def used(**given: Any) -> Any:
        source = data.PoseSource(**given)
        generator.manual_seed(0)
        return [vars(batch) for batch in (source.batch(indices, generator), source.evaluation_batch(indices))]

    def drawn(**given: Any) -> Tensor:
        return next(source.sampler(**given))

    values = {"indices": indices, "rows": slice(0, 2), "generator": generator, "camera": 1, "stride": 2, "name": "test"}
    return {
        "Motion": _subject(data.Motion, fields),
        "Motion.select": Subject(motion.select, {"split": "test"}),
        "Motion.every": Subject(motion.every, {"step": 2}),
        "generate_motion": _subject(data.generate_motion, made, fps=10.0),
        "Augmentation": _subject(data.Augmentation, shares),
        "PoseSource": _subject(used, options, data.PoseSource),
        **_subjects(source, values, _several("split batch evaluation_batch evaluation_indices"), "PoseSource."),
        "PoseSource.sampler": _subject(drawn, values, source.sampler, batch_size=2, min_gap_seconds=0.1),
    }


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)  # of the models' weights, whatever was imported before
    SUBJECTS = {
        "losses": _losses(),
        "metrics": _metrics(),
        "linalg": _linalg(),
        "distributed": _distributed(),
        "report": _report(),
        "lifter": _lifter(),
        "diffusion": _diffusion(),
        "models": _models(),
        "geometry": _geometry(),
        "motion": _motion(),
    }
# Areas of unihpe_ref; all public names of those with a module here are tried.
_REFERENCE: dict[str, ModuleType | None] = {
    "report": None,
    "lifter": None,
    "geometry": None,
    "motion": None,
    "diffusion": diffusion,
    "models": models,
}

# Public, and not tried; with the reason.
LEFT_OUT = {
    "TermDiagnostics": "made by a loss",
    "Temperature.register_parameter": "torch's",
    "Accumulator.plot": "a picture of torchmetrics' kind",
    "Accumulator.set_extra_state": "called by load_state_dict",
    "PoseMetric.mean_of": "called by reports",
    "Alignment": "made by procrustes_align",
    "Summary": "made by a metric",
    "PoseEstimate": "made by a model",
    "Retrieved": "made by retrieve",
    "PoseResult": "made by a report",
    "PoseMetric": "a base class: its options are tried in each metric",
    "Similarity": "a protocol",
    "ScoreNetwork.forward": "called at every step of a sampler",
    "ScoreNetwork.loss_weight": "called by denoising_loss",
    **{
        f"{kind}.{name}": "called at every step of a sampler"
        for kind in ("VP", "SubVP", "VE")
        for name in ("beta", "log_mean", "mean", "std", "drift", "diffusion_squared")
    },
    "CosineSimilarity.of_present": "called by the losses",
    "CosineSimilarity.with_gradient": "called by the losses",
    "CosineSimilarity.with_pullback": "called by the losses",
    "CosineSimilarity.without_gradient": "called by the losses",
    "Accumulator.forward": "the arguments of update",
    "Accumulator.merge_state": "torchmetrics' name of merge",
    "Accumulator.set_dtype": "torchmetrics' name, which does nothing",
    "PoseMetric.update": "tried in each metric",
    "MPJPE.update": "tried in each metric",
}


def rooms() -> list[ModuleType | None]:
    """The public modules of multicontrast."""
    return [mc, *(_imported(info.name) for info in pkgutil.walk_packages(mc.__path__, "multicontrast."))]


def public(rooms: list[ModuleType | None]) -> set[str]:
    """The names of all public functions, classes and methods of the modules that take an argument."""
    found = set()
    for room in rooms:
        if room is None or not hasattr(room, "__all__"):
            continue
        for name in room.__all__:
            value = getattr(room, name)
            if inspect.isclass(value):
                found |= {name} if _arguments(value) else set()
                found |= {f"{owner}.{method}" for owner, method in _methods(value)}
            elif callable(value) and not isinstance(value, ModuleType) and _arguments(value):
                found.add(name)
    return found


def _imported(name: str) -> ModuleType | None:
    hidden = any(part.startswith("_") or part == "triton" for part in name.split("."))  # kernels are private, too
    return None if hidden else __import__(name, fromlist=["x"])


def _methods(kind: type) -> Iterator[tuple[str, str]]:
    for method in dir(kind):
        owner = next((base for base in kind.__mro__ if method in vars(base)), kind)
        value = getattr(kind, method)
        ours = (
            owner.__module__.startswith(("multicontrast", "unihpe_ref"))
            and not method.startswith("_")
            and callable(value)
        )
        if ours and method != "function" and _arguments(value):  # of a metric: the function is tried by its own name
            # Each metric's own update is tried, also where the method is inherited.
            shown = kind if method == "update" and kind.__name__ in _CLASSES else owner
            yield shown.__name__, method


def _arguments(value: Any) -> list[str]:
    try:
        return [name for name in inspect.signature(value).parameters if name != "self"]
    except (TypeError, ValueError):
        return []


# --- The tests -------------------------------------------------------------------------------------------------------

# Arguments that are not tried.
NOT_TRIED = {
    "self": "",
    "group": "a group of processes",
    "process_group": "a group of processes",
    "path": "the files of load_lifter have tests of their own",
    "metrics": "what a report computes; its update is tried with one",
}


def test_every_public_name_is_tried_or_left_out_with_a_reason() -> None:
    tried = {name for subjects in SUBJECTS.values() for name in subjects}
    found = public(rooms())
    assert public([*rooms(), *_REFERENCE.values()]) - tried - set(LEFT_OUT) == set()
    assert tried - {name for area in _REFERENCE for name in SUBJECTS[area]} <= found, "no longer public"


def test_every_argument_has_a_value() -> None:
    for subjects in SUBJECTS.values():
        for name, (function, arguments) in subjects.items():
            if " by " not in name and name != "UniHPE.encode":  # other arguments of the same function
                names = {p.name for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD}
                assert names - {*arguments} <= {*NOT_TRIED}, name


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("area", "name"), [(area, name) for area, subjects in SUBJECTS.items() for name in subjects], ids=lambda x: x
)
def test_any_argument(area: str, name: str, thorough: bool) -> None:
    found = [*falls(*SUBJECTS[area][name], thorough), *falls_in_twos(*SUBJECTS[area][name])]
    assert not found, "\n".join(f"{fall.kind}: {name}({fall.argument}={fall.value}) {fall.what}" for fall in found)


def _checked(flag: Any, count: Any, number: Any, choice: Any, listed: Any, counts: Any, names: Any, x: Any) -> Tensor:
    """Checks its arguments as the library does."""
    flag = _checks.check_flag("f", "flag", flag)
    count = _checks.check_count("f", "count", count, 1, 10**6)
    number = _checks.check_number("f", "number", number)
    _checks.check_choice("f", "choice", choice, ("mean", "sum"))
    numbers = _checks.check_numbers("f", "listed", listed)
    counts = _checks.check_counts("f", "counts", counts)
    names = _checks.check_texts("f", "names", names)
    _checks.check_floating("f", "x", x)
    return x.float().sum() + flag + count + torch.tensor(number) + sum(numbers) + sum(counts) + len(names)


def _careless(flag: Any, count: Any, number: Any, choice: Any, listed: Any, counts: Any, names: Any, x: Any) -> Tensor:
    """Checks nothing."""
    return x.sum() * number + count + (1 if flag else 0) + len(choice) + sum(listed) + sum(counts) + len("".join(names))


_VALID = {"flag": True, "count": 2, "number": 0.5, "choice": "mean", "listed": [0.5, 1.0], "counts": [1, 2]}
_VALID |= {"names": ["a", "b"], "x": _random(2, 3)}


def test_the_shared_checks_handle_odd_values() -> None:
    assert list(falls(_checked, _VALID)) == []


def test_a_function_without_checks_falls_in_every_argument_and_kind() -> None:
    found = list(falls(_careless, _VALID))
    assert {fall.argument for fall in found} == set(_VALID)
    assert {fall.kind for fall in found} >= {"foreign", "unworded", "accepted"}


def _crossed(first: float, second: float) -> Tensor:
    """Refuses each argument in words, and texts for both without any."""
    if isinstance(first, str) and isinstance(second, str):
        raise KeyError(second)
    return torch.tensor(_checks.check_number("f", "first", first) + _checks.check_number("f", "second", second))


def test_a_fault_of_two_arguments_together_is_found() -> None:
    numbers = {"first": 0.5, "second": 0.5}
    assert list(falls(_crossed, numbers)) == []
    assert {fall.kind for fall in falls_in_twos(_crossed, numbers, tries=500)} == {"two at once"}


def test_an_answer_that_changes_is_found() -> None:
    calls: list[int] = []
    assert [fall.value for fall in falls(lambda: calls.append(0) or len(calls), {})] == ["the same call again"]


def _steep(x: Tensor) -> Tensor:
    """A rounding of its argument is visible in its value."""
    _checks.check_floating("f", "x", x)
    return 1e7 * x.mean((2, 3))


def _blind(x: Tensor) -> Tensor:
    """As steep, and it takes whatever strides memory has for a contiguous tensor's."""
    return _steep(x) + 1e7 * x.as_strided((2, 3), (3, 1))


def test_another_order_of_summation_is_no_other_answer() -> None:
    pictures, views = {"x": _random(2, 3, 32, 32)}, {"strided", "flipped memory", "subclass"}
    assert [fall for fall in falls(_steep, pictures) if fall.value in views] == []
    assert [fall.kind for fall in falls(_blind, pictures) if fall.value in views] == ["differs", "differs"]


if __name__ == "__main__":
    for area in sys.argv[1:] or SUBJECTS:
        show(area, SUBJECTS[area])
