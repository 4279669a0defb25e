"""Eq. (4) over Gram blocks in memory, or pairs in tiles, as an operator: ``multicontrast::fused_loss``.

The whole loss is one node for autograd, ``torch.compile`` and ``torch.export``, so a step takes two calls on the host.
Differentiable twice: the second derivative is that of the reference.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast._backend import has_bfloat16, is_transformed, run_kernel, tf32_allowed, use_triton
from multicontrast.losses.candidates import Candidates, Cyclic, Given, Index, Tied, index_of
from multicontrast.losses.plan import Plan, Term
from multicontrast.losses.softmax import Masks, scale_free
from multicontrast.losses.triton.second_derivative import second_derivative
from multicontrast.similarity import Eigenvalue, MeanCosine

_MASKS = "Tensor? index, Tensor? present, Tensor? ids, Tensor? weight"
_TERMS = (
    "int[] left, int[] right, float[] rows, float[] columns, float alpha, str scheme, str reduction, bool normalize,"
    " bool tiled"
)
_OPTIONS = 13  # arguments after the embeddings and tau


@torch.library.custom_op(
    "multicontrast::fused_loss",
    mutates_args=(),
    schema=f"(Tensor[] embeddings, Tensor tau, {_MASKS}, {_TERMS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def fused_loss(
    embeddings: Sequence[Tensor], tau: Tensor,
    index: Tensor | None, present: Tensor | None, ids: Tensor | None, weight: Tensor | None,
    left: Sequence[int], right: Sequence[int], rows: Sequence[float], columns: Sequence[float], alpha: float,
    scheme: str, reduction: str, normalize: bool, tiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``(loss, rows, scale, power, grams, sums)``; all but the loss is for the backward pass.

    Args:
        embeddings: two or three ``(B, D)`` of one floating type up to 32 bits.
        tau: 0-dim float32; a temperature that is not positive gives NaN.
        index: the triplets, in the layout of ``scheme`` (`sampled_triton.SCHEMES`).
        present, ids, weight: ``(B, N)`` bool, ``(B,)`` integers, ``(B,)``.
        left, right, rows, columns, alpha, tiled: see :class:`~multicontrast.losses.triton.rows_triton.Terms`.

    Raises:
        KernelUnavailable: a kernel cannot be built or launched here.
    """
    from multicontrast.losses.triton import fused_triton as fused

    terms = fused.Terms(tuple(zip(left, right)), tuple(rows), tuple(columns), alpha, scheme, tiled, tf32_allowed())
    samples = fused.Samples(_contiguous(present), _contiguous(ids), _contiguous(weight))
    scaled, scale, power = fused.prepare(embeddings, samples.present, terms, normalize)
    grams = scale.new_empty(0) if tiled else fused.products(scaled)
    loss, sums = fused.forward(scaled if tiled else grams, scale, tau, terms, samples, index, reduction)
    return loss, scaled, scale, power, grams, sums


def _contiguous(given: Tensor | None) -> Tensor | None:
    return None if given is None else given.contiguous()


