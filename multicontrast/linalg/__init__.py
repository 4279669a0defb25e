"""Small symmetric eigenproblems, batched, differentiable, and accurate where eigenvalues meet."""

from multicontrast.linalg.gram3 import gram3_eigmax

__all__ = ["gram3_eigmax"]
