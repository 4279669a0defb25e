r"""Similarities, which score a tuple of embeddings.

A similarity is a function of the tuple's cosines: ``N (N - 1) / 2`` tensors of one shape for ``N`` modalities, in the
order ``(0, 1), (0, 2), ..., (N - 2, N - 1)``. For three that is :math:`a = \langle x_1, x_2 \rangle`,
:math:`b = \langle x_1, x_3 \rangle`, :math:`c = \langle x_2, x_3 \rangle`. Only the multilinear product needs the
embeddings themselves.

To add one, write a function or an object that maps that list to a tensor of the same shape, larger for tuples that are
more similar, and pass it as ``similarity=``. It must be differentiable. If it also has
``with_gradient(cosines) -> (value, [derivative for each cosine])``, the losses use that closed form instead of
autograd.

===================  ============================================  ==================  ===========
name                 value for three modalities                    range               sign-blind
===================  ============================================  ==================  ===========
``eigenvalue``       largest eigenvalue of the Gram matrix         [1, 3]              yes
``singular_value``   its square root                               [1, sqrt 3]         yes
``mean_cosine``      (a + b + c) / 3                               [-1/2, 1]           no
``volume``           -sqrt(1 + 2abc - a^2 - b^2 - c^2)             [-1, 0]             yes
``area``             minus the area of the triangle of the rows    [-3 sqrt(3)/4, 0]   no
``multilinear``      sum over d of x_d y_d z_d                     [-1, 1], ~ 1/D      odd
===================  ============================================  ==================  ===========

*Sign-blind* similarities cannot tell aligned from anti-aligned tuples: cosines ``(1, -1, -1)`` have the eigenvalue 3
of a perfect match. Use them together with the pairwise terms, as :func:`multicontrast.trimodal_infonce` does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from multicontrast._checks import call, check_callable, check_choice, describe, three_beats
from multicontrast._workspace import Workspace
from multicontrast.linalg._gram3_in_place import SCRATCH_ROWS, eigmax_with_pullback
from multicontrast.linalg.gram3 import gram_eigmax_excess, gram_eigmax_with_gradient

__all__ = ["CosineSimilarity", "Similarity"]

Gradient = list[Tensor]
Pullback = Callable[[Tensor], Gradient]


@runtime_checkable
class Similarity(Protocol):
    """Anything that maps the cosines of tuples to one number for each tuple."""

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        """The similarity of each tuple, of the cosines' shape; differentiable."""
        ...


class CosineSimilarity:
    """A similarity made of cosines, with the closed-form derivative that the fused implementations use."""

    homogeneous = False
    """Whether ``with_pullback`` of ``r`` times the cosines has ``r`` times the value, for r > 0."""

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        """The similarity of each tuple; differentiable as often as its formula is."""
        raise NotImplementedError

    def of_present(self, cosines: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """The similarity of the present members, by the formula for that many modalities.

        ``present`` says for each modality which tuples have it, broadcastable to the cosines. Cosines of absent
        members are 0. The value for tuples with fewer than two members is finite and meaningless.
        """
        nowhere = torch.zeros((), dtype=torch.bool, device=cosines[0].device)
        everything = cosines[0]
        for cosine in cosines[1:]:
            everything = everything + cosine
        value = torch.where(nowhere, everything, 0)  # zeros that keep all modalities in the graph
        position = _pair_position(len(present))
        everyone = range(len(present))
        for size in range(2, len(present) + 1):
            for members in itertools.combinations(everyone, size):
                here = torch.ones((), dtype=torch.bool, device=value.device)
                for m in everyone:
                    here = here & (present[m] if m in members else ~present[m])
                if _is_known_to_be_empty(here):
                    continue
                # Elsewhere all cosines are 0.5, where no root or quotient is singular.
                chosen = [cosines[position[pair]] for pair in itertools.combinations(members, 2)]
                value = torch.where(here, self([torch.where(here, cosine, 0.5) for cosine in chosen]), value)
        return value

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        """Value and derivative w.r.t. each cosine, without a graph.

        The value may leave out a constant that is the same for every tuple, because that does not change a loss.
        """
        with torch.enable_grad():
            leaves = [cosine.detach().requires_grad_() for cosine in cosines]
            value = self(leaves)
            grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True, materialize_grads=True)
        return value.detach(), list(grads)

    def with_pullback(self, cosines: Sequence[Tensor], workspace: Workspace | None) -> tuple[Tensor, Pullback]:
        """The value, and a function that maps a weight for each tuple to weight x derivative w.r.t. each cosine.

        The cosines may broadcast to the shape of the tuples and are only read. Results live in the workspace, if there
        is one, until its next use, and may share memory. The function may be called once; the value may be overwritten
        before.
        """
        value, grads = self.with_gradient(torch.broadcast_tensors(*cosines))
        return value, lambda weights: [grad * weights for grad in grads]

    @torch.no_grad()
    def without_gradient(self, cosines: Sequence[Tensor]) -> Tensor:
        """The value alone, with the same constant left out as in :meth:`with_gradient`."""
        return self(cosines)


