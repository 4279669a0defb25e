"""Second derivatives of operators whose first derivative is a kernel, by autograd through a plain form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def second_derivative(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The derivative of ``(cotangents * (J' grads)).sum()``, with ``J`` the Jacobian of ``function``.

    Returns the derivatives w.r.t. ``inputs`` and ``grads``. ``function`` maps the inputs to one tensor, or to as many
    as ``grads`` has.
    """
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in inputs)
        grads = tuple(x.detach().requires_grad_() for x in grads)
        first = torch.autograd.grad(function(*inputs), inputs, grads, create_graph=True, materialize_grads=True)
        results = torch.autograd.grad(first, (*inputs, *grads), cotangents, materialize_grads=True)
    return results[: len(inputs)], results[len(inputs) :]
