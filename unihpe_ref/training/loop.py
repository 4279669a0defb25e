"""The training loop. A stage defines the embeddings and the losses; everything else about a step is here.

Batch, negatives, noise and dropout of step k depend on the seed and k only. So a resumed stage gives the same bits, and
workers, micro-batches and processes can share a batch without changing it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import combinations
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from multicontrast import Temperature, cached_step
from multicontrast._checks import three_beats
from unihpe_ref.config import StageConfig
from unihpe_ref.data import PoseBatch, Source
from unihpe_ref.models import UniHPE
from unihpe_ref.parts import Part
from unihpe_ref.training import processes
from unihpe_ref.training.logs import RunLog
from unihpe_ref.training.seeds import generator_of, seed_of

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stage(ABC):
    """One stage of the paper. Its objective is ``align`` plus the sum of ``decode``.

    Attributes:
        number: 1, 2 or 3, as in the paper. name: for the log and the display.
        needs_images: whether its batches hold pictures, if the model encodes them.
        config: its settings. temperature: of its contrastive loss; new in each stage.
        ema_decay: of the average of the weights, which is then the result; None if the last weights are the result.
    """

    number: int
    name: str
    needs_images = False

    def __init__(self, config: StageConfig) -> None:
        self.config: Any = config
        self.temperature = Temperature(config.temperature, min=config.temperature_min, max=config.temperature_max)
        self.ema_decay: float | None = getattr(config, "ema_decay", None)  # stages 1 and 2 have none

    @abstractmethod
    def trained(self, model: UniHPE) -> list[nn.Module]:
        """The parts that are trained; all others are frozen, in evaluation mode."""

    @abstractmethod
    def embed(self, model: UniHPE, batch: PoseBatch) -> dict[str, Tensor]:
        """Embeddings ``(B, D)`` by modality; each row depends on its own sample only."""

    @abstractmethod
    def align(self, embeddings: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """The contrastive loss of a batch, whose rows are compared with each other."""

    def decode(
        self, model: UniHPE, embeddings: dict[str, Tensor], batch: PoseBatch, generator: torch.Generator, part: Part
    ) -> dict[str, Tensor]:
        """The other losses, each a mean over independent samples; ``batch`` is this part of a whole batch."""
        return {}


def learning_rate_factor(step: int, config: StageConfig) -> float:
    """The factor of the peak learning rate at ``step`` (from 0): a linear warm-up, then half a cosine."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.final_learning_rate
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: UniHPE, stage: Stage) -> torch.optim.Optimizer:
    """Adam over the weights that the stage trains and its temperature, which has no weight decay.

    AdamW is Adam where the weight decay is zero, as in the paper.
    """
    weights = [parameter for part in stage.trained(model) for parameter in part.parameters()]
    groups = [
        {"params": weights, "weight_decay": stage.config.weight_decay},
        {"params": list(stage.temperature.parameters()), "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.config.learning_rate, fused=True)


class StageState:
    """The state of a stage in training, which a checkpoint holds.

    Attributes:
        model: the model in training.
        average: of its weights, if the stage has an ``ema_decay``; its ``module`` is a model.
        step: the number of steps done.
    """

    def __init__(self, stage: Stage, model: UniHPE, precision: str = "float32") -> None:
        self.stage = stage
        self.model = model
        self.step = 0
        stage.temperature.to(model.device)
        self.optimizer = make_optimizer(model, stage)
        self.average = None if stage.ema_decay is None else _average_of(model, stage.ema_decay)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=precision == "float16")

    @property
    def result(self) -> UniHPE:
        """The result of the stage at this step: the average if there is one."""
        return self.model if self.average is None else cast(UniHPE, self.average.module)

    def beside_the_weights(self) -> dict[str, Any]:
        """All state but the weights, as tensors and plain values for ``torch.load`` with ``weights_only=True``."""
        return {
            "stage": self.stage.number,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "temperature": self.stage.temperature.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": 0 if self.average is None else int(self.average.n_averaged),
        }

    def restore(self, beside: dict[str, Any], weights: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        """Takes the values of a checkpoint: what :meth:`beside_the_weights` gave, the weights, and their average.

        Raises: ValueError for moments that do not fit the weights, which fused AdamW would read beyond their end; for
            the others as ``load_state_dict``.
        """
        self.model.load_state_dict(weights)
        _check_moments(beside["optimizer"]["state"], self.optimizer)
        groups = self.optimizer.state_dict()["param_groups"]  # the run's own settings, not those of a file
        self.optimizer.load_state_dict({"state": beside["optimizer"]["state"], "param_groups": groups})
        self.stage.temperature.load_state_dict(beside["temperature"])
        self.scaler.load_state_dict(beside["scaler"])
        if self.average is not None:
            assert average is not None  # the checkpoint is of the same stage, which has an average
            self.average.module.load_state_dict(average)
            self.average.n_averaged.fill_(beside["averaged"])
        self.step = beside["step"]


def _check_moments(held: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in held.items():
        shapes = {name: tuple(value.shape) for name, value in moments.items()}
        own = tuple(parameters[number].shape) if number in range(len(parameters)) else None
        plain = all(value.layout is torch.strided and value.dtype is torch.float32 for value in moments.values())
        if shapes != {"step": (), "exp_avg": own, "exp_avg_sq": own} or not plain:
            needed = f"the optimizer needs float32 moments of weight {number}, of shape {own}"
            raise ValueError(three_beats(needed, str(shapes), "Continue from a checkpoint of this model."))


def fit(
    stage: Stage,
    model: UniHPE,
    source: Source,
    log: RunLog | None,
    *,
    seed: int,
    log_every: int = 10,
    min_gap_seconds: float = 1.0,
    precision: str = "float32",
    workers: int = 0,
    restore: Callable[[StageState], None] | None = None,
    save: Callable[[StageState], None] | None = None,
    save_every: int = 500,
) -> None:
    """Trains ``model`` in place through one stage.

    The seed fixes poses, cameras, dropout, negatives and noise. Two runs on one machine with the same number of threads
    give the same weights, bit for bit, even if one was interrupted and restored.

    Args:
        stage: names the trained parts and their losses.
        model: afterwards in evaluation mode, with no frozen weights; with their average if there is an ``ema_decay``.
        source: the training split.
        log: takes a record every ``log_every`` steps and for the last; None in processes that do not write.
        seed: of this stage.
        min_gap_seconds: between two frames of one sequence in one batch: near duplicates are false negatives.
        precision: ``"float32"``, or the type that autocast gives the networks; ``"float16"`` scales the loss.
        workers: processes that prepare batches.
        restore: brings the state to that of a checkpoint before the first step.
        save: writes a checkpoint, every ``save_every`` steps and after the last.
    Processes that share the run (see :mod:`unihpe_ref.training.processes`) each work on their rows of every batch.

    Raises: FloatingPointError when the loss is no longer finite.
    """
    config = stage.config
    choose_trained(model, stage)
    state = StageState(stage, model, precision)
    if restore is not None:
        restore(state)
    trained = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    processes.share_buffers(model)
    part = Part.whole(config.batch_size).split(processes.count())[processes.rank()]
    steps = range(state.step, config.steps)
    dataset = _Batches(source, config.batch_size, part, seed, min_gap_seconds)
    batches = DataLoader(dataset, batch_size=None, sampler=steps, num_workers=workers)

    if log is not None:
        log.begin_stage(stage.name, config.steps, state.step)
    for step, batch in zip(steps, batches):
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        state.optimizer.zero_grad()
        losses, embeddings = _backward(state, batch.to(model.device), part, seed, _DTYPES[precision])
        processes.average_gradients(trained)
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(trained, config.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average is not None:
            state.average.update_parameters(model)
        state.step = step + 1
        last = state.step == config.steps

        record = None
        if state.step % log_every == 0 or last:
            record = _record(losses, embeddings, part, norm, stage.temperature, state.optimizer)
        total = sum(losses.values())
        assert isinstance(total, Tensor)
        if record is not None or total.device.type == "cpu":  # on a GPU the check would make each step wait
            _check_finite(total.item(), stage, step)
        if log is not None:
            log.step(state.step, record)
        if save is not None and (state.step % save_every == 0 or last):
            save(state)
    if log is not None:
        log.end_stage()

    if state.average is not None and config.steps:
        model.load_state_dict(state.average.module.state_dict())
    model.requires_grad_(True).eval()


def _backward(
    state: StageState, batch: PoseBatch, part: Part, seed: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Adds the gradient of this part of a batch to the weights; returns its losses and its embeddings, detached."""
    stage, model = state.stage, state.model
    cast = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
    share = processes.count() * part.share  # this process's weight in a mean; 1 if all have as many rows
    losses: dict[str, Tensor] = {}
    seen: dict[str, list[Tensor]] = {}
    torch.manual_seed(seed_of(seed, "dropout", state.step, processes.rank()))

    def forward(rows: Tensor) -> dict[str, Tensor]:
        """Embeddings, and under the names ``decoding_...`` the decoding losses, repeated for each row."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        piece = Part(part.start + first, part.start + last, part.total)
        noise = generator_of(seed, "noise", state.step)  # of the whole batch
        with cast:
            embeddings = stage.embed(model, batch[first:last])
            terms = stage.decode(model, embeddings, batch[first:last], noise, piece)
        return {**embeddings, **{name: (share * term).expand(len(rows)) for name, term in terms.items()}}

    def objective(found: dict[str, Tensor], weight: float, *negatives: int) -> Tensor:
        embeddings = {name: value for name, value in found.items() if value.ndim == 2}
        terms = {"contrastive": stage.align(embeddings, generator_of(seed, "negatives", state.step, *negatives))}
        terms |= {name: value.mean() for name, value in found.items() if value.ndim == 1}
        for name, term in terms.items():
            losses[name] = losses.get(name, 0) + weight * term.detach()
        for name, value in embeddings.items():
            seen.setdefault(name, []).append(value.detach())
        return weight * torch.stack(list(terms.values())).sum()

    rows = torch.arange(part.count)
    pieces = stage.config.accumulate
    if pieces > 1 and stage.config.cached_gradients:
        names: list[str] = []

        def encode(rows: Tensor) -> tuple[Tensor, ...]:
            with nullcontext() if torch.is_grad_enabled() else _still_statistics(model):  # each row passes twice
                found = forward(rows)
            names[:] = found
            return tuple(found.values())

        cached_step(
            encode,
            rows,
            lambda *columns: objective(dict(zip(names, columns)), 1.0),
            chunk_size=-(-part.count // pieces),
            scaler=state.scaler,
        )
    else:
        for k, some in enumerate(rows.tensor_split(pieces)):
            weight = len(some) / part.count
            state.scaler.scale(objective(forward(some), weight, *([k] if pieces > 1 else []))).backward()
    return losses, {name: torch.cat(found) for name, found in seen.items()}


@contextmanager
def _still_statistics(model: nn.Module) -> Iterator[None]:
    """Freezes the running statistics of BatchNorm, because the same rows pass a second time."""
    held = [(module, module.momentum) for module in model.modules() if isinstance(module, _BatchNorm)]
    for module, _ in held:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in held:
            module.momentum = momentum


def _check_finite(loss: float, stage: Stage, step: int) -> None:
    if not math.isfinite(loss):
        needed, came = f"{stage.name} needs a finite loss", f"{loss} at step {step + 1}"
        raise FloatingPointError(three_beats(needed, came, "Lower `learning_rate` or lengthen `warmup_steps`."))


def choose_trained(model: UniHPE, stage: Stage) -> None:
    """Puts the parts that the stage trains in training mode; freezes all others and puts them in evaluation mode."""
    model.requires_grad_(False).eval()
    for part in stage.trained(model):
        part.requires_grad_(True).train()
        for module in part.modules():
            if stage.config.freeze_batch_norm and isinstance(module, _BatchNorm):
                module.eval()


def _average_of(model: UniHPE, decay: float) -> AveragedModel:
    """Exponential moving average with GFPose's warm-up: after n updates the decay is at most (1 + n) / (10 + n).

    Buffers (the running statistics of BatchNorm) are averages already and are copied.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:  # lists of tensors, a tensor
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, multi_avg_fn=update)


class _Batches(Dataset[PoseBatch]):
    """Batch number k of a stage, for any k: some rows of it."""

    def __init__(self, source: Source, batch_size: int, part: Part, seed: int, min_gap_seconds: float) -> None:
        self.source, self.batch_size, self.part = source, batch_size, part
        self.seed, self.min_gap_seconds = seed, min_gap_seconds
        source.sampler(batch_size, torch.Generator(), min_gap_seconds)  # raises here rather than in a worker

    def __getitem__(self, step: int) -> PoseBatch:
        generator = generator_of(self.seed, "batch", step)
        indices = next(self.source.sampler(self.batch_size, generator, self.min_gap_seconds))
        return self.source.batch(indices, generator, self.part.rows)


def _record(
    losses: dict[str, Tensor],
    embeddings: dict[str, Tensor],
    part: Part,
    norm: Tensor,
    temperature: Temperature,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """The numbers of a step: losses, mean cosine of the positives of each pair (Figure 5), tau, rate, gradient."""
    share = processes.count() * part.share  # of this process's rows in a mean over processes
    cosines = {
        f"cosine_{a}_{b}": share * nn.functional.cosine_similarity(embeddings[a], embeddings[b]).mean()
        for a, b in combinations(embeddings, 2)
    }
    means = {name: value.item() for name, value in processes.average({**losses, **cosines}).items()}
    record = {"loss": sum(means[name] for name in losses), **means}
    with torch.no_grad():
        record["tau"] = temperature().item()
    record["learning_rate"] = optimizer.param_groups[0]["lr"]
    record["gradient_norm"] = norm.item()
    return record
