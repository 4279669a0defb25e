"""Small symmetric eigenproblems, batched, differentiable, and accurate at equal eigenvalues."""

from multicontrast.linalg.gram3 import gram3_eigmax, gram3_eigvals
from multicontrast.linalg.symmetric import eigh3, eigmax, eigvalsh3

__all__ = ["eigh3", "eigmax", "eigvalsh3", "gram3_eigmax", "gram3_eigvals"]
