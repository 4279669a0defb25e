"""Small symmetric eigenproblems, batched, differentiable, and accurate where eigenvalues meet."""

from multicontrast.linalg.gram3 import gram3_eigmax
from multicontrast.linalg.symmetric import eigmax

__all__ = ["eigmax", "gram3_eigmax"]
