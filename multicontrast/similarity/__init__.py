r"""What makes a tuple of embeddings alike.

A similarity knows the cosines of a tuple and nothing else. For ``N`` modalities they come as ``N (N - 1) / 2`` tensors
of one shape in the order ``(0, 1), (0, 2), ..., (N - 2, N - 1)``; for an image, a 2D and a 3D pose that is
:math:`a = \langle x_{img}, x_{2D} \rangle`, :math:`b = \langle x_{img}, x_{3D} \rangle`,
:math:`c = \langle x_{2D}, x_{3D} \rangle`.

To add one, write an object (or a plain function) that maps that list to a tensor of the same shape, larger for tuples
that are more alike, and pass it as ``similarity=``. It must be differentiable; if it also has
``with_gradient(cosines) -> (value, [derivative for each cosine])``, the losses use that closed form instead of
autograd. The multilinear product needs the embeddings themselves and is the one exception.

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

from multicontrast.similarity._compiled import compiled
from multicontrast.similarity._formulas import (
    SIMILARITIES,
    CosineSimilarity,
    Similarity,
    resolve_similarity,
)
from multicontrast.similarity._formulas import Eigenvalue as Eigenvalue
from multicontrast.similarity._formulas import MeanCosine as MeanCosine
from multicontrast.similarity._formulas import Multilinear as Multilinear
from multicontrast.similarity._formulas import Pullback as Pullback

__all__ = ["SIMILARITIES", "CosineSimilarity", "Similarity", "compiled", "resolve_similarity"]
