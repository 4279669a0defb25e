"""How the operations of this package are registered: each states its implementations and derivatives once.

One :class:`Operation` makes a ``torch.autograd.Function``, which eager PyTorch and the transforms of ``torch.func``
call, and custom operators with the same formulas, each of which compilers and exporters keep as one node.
:meth:`Operation.evaluate` alone decides which implementation computes the numbers.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from multicontrast._backend import is_transformed, run_kernel, use_triton
from multicontrast._checks import can_read_values, three_beats

Results = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


class Operation:
    """A differentiable operation on tensors of one type (float32 or float64) and device.

    The implementations return all results, or may return only the first if ``alone``. Results are new tensors. The last
    arguments may be Python values.
    """

    function: str
    """The public function, for error messages."""
    name: str
    """The name of the operator ``multicontrast::name`` that returns all results."""
    value_name: str | None = None
    """The name of the operator that returns only the first; None if there is no such operator."""
    arguments = "Tensor matrix"
    """The arguments in the operator's schema."""
    results = 1
    constants = 0
    """How many of the last results have no derivative."""
    batch_last = False
    """Whether the batch is the last axis of every tensor; otherwise any leading axes are."""
    inlined = False
    """Whether :meth:`evaluate` shows a compiler the plain formulas instead of an operator."""
    saved_inputs, saved_results = 0, slice(None)
    """The tensors that are saved for the derivatives, the residuals: the number of first inputs, and which results."""

    # What a subclass defines -----------------------------------------------------------------------------------------

    def plain(self, alone: bool, can_read: bool, *inputs: Any) -> Tensor | Results:
        """In PyTorch. It may branch on values only if ``can_read``, which is True on a CPU in eager mode."""
        raise NotImplementedError

    def triton(self, alone: bool, *inputs: Any) -> Tensor | Results:
        """By Triton kernels."""
        raise NotImplementedError

    def fake(self, *inputs: Any) -> Results:
        """Empty tensors of the results' shapes."""
        raise NotImplementedError

    def backward(self, residuals: tuple[Any, ...], *cotangents: Tensor | None) -> Gradients:
        """One gradient for each tensor; the arguments that are not tensors follow the ``residuals``."""
        remedy = "Use it where a first derivative is enough."
        raise NotImplementedError(
            three_beats(f"`{self.function}` can be differentiated once", "a request for its second derivative", remedy)
        )

    def forward_mode(self, residuals: tuple[Any, ...], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """One tangent for each result."""
        remedy = "Use reverse mode."
        raise NotImplementedError(
            three_beats(f"`{self.function}` is differentiated in reverse mode", "forward mode", remedy)
        )

    # What this class makes of it -------------------------------------------------------------------------------------

    def __init__(self) -> None:
        self._function = _function(self)
        self._operator = _operator(self, self.name, self.results, False)
        self._operator.register_autograd(self._function.backward, setup_context=self._function.setup_context)
        self._operator_alone = self._operator
        if self.value_name is not None:
            self._operator_alone = _operator(self, self.value_name, 1, True)
            self._operator_alone.register_autograd(self._backward_alone, setup_context=_save_inputs)

    def __call__(self, *inputs: Any) -> Any:
        """All results, differentiable: a tensor if there is one, else a tuple."""
        return self._operator(*inputs) if torch.compiler.is_compiling() else self._function.apply(*inputs)

    def value(self, *inputs: Any) -> Tensor:
        """The first result, differentiable; computed alone if no derivative can be needed."""
        tensors = _tensors(inputs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return _first(self(*inputs))
        if torch.compiler.is_compiling():
            return _first(self._operator_alone(*inputs))
        if is_transformed(*tensors):
            return _first(self(*inputs))  # an outer transform may differentiate without showing it here
        return _first(self.evaluate(True, *inputs))

    def evaluate(self, alone: bool, *inputs: Any) -> Any:
        """The results by the best implementation for these tensors, without derivatives."""
        tensor = inputs[0]
        if isinstance(tensor, FakeTensor) or tensor.is_meta:
            results: Tensor | Results = self.fake(*inputs)
        elif (torch.compiler.is_compiling() or _is_traced()) and (not self.inlined or use_triton(tensor)):
            results = self._operator_alone(*inputs) if alone else self._operator(*inputs)
        elif use_triton(tensor):
            results = run_kernel(partial(self.triton, alone), partial(self.plain, alone, False), *inputs)
        else:
            results = self.plain(alone, can_read_values(tensor), *inputs)
        return _first(results) if alone or self.results == 1 else results

    def residuals(self, inputs: tuple[Any, ...], results: Results) -> Results:
        return (*inputs[: self.saved_inputs], *results[self.saved_results])

    def _backward_alone(self, ctx: Any, cotangent: Tensor) -> Gradients:
        inputs = ctx.saved_tensors
        residuals = self.residuals(inputs, self._operator(*inputs))
        return self.backward(residuals, cotangent, *[None] * (self.results - 1))


def _function(operation: Operation) -> type[torch.autograd.Function]:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*inputs: Any) -> Any:
            return operation.evaluate(False, *inputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            results = (output,) if isinstance(output, Tensor) else output
            if operation.constants:
                ctx.mark_non_differentiable(*results[-operation.constants :])
            residuals = operation.residuals(inputs, results)
            ctx.save_for_backward(*residuals)
            ctx.save_for_forward(*residuals)
            ctx.rest = inputs[len(_tensors(inputs)) :]
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> Gradients:
            if all(cotangent is None for cotangent in cotangents):
                return (None,) * len(ctx.needs_input_grad)
            gradients = operation.backward((*ctx.saved_tensors, *ctx.rest), *cotangents)
            return (*gradients, *[None] * len(ctx.rest))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
            _refuse_nested_forward_mode(operation.function)
            known = tangents[: len(tangents) - len(ctx.rest)]
            moved = operation.forward_mode((*ctx.saved_tensors, *ctx.rest), *known)
            return moved[0] if operation.results == 1 else moved

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
            return _mapped(operation, Function.apply, info, in_dims, inputs)

    return Function


def _operator(operation: Operation, name: str, results: int, alone: bool) -> Any:
    def evaluate(*inputs: Any) -> Any:
        found = operation.evaluate(alone, *inputs)
        return found.contiguous() if isinstance(found, Tensor) else tuple(one.contiguous() for one in found)

    def fake(*inputs: Any) -> Any:
        empty = operation.fake(*inputs)
        return empty[0] if results == 1 else empty

    returns = "Tensor" if results == 1 else "(" + ", ".join(["Tensor"] * results) + ")"
    schema = f"({operation.arguments}) -> {returns}"
    operator = torch.library.custom_op(f"multicontrast::{name}", evaluate, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    operator.register_vmap(lambda info, in_dims, *inputs: _mapped(operation, operator, info, in_dims, inputs))
    return operator


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001, torch names it
    ctx.save_for_backward(*inputs)


def _mapped(
    operation: Operation, call: Callable[..., Any], info: Any, in_dims: Sequence[int | None], inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The ``vmap`` rule: the mapped axis becomes a leading batch axis, or is folded into a batch that is last."""
    tensors = _tensors(inputs)
    place = -2 if operation.batch_last else 0

    def joined(tensor: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            tensor, dim = tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape), 0
        moved = tensor.movedim(dim, place)
        return moved.flatten(-2) if operation.batch_last else moved

    results = call(*map(joined, tensors, in_dims), *inputs[len(tensors) :])
    parts = (results,) if isinstance(results, Tensor) else results
    if operation.batch_last:
        parts = tuple(part.unflatten(-1, (info.batch_size, -1)) for part in parts)
    places = tuple(part.dim() - 2 if operation.batch_last else 0 for part in parts)
    return (parts[0], places[0]) if isinstance(results, Tensor) else (parts, places)


def _tensors(inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The tensors, which come first."""
    return tuple(one for one in inputs if isinstance(one, Tensor))


def _first(results: Tensor | Results) -> Tensor:
    return results if isinstance(results, Tensor) else results[0]


def _refuse_nested_forward_mode(operation: str) -> None:
    """Raise inside a forward-mode derivative of a forward-mode derivative.

    PyTorch drops the outer tangent of a custom function there and would silently return a Hessian of zeros.
    """
    try:  # a private function of PyTorch; without it there is no check
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
    except ImportError:  # pragma: no cover
        return
    levels = [level.key().name for level in retrieve_all_functorch_interpreters()]
    if levels.count("Jvp") > 1:
        needed = f"`{operation}` can be differentiated in forward mode once"
        remedy = "Take the other derivative in reverse mode: `torch.func.jacfwd(torch.func.jacrev(f))`."
        raise NotImplementedError(three_beats(needed, "forward mode over forward mode", remedy))


def _is_traced() -> bool:
    """Whether a compiler is recording operators, as it does when it differentiates a graph that it has captured."""
    modes = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)
