"""A similarity as one loop by ``torch.compile``: its value and gradient, and whatever a loss fuses with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from multicontrast.similarity._formulas import (
    CosineSimilarity,
    Gradient,
    MeanCosine,
    Multilinear,
    Similarity,
    resolve_similarity,
)


class _CompiledSimilarity(CosineSimilarity):
    """A similarity whose value and gradient are one compiled loop over the tuples."""

    def __init__(self, similarity: CosineSimilarity, backend: str | Callable[..., Any]) -> None:
        self.similarity, self.backend, self.homogeneous = similarity, backend, similarity.homogeneous
        self._programs: dict[Callable[..., Any], Callable[..., Any]] = {}

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        return self.similarity(cosines)

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        cosines = torch.broadcast_tensors(*cosines)
        shape = cosines[0].shape
        flat = [cosine.reshape(-1) for cosine in cosines]  # one axis, one program
        value, grads = self.fuse(_value_and_gradient)(flat)
        return value.view(shape), [grad.view(shape) for grad in grads]

    def without_gradient(self, cosines: Sequence[Tensor]) -> Tensor:
        return self.similarity.without_gradient(cosines)

    def fuse(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function(similarity, ...)`` as a compiled program of the other arguments, without autograd."""
        if function not in self._programs:
            similarity = _Differentiated(self.similarity)

            def program(*arguments: Any) -> Any:
                return function(similarity, *arguments)

            program.__code__ = program.__code__.replace()  # its own: by it the compiler counts how often it was at work
            # Without the option shared subexpressions are written out again and again, for minutes.
            options: dict[str, Any] | None = {"realize_opcount_threshold": 4} if self.backend == "inductor" else None
            compiled = torch.compile(program, backend=self.backend, dynamic=True, options=options)
            self._programs[function] = torch.no_grad()(compiled)
            _keep_freed_memory()
        return self._programs[function]


def _keep_freed_memory() -> None:
    """Have the C library keep what a program frees, which allocates its buffers anew at each call.

    glibc gives large blocks back to the system, which clears every page again at the next call: that took twice as long
    as the program itself. Once it has seen a block of almost 32 MiB freed, it keeps up to twice as much. Untouched, the
    block costs nothing; other C libraries do not mind.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _value_and_gradient(similarity: CosineSimilarity, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
    return similarity.with_gradient(cosines)


class _Differentiated(CosineSimilarity):
    """A similarity whose gradient the compiler can see: its closed form, or else what ``torch.func`` makes of it."""

    def __init__(self, similarity: CosineSimilarity) -> None:
        self.similarity = similarity

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        if self.similarity.has_closed_form:
            return self.similarity.with_gradient(cosines)
        value, backward, *_ = torch.func.vjp(lambda *args: self.similarity(args), *cosines)
        return value, list(backward(torch.ones_like(value)))


def compiled(
    similarity: str | Similarity = "eigenvalue", *, backend: str | Callable[..., Any] = "inductor"
) -> CosineSimilarity | Multilinear:
    """A similarity whose value and gradient ``torch.compile`` has fused into one loop, for the losses on a CPU.

    The losses hand a similarity blocks of tuples; plain PyTorch visits a block some fifty-five times for the
    eigenvalue, the compiled loop once. It needs a C++ compiler, takes half a minute at its first use in a process
    unless the compiler's cache has it, and pays where the similarity is most of the work, with ``negatives="all"``.
    The numbers are those of the plain similarity but for rounding; second derivatives and the other roads (see
    the docs on the way of the data) use the plain one. With glibc the process then keeps up to 64 MiB that it freed.

    Args:
        similarity: a name or an object, as for the losses; a user's own function without a closed-form derivative is
            differentiated by the compiler. ``"mean_cosine"`` and ``"multilinear"``, which have nothing to fuse, come
            back as they are.
        backend: of :func:`torch.compile`.

    Raises:
        ValueError, TypeError: for an unknown name, or what is not callable.

    Example:
        >>> import torch
        >>> x_img, x_2d, x_3d = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
        >>> fused = compiled("eigenvalue", backend="aot_eager")
        >>> from multicontrast import triplet_infonce
        >>> triplet_infonce(x_img, x_2d, x_3d, 0.2, similarity=fused, negatives="all").isfinite()
        tensor(True)
    """
    resolved = resolve_similarity("compiled", similarity)
    if isinstance(resolved, (MeanCosine, Multilinear, _CompiledSimilarity)):
        return resolved
    return _CompiledSimilarity(resolved, backend)