@fused_loss.register_fake
def _fake(
    embeddings: Sequence[Tensor], tau: Tensor,
    index: Tensor | None, present: Tensor | None, ids: Tensor | None, weight: Tensor | None,
    left: Sequence[int], right: Sequence[int], rows: Sequence[float], columns: Sequence[float], alpha: float,
    scheme: str, reduction: str, normalize: bool, tiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    first, blocks = embeddings[0], len(left)
    size, depth = first.shape
    scale = first.new_empty(len(embeddings), size, dtype=torch.float32)
    return (
        scale.new_empty((size,) if reduction == "none" else ()),
        first.new_empty(len(embeddings) if tiled else 2 * blocks, size, depth),
        scale,
        torch.empty_like(scale),
        scale.new_empty(0) if tiled else scale.new_empty(blocks, size, size),
        scale.new_empty((4 * blocks + 1) * size + blocks + 1),
    )


@torch.library.custom_op(
    "multicontrast::fused_loss_backward",
    mutates_args=(),
    schema=f"(Tensor[] embeddings, Tensor tau, {_MASKS}, {_TERMS}, Tensor scaled, Tensor scale, Tensor power,"
    " Tensor grams, Tensor sums, Tensor grad, bool tf32) -> (Tensor[], Tensor)",
)
def fused_loss_backward(
    embeddings: Sequence[Tensor], tau: Tensor,
    index: Tensor | None, present: Tensor | None, ids: Tensor | None, weight: Tensor | None,
    left: Sequence[int], right: Sequence[int], rows: Sequence[float], columns: Sequence[float], alpha: float,
    scheme: str, reduction: str, normalize: bool, tiled: bool,
    scaled: Tensor, scale: Tensor, power: Tensor, grams: Tensor, sums: Tensor, grad: Tensor, tf32: bool,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Gradients w.r.t. the embeddings and tau. ``scaled`` to ``sums`` are results of :func:`fused_loss`; ``tf32`` says
    whether its products in tiles were rounded to TF32."""

    def by_kernels() -> tuple[list[Tensor], Tensor]:
        from multicontrast.losses.triton import fused_triton as fused

        terms = fused.Terms(tuple(zip(left, right)), tuple(rows), tuple(columns), alpha, scheme, tiled, tf32)
        samples = fused.Samples(_contiguous(present), _contiguous(ids), _contiguous(weight))
        return fused.backward(grams, scaled, scale, power, tau, terms, samples, index, sums, grad, normalize)

    def plain() -> tuple[list[Tensor], Tensor]:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in (*embeddings, tau)]
            loss = _reference(
                inputs[:-1], inputs[-1], index, present, ids, weight,
                left, right, rows, columns, alpha, scheme, reduction, normalize, tiled,
            )  # fmt: skip
            *found, dtau = torch.autograd.grad(loss, inputs, grad, materialize_grads=True)
        return found, dtau

    return run_kernel(by_kernels, plain)


@fused_loss_backward.register_fake
def _backward_fake(
    embeddings: Sequence[Tensor], tau: Tensor,
    index: Tensor | None, present: Tensor | None, ids: Tensor | None, weight: Tensor | None,
    left: Sequence[int], right: Sequence[int], rows: Sequence[float], columns: Sequence[float], alpha: float,
    scheme: str, reduction: str, normalize: bool, tiled: bool,
    scaled: Tensor, scale: Tensor, power: Tensor, grams: Tensor, sums: Tensor, grad: Tensor, tf32: bool,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    return [x.new_empty(x.shape) for x in embeddings], tau.new_empty(())


def applies(plan: Plan, embeddings: Sequence[Tensor]) -> bool:
    """With Triton as back end: pairs of a whole batch with one temperature and, if the blocks fit in memory, sampled
    triplets with the largest eigenvalue; without extra negatives, label smoothing or hardness."""
    first, masks, tuples = embeddings[0], plan.masks, plan.tuples
    if not use_triton(first) or not plan.is_whole or plan.size == 1 or plan.diagnostics is not None:
        return False
    if len(embeddings) > 3 or len(plan.taus) > 1 or is_transformed(*embeddings, *plan.taus):
        return False
    if any(x.dtype == torch.float64 for x in (*embeddings, *plan.taus)):
        return False
    if masks.extra is not None or masks.label_smoothing > 0 or masks.hardness > 0:
        return False
    if masks.weight is not None and masks.weight.requires_grad:
        return False
    if tuples is None:
        return True
    if plan.tiled:
        return False
    if len(embeddings) != 3 or type(tuples.similarity) is not Eigenvalue or tuples.symmetric:
        return False
    # The order of the kernel's additions is not fixed.
    return not tuples.directions[0][0].are_all and not torch.are_deterministic_algorithms_enabled()


def loss(plan: Plan, embeddings: Sequence[Tensor]) -> Tensor:
    """The plan's loss: 0-dim, or one value for each anchor for ``reduction="none"``. Products take half precision
    without conversion."""
    first, tuples, masks = embeddings[0], plan.tuples, plan.masks
    dtype = first.dtype if all(x.dtype == first.dtype for x in embeddings) else torch.float32
    if dtype == torch.bfloat16 and not has_bfloat16(first.device):
        dtype = torch.float32
    tau = plan.taus[0].to(first.device, torch.float32, non_blocking=True)
    blocks = plan.blocks
    rows, columns = dict.fromkeys(blocks, 0.0), dict.fromkeys(blocks, 0.0)
    for term in plan.pairs:
        block, share = (min(term.pair), max(term.pair)), 0.5 if term.symmetric else 1.0
        if term.symmetric or term.pair == block:
            rows[block] = share
        if term.symmetric or term.pair != block:
            columns[block] = share
    scheme, index, alpha = "index", None, 0.0
    if tuples is not None:
        candidates, alpha = tuples.directions[0][0], tuples.alpha
        scheme, index = candidates.listed() or ("index", index_of(candidates, 0, plan.size))
    weight = masks.weight
    if weight is not None and plan.reduction == "mean":
        weight = scale_free(weight, torch.float32).float()
    found, *_ = fused_loss(
        [x.to(dtype) for x in embeddings], tau, index, masks.present, masks.ids, weight,
        [m for m, _ in blocks], [n for _, n in blocks], list(rows.values()), list(columns.values()), alpha, scheme,
        plan.reduction, plan.normalize, plan.tiled,
    )  # fmt: skip
    return found


def _reference(
    xs: Sequence[Tensor], tau: Tensor,
    index: Tensor | None, present: Tensor | None, ids: Tensor | None, weight: Tensor | None,
    left: Sequence[int], right: Sequence[int], rows: Sequence[float], columns: Sequence[float], alpha: float,
    scheme: str, reduction: str, normalize: bool, tiled: bool,
) -> Tensor:  # fmt: skip
    """The same loss by the reference."""
    from multicontrast.losses import reference

    size = len(xs[0])
    terms = []
    if index is not None:
        candidates: Candidates
        if scheme == "shifts":
            candidates = Cyclic(size, index.mT[:, 1:])
        elif scheme == "list":
            candidates = Index(size, [plane[None] for plane in index.mT[:, 1:]])
        else:
            candidates = Given(size, index, 0)
        terms.append(Term((0, 1, 2), Eigenvalue(), ((candidates,),), tau, alpha))
    tied = Tied(size, 2, xs[0].device)
    for m, n, row, column in zip(left, right, rows, columns):
        if row or column:
            both = ((tied,), (tied.reversed(),)) if row and column else ((tied,),)
            terms.append(Term((m, n) if row else (n, m), MeanCosine(), both, tau, is_pair=True))
    plan = Plan(tuple(terms), size, 0, size, reduction, normalize, Masks(present, ids, weight), tiled)
    return reference.loss(plan, [x.to(tau.dtype) for x in xs])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    embeddings, tau, *masks = inputs[:6]
    ctx.terms, ctx.count = inputs[6:], len(embeddings)
    ctx.given = [mask is not None for mask in masks]
    ctx.save_for_backward(*embeddings, tau, *(mask for mask in masks if mask is not None), *output[1:])
    ctx.tf32 = tf32_allowed()  # the backward pass multiplies with the same precision
    ctx.set_materialize_grads(False)


def _unpack(ctx: Any) -> tuple[list[Tensor], Tensor, list[Tensor | None], list[Tensor]]:
    """``(embeddings, tau, masks, other tensors)``."""
    saved = list(ctx.saved_tensors)
    embeddings, tau, rest = saved[: ctx.count], saved[ctx.count], saved[ctx.count + 1 :]
    masks = [rest.pop(0) if given else None for given in ctx.given]
    return embeddings, tau, masks, rest


def _differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    nothing = (None,) * _OPTIONS
    if grad is None:
        return ([None] * ctx.count, None, *nothing)
    embeddings, tau, masks, rest = _unpack(ctx)
    grads, dtau = fused_loss_backward(embeddings, tau, *masks, *ctx.terms, *rest, grad, ctx.tf32)
    return (grads, dtau, *nothing)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    embeddings, tau, *masks = inputs[:6]
    ctx.terms, ctx.count = inputs[6 : 2 + _OPTIONS], len(embeddings)
    ctx.given = [mask is not None for mask in masks]
    ctx.save_for_backward(*embeddings, tau, *(mask for mask in masks if mask is not None), inputs[-2])


def _differentiate_backward(ctx: Any, by_grads: Sequence[Tensor], by_dtau: Tensor) -> tuple[Any, ...]:
    embeddings, tau, masks, (grad,) = _unpack(ctx)

    def plain(tau: Tensor, *xs: Tensor) -> Tensor:
        options: list[Any] = [*masks, *ctx.terms]
        return _reference(xs, tau, *options)

    (dtau, *dxs), (dgrad,) = second_derivative(plain, (tau, *embeddings), (grad,), (by_dtau, *by_grads))
    return (dxs, dtau, *(None,) * (_OPTIONS + 5), dgrad, None)


fused_loss.register_autograd(_differentiate, setup_context=_save)
fused_loss_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
