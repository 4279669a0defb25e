"""The four losses, and how their arguments become a plan."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from multicontrast._backend import KernelUnavailable, give_way, is_captured
from multicontrast._checks import check_choice, check_list, compute_dtype, three_beats, without_autocast
from multicontrast.distributed import Handshake, Ranks
from multicontrast.losses import cpu, reference, streamed
from multicontrast.losses import options as option_classes
from multicontrast.losses.candidates import SCHEMES, Pair
from multicontrast.losses.options import check_embeddings, check_options, check_per_sample, check_tau, with_options
from multicontrast.losses.plan import TRIPLET, Plan, make_plan
from multicontrast.losses.softmax import UNMASKED, Masks
from multicontrast.losses.triton import fused_operator, kernels

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from multicontrast.losses.options import PairOptions, TrimodalOptions, TupleOptions


TRIPLET_NAMES = ("x_img", "x_2d", "x_3d")


@with_options(option_classes.PairOptions)
def pairwise_infonce(x: Tensor, y: Tensor, tau: float | Tensor, **options: Unpack[PairOptions]) -> Tensor:
    r"""InfoNCE between two modalities: row ``i`` of ``x`` matches row ``i`` of ``y``, all other rows are negatives.

    .. math:: \mathcal{L}_i = -\log \frac{\exp(\langle x_i, y_i \rangle / \tau)}
                                         {\sum_j \exp(\langle x_i, y_j \rangle / \tau)}

    One Gram product serves both directions.

    Args:
        x, y: ``(B, D)`` embeddings, normalised here. Floating types are promoted; half precision computes in float32.
        tau: temperature, a positive number or 0-dim tensor; it divides (CLIP's ``logit_scale`` is ``1 / tau``).
        {options}

    Returns:
        The loss in float32 (float64 for float64 input). A batch of one has the loss 0.

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work. On CUDA and in compiled graphs values
            are not checked, and an invalid temperature gives NaN.

    Reference:
        Eq. (1) of Jiang et al., UniHPE, arXiv 2311.16477; van den Oord et al., arXiv 1807.03748.

    Example:
        >>> import torch
        >>> x = torch.eye(4)
        >>> round(pairwise_infonce(x, x, 1.0).item(), 4)  # log(1 + 3 / e)
        0.7437
    """
    return _loss("pairwise_infonce", option_classes.PairOptions, ("x", "y"), (x, y), tau, options, pairs=((0, 1),))


@with_options(option_classes.TupleOptions)
def multimodal_infonce(embeddings: Sequence[Tensor], tau: float | Tensor, **options: Unpack[TupleOptions]) -> Tensor:
    r"""InfoNCE over whole tuples of N modalities: row ``i`` of every embedding is one positive tuple.

    .. math:: \mathcal{L}_i = -\log \frac{\exp(s_i^+ / \tau)}{\exp(s_i^+ / \tau) + \sum_k \exp(s_{ik}^- / \tau)}

    with :math:`s` the similarity of a tuple, by default the largest eigenvalue of its Gram matrix, in [1, N] and blind
    to signs: train with it beside pairwise terms, as :func:`multicontrast.trimodal_infonce` does.

    Args:
        embeddings: N = 2..8 tensors ``(B, D)``, normalised here. Floating types are promoted; half precision computes
            in float32.
        tau: temperature, a positive number or 0-dim tensor; it divides.
        {options}

    Returns:
        The loss in float32 (float64 for float64 input); 0 for a batch of one. Negatives are drawn anew at each call;
        for the same value twice pass an index, or a generator in the same state.

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work. On CUDA and in compiled graphs values
            are not checked, and an invalid temperature or index gives NaN.

    Reference:
        Eq. (3) and Algorithms 1, 2 of Jiang et al., UniHPE, arXiv 2311.16477.

    Example:
        >>> import torch
        >>> rows = torch.eye(4)
        >>> loss = multimodal_infonce([rows, rows, rows, rows], 0.05, negatives="tied")
        >>> loss.item() < 1e-6
        True
    """
    operation = "multimodal_infonce"
    listed = check_list(operation, "embeddings", embeddings, remedy="Pass [x, y, ...].")
    names = [f"embeddings[{m}]" for m in range(len(listed))]
    return _loss(operation, option_classes.TupleOptions, names, listed, tau, options, has_tuples=True)


@with_options(option_classes.TupleOptions)
def triplet_infonce(
    x_img: Tensor, x_2d: Tensor, x_3d: Tensor, tau: float | Tensor, **options: Unpack[TupleOptions]
) -> Tensor:
    r"""InfoNCE over triplets: one sample in any three modalities, such as image, audio and text.

    .. math:: \mathcal{L}_i = -\log \frac{\exp(\lambda_i^+ / \tau)}
                                         {\exp(\lambda_i^+ / \tau) + \sum_k \exp(\lambda_{ik}^- / \tau)}

    :math:`\lambda`, the largest eigenvalue of the triplet's Gram matrix, lies in [1, 3] and is blind to signs: train
    with it beside the pairs, as :func:`multicontrast.trimodal_infonce` does. ``negatives="permutation"`` is the paper's
    loss without the positive among the negatives; ``negatives="all"`` is its exact form.

    Args:
        x_img, x_2d, x_3d: ``(B, D)`` embeddings, normalised here; row ``i`` of each is sample ``i``. The names are the
            paper's (image, 2D pose, 3D pose); any three modalities do, such as image, audio and text.
        tau: temperature, a positive number or 0-dim tensor; it divides.
        {options}

    Returns:
        The loss in float32 (float64 for float64 input). A batch of one has no negatives and the loss 0.

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work.

    Reference:
        Eq. (3) and Algorithms 1, 2 of Jiang et al., UniHPE, arXiv 2311.16477.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x_img, x_2d, x_3d = torch.randn(3, 8, 16, generator=generator)
        >>> triplet_infonce(x_img, x_2d, x_3d, 0.2, generator=generator).shape
        torch.Size([])
    """
    embeddings = (x_img, x_2d, x_3d)
    kind = option_classes.TupleOptions
    return _loss("triplet_infonce", kind, TRIPLET_NAMES, embeddings, tau, options, has_tuples=True)


@with_options(option_classes.TrimodalOptions)
def trimodal_infonce(
    x_img: Tensor,
    x_2d: Tensor,
    x_3d: Tensor,
    tau: float | Tensor | Mapping[tuple[int, int] | str, float | Tensor],
    **options: Unpack[TrimodalOptions],
) -> Tensor:
    r"""UniHPE's contrastive loss, eq. (4): :math:`\mathcal{L}_{pair} + \alpha \mathcal{L}_{triplet}`.

    The pairs are summed; each is the mean of both directions. One Gram block for each pair of modalities serves the
    pairs and the triplets, so the triplet term costs a fraction of the pairs, where the paper's costs a multiple.

    Options act on every term, ``similarity``, ``negatives``, ``num_negatives`` and ``anchor`` on the triplet's alone.
    Under ``present`` a pair takes the samples that have both of its modalities, the triplet those that have two, and
    the mean of each term is over its own.

    Args:
        x_img, x_2d, x_3d: ``(B, D)`` embeddings, normalised here; row ``i`` of each is sample ``i``.
        tau: temperature, a positive number or 0-dim tensor, shared by all terms as in the paper. Or one for each term,
            by name: ``{(0, 1): 0.07, (0, 2): 0.07, (1, 2): 0.1, "triplet": 0.2}``.
        {options}

    Returns:
        The loss in float32 (float64 for float64 input).

    Raises:
        ValueError, TypeError: for arguments that do not fit; before any work.

    Reference:
        Eq. (4) of Jiang et al., UniHPE, arXiv 2311.16477.

    Example:
        >>> import torch
        >>> x_img, x_2d, x_3d = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
        >>> pairs_alone = trimodal_infonce(x_img, x_2d, x_3d, 0.2, alpha=0.0)
        >>> bool(pairs_alone < trimodal_infonce(x_img, x_2d, x_3d, 0.2))
        True
    """
    kind = option_classes.TrimodalOptions
    return _loss("trimodal_infonce", kind, TRIPLET_NAMES, (x_img, x_2d, x_3d), tau, options, has_tuples=True)


def _loss(
    operation: str,
    kind: type,
    names: Sequence[str],
    embeddings: Sequence[Any],
    tau: Any,
    given: Mapping[str, Any],
    *,
    pairs: Sequence[Pair] = (),
    has_tuples: bool = False,
) -> Tensor:
    """Check the arguments, exchange options with the other ranks, make the plan and compute it."""
    given = dict(given)
    impl = given.pop("impl", None)  # for the tests: the name of an implementation
    gather = given.get("gather", False)
    handshake = None if gather is False else Handshake(operation, gather)
    if handshake is not None and handshake.alone:
        handshake = None
    with handshake or contextlib.nullcontext():
        options = check_options(operation, kind, given)
        pairs = options.get("pairs", pairs)
        check_embeddings(operation, names, embeddings, may_be_empty=handshake is not None)
        _check_capture(operation, embeddings[0].device, tau, handshake)
        dtype = compute_dtype(*embeddings)
        by_name = isinstance(tau, Mapping) and "alpha" in options
        if by_name:
            terms: list[Pair | str] = [*pairs, *([TRIPLET] if options["alpha"] > 0 else [])]
            keys, tau = _taus_by_name(operation, tau, terms, dtype, embeddings[0])
        else:
            tau = check_tau(operation, tau, dtype)
        check_per_sample(operation, embeddings, options)
        _check_ring(operation, options)
        batch = _Batch(embeddings, tau, _masks(options), options.get("generator"))
        if handshake is not None:
            batch = _gather(handshake, batch, options)
        like, ranks = batch.embeddings[0], batch.ranks
        # The number is created on its device: a copy would make the host wait.
        if not isinstance(batch.tau, Tensor):
            batch.tau = torch.full((), batch.tau, dtype=dtype, device=like.device)
        taus = dict(zip(keys, batch.tau.unbind())) if by_name else batch.tau
        outlines = batch.embeddings
        if ranks is not None and batch.ring:
            outlines = [x.new_empty(1, 1).expand(ranks.total, x.shape[1]) for x in outlines]
            options["tiled"] = _tiled_ring(options)
        plan = make_plan(
            operation,
            outlines,
            taus,
            options,
            batch.masks,
            pairs=pairs,
            has_tuples=has_tuples,
            anchors=None if ranks is None else (ranks.start, ranks.stop),
            generator=batch.generator,
        )
        if handshake is not None:
            handshake.close()
    if plan.diagnostics is not None:
        plan.diagnostics.pairs, plan.diagnostics.tuples = {}, None
    with without_autocast(like.device):
        if ranks is None:
            return run(operation, plan, batch.embeddings, dtype, impl)
        if batch.ring:
            loss = streamed.ring_loss(plan, [x.to(dtype) for x in batch.embeddings], ranks)
        else:
            loss = run(operation, plan, batch.embeddings, dtype, impl)
        if plan.reduction != "none":
            loss = loss * ranks.size
        return ranks.join(loss, *batch.embeddings, *([tau] if isinstance(tau, Tensor) else []))


class Implementation(NamedTuple):
    """Which plans it computes, and how. Without ``takes_half`` embeddings are at least float32."""

    name: str
    applies: Callable[[Plan, Sequence[Tensor]], bool]
    loss: Callable[[Plan, Sequence[Tensor]], Tensor]
    takes_half: bool = False


IMPLEMENTATIONS = (
    Implementation("cpu", cpu.applies, cpu.loss),
    Implementation("fused", fused_operator.applies, fused_operator.loss, takes_half=True),
    Implementation("triton", kernels.applies, kernels.loss, takes_half=True),
    Implementation("streamed", streamed.applies, streamed.loss),
    Implementation("reference", reference.applies, reference.loss),
)
"""The first that applies computes a plan. All equal the reference up to rounding."""


def run(
    operation: str, plan: Plan, embeddings: Sequence[Tensor], dtype: torch.dtype, impl: str | None = None
) -> Tensor:
    """The plan's loss in ``dtype``, by the named implementation or the first that applies."""
    if impl is not None:
        check_choice(operation, "impl", impl, [found.name for found in IMPLEMENTATIONS])
    wide = [x if x.dtype == dtype else x.to(dtype) for x in embeddings]
    for found in IMPLEMENTATIONS:
        xs = embeddings if found.takes_half else wide
        if impl in (None, found.name) and found.applies(plan, xs):
            try:
                return found.loss(plan, xs)
            except KernelUnavailable as error:
                give_way(error)
    remedy = "Leave `impl` out."
    raise ValueError(three_beats(f"`{operation}` needs a plan that {impl!r} computes", "another", remedy))


def _taus_by_name(
    operation: str, taus: Mapping[Any, Any], terms: Sequence[Pair | str], dtype: torch.dtype, like: Tensor
) -> tuple[list[Pair | str], Tensor]:
    """The names of the terms, pairs sorted, and their temperatures stacked in one tensor, for a single gather."""
    found = {tuple(sorted(key)) if isinstance(key, tuple) else key: tau for key, tau in taus.items()}
    wanted: list[Any] = [tuple(sorted(term)) if isinstance(term, tuple) else term for term in terms]
    if len(found) < len(taus) or set(found) != set(wanted):
        needed = f"`{operation}` needs a temperature for each of its terms, {', '.join(map(repr, terms))}"
        came = f"some for {', '.join(map(repr, taus)) or 'none'}"
        raise ValueError(three_beats(needed, came, "Name each term once; with alpha=0 there is no triplet."))
    found = {key: check_tau(operation, tau, dtype) for key, tau in found.items()}
    tensors = [tau for tau in found.values() if isinstance(tau, Tensor)]
    kind, device = compute_dtype(like, *tensors), tensors[0].device if tensors else like.device
    stacked = [
        tau.to(device, kind) if isinstance(tau, Tensor) else torch.full((), tau, dtype=kind, device=device)
        for tau in (found[name] for name in wanted)
    ]
    return wanted, torch.stack(stacked)


def _check_capture(operation: str, device: torch.device, tau: Any, handshake: Handshake | None) -> None:
    """Raise in a CUDA graph's capture for arguments that the host reads, because replays would not read them again."""
    if device.type == "cpu" or not is_captured(device):
        return
    if handshake is not None:
        handshake.leave()  # a capture cannot send an error to the other ranks
        remedy = "Gather with `torch.distributed.nn.functional.all_gather` before, or leave the loss out of the graph."
        raise RuntimeError(three_beats(f"`{operation}` needs the other ranks' answers to gather", "a capture", remedy))
    taus = tau.values() if isinstance(tau, Mapping) else (tau,)
    if any(isinstance(x, Tensor) and x.device != device for x in taus):
        needed = f"`{operation}` needs `tau` on {device} in a CUDA graph's capture"
        raise RuntimeError(three_beats(needed, "a CPU tensor", "Move the tensor or the loss with `.to(device)`."))


def _check_ring(operation: str, options: Mapping[str, Any]) -> None:
    if options["ring"] and options["gather"] is False:
        remedy = "Pass gather=True, too."
        raise ValueError(three_beats(f"`{operation}` needs `gather` for a ring", "ring=True alone", remedy))
    if options["ring"] and options["tiled"] is False:
        came, remedy = "ring=True and tiled=False", "Leave `tiled` out."
        raise ValueError(three_beats(f"`{operation}` computes a ring in tiles", came, remedy))


def _tiled_ring(options: Mapping[str, Any]) -> bool | None:
    """A ring never holds all logits, except with ``negatives="all"``, which reads whole blocks."""
    negatives = options.get("negatives")
    return None if isinstance(negatives, str) and negatives == "all" else True


@dataclasses.dataclass
class _Batch:
    """What a plan runs on."""

    embeddings: Sequence[Tensor]  # (B, D): the rows of all ranks; in a ring those of this rank
    tau: Any  # a number or a tensor
    masks: Masks  # for the samples of all ranks
    generator: torch.Generator | None  # in the same state on all ranks
    ranks: Ranks | None = None
    ring: bool = False


def _masks(options: Mapping[str, Any]) -> Masks:
    extra = options["extra_negatives"]
    if extra is not None:
        extra = None if all(x is None or x.shape[-2] == 0 for x in extra) else tuple(extra)
    of_samples = options["present"], options["ids"], options["weight"], extra
    smoothing, hardness = options["label_smoothing"], options["hardness"]
    if smoothing == hardness == 0 and all(x is None for x in of_samples):
        return UNMASKED
    return Masks(*of_samples[:3], smoothing, hardness, extra)


def _agree(handshake: Handshake, embeddings: Sequence[Tensor], tau: Any, options: Mapping[str, Any]) -> Ranks:
    """The other ranks, after checking that their options are equal."""
    own = ("generator", "gather", "diagnostics")
    alike = {name: _fingerprint(value) for name, value in options.items() if name not in own}
    alike["generator"] = options.get("generator") is None
    alike["diagnostics"] = options["diagnostics"] is None
    alike["temperature"] = "a tensor" if isinstance(tau, Tensor) else float(tau)
    tau_tensor = tau if isinstance(tau, Tensor) else None
    ranks = handshake.exchange(embeddings, tau_tensor, alike, options.get("generator"), _draws(options))
    assert ranks is not None
    return ranks


def _draws(options: Mapping[str, Any]) -> bool:
    negatives = options.get("negatives")
    return isinstance(negatives, str) and negatives in SCHEMES and options.get("alpha", 1) > 0


def _fingerprint(option: object) -> object:
    """An option in a form that is the same in every process."""
    if isinstance(option, Tensor):
        return ("a tensor", str(option.dtype), tuple(option.shape[1:]))
    if isinstance(option, (tuple, list)):
        return [_fingerprint(x) if isinstance(x, Tensor) else x for x in option]
    if option is None or isinstance(option, (bool, int, float, str)):
        return option
    return getattr(option, "__qualname__", type(option).__qualname__)


def _gather(handshake: Handshake, own: _Batch, options: Mapping[str, Any]) -> _Batch:
    """The rows of all ranks, after checking that their options are equal. Masks, ids and weights are gathered without a
    gradient. Extra negatives stay on their rank, as candidates of its own anchors. Options that act on logits need all
    rows, so they replace the ring by a gather."""
    embeddings, tau, masks, generator = own.embeddings, own.tau, own.masks, own.generator
    ranks = _agree(handshake, embeddings, tau, options)
    ring = options["ring"] and masks.only_weigh and options["diagnostics"] is None and ranks.total > 1
    if _draws(options) and generator is None:
        generator = torch.Generator().manual_seed(ranks.seed)
    if not ring:
        tau_tensor, embeddings = ranks.gather(*embeddings, tau=tau if isinstance(tau, Tensor) else None)
        tau = tau if tau_tensor is None else tau_tensor
    values = (masks.present, masks.ids, masks.weight)
    found = iter(ranks.gather_values(*(value for value in values if value is not None)))
    present, ids, weight = (None if value is None else next(found) for value in values)
    masks = dataclasses.replace(masks, present=present, ids=ids, weight=weight)
    if isinstance(options.get("negatives"), Tensor):
        handshake.reopen()  # one rank's index may be wrong
    return _Batch(embeddings, tau, masks, generator, ranks, ring)