class Eigenvalue(CosineSimilarity):
    """Largest eigenvalue of the Gram matrix (UniHPE, arXiv 2311.16477, eq. 3). In [1, N]; blind to signs."""

    homogeneous = True  # for the excess over 1

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        return 1 + gram_eigmax_excess(cosines)

    def of_present(self, cosines: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        return self(cosines)  # an absent member adds an eigenvalue 1, which is no larger than the largest

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        return gram_eigmax_with_gradient(cosines)  # the excess over 1: small cosines keep their digits

    def with_pullback(self, cosines: Sequence[Tensor], workspace: Workspace | None) -> tuple[Tensor, Pullback]:
        if len(cosines) != 3:
            return super().with_pullback(cosines, workspace)
        a, b, c = cosines
        shape = a.shape if a.shape == b.shape == c.shape else torch.broadcast_shapes(a.shape, b.shape, c.shape)
        scratch = (SCRATCH_ROWS, *shape)
        return eigmax_with_pullback(
            (a, b, c), a.new_empty(scratch) if workspace is None else workspace.take("eigenvalue", scratch, a)
        )

    @torch.no_grad()
    def without_gradient(self, cosines: Sequence[Tensor]) -> Tensor:
        return gram_eigmax_excess(cosines)


_EIGENVALUE = Eigenvalue()


class SingularValue(CosineSimilarity):
    """Largest singular value of the stacked unit rows, the root of the eigenvalue (UniHPE eq. 2; PMRL)."""

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        return (1 + gram_eigmax_excess(cosines)).sqrt()

    def of_present(self, cosines: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        return self(cosines)  # as for the eigenvalue

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        return self._root(*gram_eigmax_with_gradient(cosines))

    def with_pullback(self, cosines: Sequence[Tensor], workspace: Workspace | None) -> tuple[Tensor, Pullback]:
        excess, pullback = _EIGENVALUE.with_pullback(cosines, workspace)
        value = excess.add_(1).sqrt_()
        half = 0.5 / value
        return value, lambda weights: pullback(half.mul_(weights))

    @staticmethod
    def _root(excess: Tensor, grads: Gradient) -> tuple[Tensor, Gradient]:
        value = excess.add_(1).sqrt_()
        half = 0.5 / value
        return value, [grad.mul_(half) for grad in grads]


class MeanCosine(CosineSimilarity):
    """Mean of the pairwise cosines. Equals the eigenvalue to first order around a match, and sees signs."""

    homogeneous = True

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        return _sum(cosines) / len(cosines) if len(cosines) > 1 else cosines[0]

    def of_present(self, cosines: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        total, number = cosines[0], torch.zeros((), dtype=cosines[0].dtype, device=cosines[0].device)
        for cosine in cosines[1:]:
            total = total + cosine
        for m, n in _pair_position(len(present)):
            number = number + (present[m] & present[n])
        return total / number.clamp_min(1)

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        return self(cosines), [torch.full_like(cosine, 1 / len(cosines)) for cosine in cosines]

    def with_pullback(self, cosines: Sequence[Tensor], workspace: Workspace | None) -> tuple[Tensor, Pullback]:
        count = len(cosines)
        return self(cosines), lambda weights: [weights / count] * count


def _safe_sqrt(square: Tensor) -> Tensor:
    """Square root of the non-negative part; where that is exactly 0 the gradient is 0 by convention."""
    positive = ~(square <= 0)  # NaN passes through
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def _eliminate(matrix: list[list[Tensor]]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Pivots and the unit lower factor of a positive semidefinite matrix, given by its lower triangle, by elimination
    without square roots.

    A pivot that rounding made negative counts as 0, which makes the determinant 0; divisions by it use 1.
    """
    size = len(matrix)
    rows = [list(row) for row in matrix]
    pivots = []
    for k in range(size):
        pivot = rows[k][k]
        usable = ~(pivot < torch.finfo(pivot.dtype).smallest_normal)  # NaN passes through
        pivots.append(torch.where(usable, pivot, 0))
        safe = torch.where(usable, pivot, 1)
        column = [rows[i][k] for i in range(k + 1, size)]
        for i in range(k + 1, size):
            rows[i][k] = rows[i][k] / safe
            for j in range(k + 1, i + 1):
                rows[i][j] = rows[i][j] - rows[i][k] * column[j - k - 1]
    return pivots, rows


def _psd_determinant(matrix: list[list[Tensor]]) -> Tensor:
    """Determinant of a positive semidefinite matrix given by its lower triangle."""
    pivots, _ = _eliminate(matrix)
    return _product(pivots)


def _product(factors: Sequence[Tensor]) -> Tensor:
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _root_of_determinant_with_gradient(matrix: list[list[Tensor]]) -> tuple[Tensor, list[list[Tensor]]]:
    """``r = sqrt(det M)`` of a positive semidefinite matrix, and ``r M^-1``, both lower triangles.

    The latter is the derivative of ``r`` by an off-diagonal entry and its mirror together, and twice that by a diagonal
    one; where ``r`` is 0 it is 0. From the unit lower factor L and the pivots d: ``M^-1 = L^-T diag(1/d) L^-1``.
    """
    size = len(matrix)
    pivots, lower = _eliminate(matrix)
    root = _safe_sqrt(_product(pivots))
    flat = root == 0
    scaled = [torch.where(flat, 0, root / torch.where(pivot == 0, 1, pivot)) for pivot in pivots]
    inverse: list[dict[int, Tensor]] = [{i: torch.ones_like(root)} for i in range(size)]  # of L
    for i in range(size):
        for j in range(i):
            inverse[i][j] = -_sum([lower[i][j], *(lower[i][m] * inverse[m][j] for m in range(j + 1, i))])

    def entry(i: int, j: int) -> Tensor:
        terms = [scaled[i] * inverse[i][j], *(scaled[k] * inverse[k][i] * inverse[k][j] for k in range(i + 1, size))]
        return _sum(terms)

    gradient = [[entry(i, j) for j in range(i + 1)] for i in range(size)]
    return root, gradient


def _pair_position(n: int) -> dict[tuple[int, int], int]:
    return {pair: k for k, pair in enumerate(itertools.combinations(range(n), 2))}


def _is_known_to_be_empty(mask: Tensor) -> bool:
    """Whether ``mask`` is False everywhere, if reading it costs nothing: on a CPU, in eager mode, no transform."""
    return (
        mask.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not bool(mask.any())
    )


def _num_modalities(cosines: Sequence[Tensor]) -> int:
    return (1 + math.isqrt(1 + 8 * len(cosines))) // 2


class Volume(CosineSimilarity):
    """Minus the volume spanned by the unit rows, -sqrt(det G) (GRAM, ICLR 2025). In [-1, 0]; blind to signs.

    Where the volume is exactly 0 (two equal modalities) its slope is infinite; the gradient there is 0.
    """

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        return -_safe_sqrt(self._determinant(cosines))

    def of_present(self, cosines: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        return self(cosines)  # an absent member is orthogonal to all and does not change the volume

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        if len(cosines) != 3:
            volume, gradient = _root_of_determinant_with_gradient(self._gram(cosines))
            n = len(gradient)
            return -volume, [-gradient[j][i] for i in range(n) for j in range(i + 1, n)]
        a, b, c = cosines
        volume = _safe_sqrt(self._determinant(cosines))
        inverse = torch.where(volume == 0, 0, 1 / torch.where(volume == 0, 1, volume))
        return -volume, [(a - b * c) * inverse, (b - a * c) * inverse, (c - a * b) * inverse]

    @staticmethod
    def _determinant(cosines: Sequence[Tensor]) -> Tensor:
        if len(cosines) == 3:
            # 1 + 2abc - a^2 - b^2 - c^2 as a Schur complement: the products of small differences survive rounding.
            a, b, c = cosines
            rest = c - a * b
            return (1 - a) * (1 + a) * ((1 - b) * (1 + b)) - rest * rest
        return _psd_determinant(Volume._gram(cosines))

    @staticmethod
    def _gram(cosines: Sequence[Tensor]) -> list[list[Tensor]]:
        n = _num_modalities(cosines)
        position = _pair_position(n)
        one = torch.ones_like(cosines[0])
        return [[cosines[position[j, i]] if j < i else one for j in range(i + 1)] for i in range(n)]


class Area(CosineSimilarity):
    """Minus the area of the triangle with the unit rows as corners (TRIANGLE, NeurIPS 2025); for N modalities minus the
    volume of the simplex, sqrt(det E) / (N - 1)! with E the Gram matrix of its edges.

    This is the area A; the code published with TRIANGLE uses 2 A^2 as its logit. Where the area is exactly 0 its slope
    is infinite; the gradient there is 0.
    """

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        n = _num_modalities(cosines)
        if n == 3:
            return -_safe_sqrt(self._four_square_areas(cosines)) / 2
        return -_safe_sqrt(_psd_determinant(self._edges(cosines))) / math.factorial(n - 1)

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        n = _num_modalities(cosines)
        if n == 3:
            area = _safe_sqrt(self._four_square_areas(cosines)) / 2
            quarter = torch.where(area == 0, 0, 0.25 / torch.where(area == 0, 1, area))
            da, db, dc = (1 - cosine for cosine in cosines)
            return -area, [(db + dc - da) * quarter, (da + dc - db) * quarter, (da + db - dc) * quarter]
        volume, gradient = _root_of_determinant_with_gradient(self._edges(cosines))
        count = len(gradient)
        share = 1 / math.factorial(n - 1)
        # A cosine with the first corner is in a whole row of edge products, any other in one product and its mirror.
        first = [share * _sum([gradient[max(m, k)][min(m, k)] for k in range(count)]) for m in range(count)]
        others = [-share * gradient[k][m] for m in range(count) for k in range(m + 1, count)]
        return -share * volume, [*first, *others]

    @staticmethod
    def _edges(cosines: Sequence[Tensor]) -> list[list[Tensor]]:
        """The Gram matrix of the edges from the first corner, its lower triangle."""
        n = _num_modalities(cosines)
        position = _pair_position(n)
        gap = [1 - cosine for cosine in cosines]  # half of each squared edge

        def edge_product(m: int, k: int) -> Tensor:
            if m == k:
                return 2 * gap[position[0, m]]
            return gap[position[0, m]] + gap[position[0, k]] - gap[position[min(m, k), max(m, k)]]

        return [[edge_product(m, k) for k in range(1, m + 1)] for m in range(1, n)]

    @staticmethod
    def _four_square_areas(cosines: Sequence[Tensor]) -> Tensor:
        # 4 A^2 = 2 (de + ef + fd) - d^2 - e^2 - f^2 in the gaps d = 1 - a, ...: Heron's formula for squared sides.
        d, e, f = (1 - cosine for cosine in cosines)
        return 4 * d * e - (d + e - f) ** 2


class Multilinear:
    """Sum over the coordinates of the product of all modalities (Symile, NeurIPS 2024). About 1/D for dense unit rows,
    so its temperature depends on D. Not a function of the cosines."""

    homogeneous = False

    def of_rows(self, rows: Sequence[Tensor]) -> Tensor:
        """The product of rows ``(..., D)``, one tensor for each modality, summed over the last axis."""
        product = rows[0]
        for row in rows[1:]:
            product = product * row
        return product.sum(-1)


class _UserSimilarity(CosineSimilarity):
    """A user's function or object, with its own closed-form derivative if it has one."""

    def __init__(self, function: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.function = function

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        remedy = "Write `def similarity(cosines): ...`, whose one argument is the list of cosines."
        value = call("A similarity needs to take the list of cosines", self.function, cosines, remedy=remedy)
        return _checked(value, cosines)

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
        value, grads = self.function.with_gradient(cosines)  # type: ignore[attr-defined]
        if len(grads) != len(cosines):
            raise ValueError(
                three_beats(
                    "`with_gradient` of a similarity needs to return the value and a derivative w.r.t. each cosine",
                    f"{len(grads)} derivatives for {len(cosines)} cosines",
                    "Return (value, [derivative, ...]) in the order of the cosines.",
                )
            )
        return _checked(value, cosines), [_checked(grad, cosines) for grad in grads]


def _checked(value: object, cosines: Sequence[Tensor]) -> Tensor:
    """What a user's similarity returned; raises unless it is a number for each tuple."""
    shape = torch.broadcast_shapes(*(cosine.shape for cosine in cosines))
    remedy = "Reduce over the list of cosines, as `sum(cosines) / len(cosines)` does, and not over their axes."
    needed = f"A similarity needs to return a floating tensor of the cosines' shape {tuple(shape)}"
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        raise TypeError(three_beats(needed, describe(value), remedy))
    if value.shape != shape:
        raise ValueError(three_beats(needed, describe(value), remedy))
    return value


_SIMILARITIES: dict[str, CosineSimilarity | Multilinear] = {
    "eigenvalue": _EIGENVALUE,
    "singular_value": SingularValue(),
    "mean_cosine": MeanCosine(),
    "volume": Volume(),
    "area": Area(),
    "multilinear": Multilinear(),
}


def resolve_similarity(operation: str, similarity: str | Similarity) -> CosineSimilarity | Multilinear:
    """The similarity of that name, or the user's own object wrapped for the losses."""
    if isinstance(similarity, str):
        check_choice(operation, "similarity", similarity, _SIMILARITIES)
        return _SIMILARITIES[similarity]
    if isinstance(similarity, (CosineSimilarity, Multilinear)):
        return similarity
    remedy = "Pass one of " + ", ".join(_SIMILARITIES) + ", or your own function on the list of cosines."
    check_callable(operation, "similarity", similarity, remedy, "a name or a callable")
    return _UserSimilarity(similarity)


def has_closed_form(similarity: CosineSimilarity | Multilinear, num_modalities: int) -> bool:
    """Whether a formula gives the derivative w.r.t. the cosines, and nothing else requires a gradient."""
    if isinstance(similarity, Multilinear):
        return False
    own = similarity.function if isinstance(similarity, _UserSimilarity) else similarity
    formula = getattr(type(own), "with_gradient", CosineSimilarity.with_gradient)
    return formula is not CosineSimilarity.with_gradient and not is_learnable(similarity, num_modalities)


def is_learnable(similarity: CosineSimilarity | Multilinear, num_modalities: int) -> bool:
    """Whether a similarity holds a parameter, or closes over a tensor, that requires a gradient: tried on one tuple."""
    if similarity in _SIMILARITIES.values() or isinstance(similarity, Multilinear):
        return False
    with torch.enable_grad():
        return similarity([torch.full((1,), 0.5)] * len(_pair_position(num_modalities))).requires_grad
