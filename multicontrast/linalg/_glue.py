"""What the operations of this package share."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from multicontrast._checks import three_beats


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether anybody will ask for a derivative, in reverse or in forward mode; if not, the value alone will do."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    if torch.compiler.is_compiling():
        return False
    transform = torch._C._functorch.peek_interpreter_stack()
    if transform is not None and transform.key() == torch._C._functorch.TransformType.Vmap:
        return False  # it hides the tangents; a rule for `vmap` asks again below it
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def is_eager_cpu(tensor: Tensor) -> bool:
    """Whether values may be read and buffers reused: a plain tensor on a CPU, outside a compiler."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor and not torch.compiler.is_compiling()


def blocks(count: int, length: int) -> Iterator[slice]:
    """``count`` rows, by ``length`` at a time so that intermediate results stay in the cache."""
    for start in range(0, count, length):
        yield slice(start, min(start + length, count))


def refuse_nested_forward_mode(operation: str) -> None:
    """Raise inside a forward-mode derivative of a forward-mode derivative.

    PyTorch drops the outer tangent of a custom function there and would return a Hessian of zeros without a word.
    """
    try:  # private, and only for a better message: without it the result is PyTorch's
        from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
    except ImportError:  # pragma: no cover
        return
    levels = [level.key().name for level in retrieve_all_functorch_interpreters()]
    if levels.count("Jvp") > 1:
        needed = f"`{operation}` can be differentiated in forward mode once"
        remedy = "Take the other derivative in reverse mode: `torch.func.jacfwd(torch.func.jacrev(f))`."
        raise NotImplementedError(three_beats(needed, "forward mode over forward mode", remedy))


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of small matrices, in full precision whatever autocast and the settings for TF32 say."""
    total = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        total = torch.addcmul(total, a[..., :, k : k + 1], b[..., k : k + 1, :])
    return total


def batch_last(matrices: Tensor) -> Tensor:
    """``(n, N, M)`` in memory where the entries are contiguous over the batch, as a CPU wants them entry by entry."""
    return matrices.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def is_traced() -> bool:
    """Whether a compiler is recording operators, as it does when it differentiates a graph that it has captured."""
    modes = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)
    return any(torch._C._get_dispatch_mode(mode) is not None for mode in modes)
