"""The rotation's kernel: values, gradients and degenerate matrices against the singular value decomposition."""

from __future__ import annotations

import mpmath
import numpy as np
import torch
from executors import COMPILED, device, emulated, on
from families import ROTATIONS
from torch import Tensor


def _turns(count: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(count).standard_normal((2 * count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]
    q[..., 0] *= np.linalg.det(q)[:, None]
    return q


def _family(values: tuple[float, ...], count: int, dtype: torch.dtype) -> Tensor:
    """``(3, 3, N)``, of many scales."""
    turns = _turns(count)
    matrices = (turns[:count] * np.array(values)) @ turns[count:].swapaxes(1, 2)
    matrices *= 2.0 ** np.linspace(-40, 40, count).round()[:, None, None]
    return torch.from_numpy(np.ascontiguousarray(matrices.transpose(1, 2, 0))).to(dtype)


def _decompose(matrix: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(U, s, V^T)``, batch first: in float64 for float32 matrices, in 40 digits for float64."""
    if matrix.dtype == torch.float32:
        return np.linalg.svd(matrix.double().numpy().transpose(2, 0, 1))
    parts = []
    with mpmath.workdps(40):
        for one in matrix.permute(2, 0, 1).tolist():
            parts.append(mpmath.svd_r(mpmath.matrix(one)))
    u, s, vt = (
        np.array([[np.longdouble(mpmath.nstr(x, 25)) for x in part[k]] for part in parts]) for k in range(3)
    )  # fmt: skip
    return u.reshape(-1, 3, 3), s, vt.reshape(-1, 3, 3)


def _determinants(a: np.ndarray) -> np.ndarray:
    return (a[:, 0] * np.cross(a[:, 1], a[:, 2])).sum(1)


def _definition(matrix: Tensor, allow_reflection: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(R, V, signed singular values)``, batch first."""
    u, s, vt = _decompose(matrix)
    sign = np.ones_like(s)
    if not allow_reflection:
        sign[:, 2] = np.sign(_determinants(u) * _determinants(vt))
    return (u * sign[:, None]) @ vt, vt.swapaxes(1, 2), s * sign


def _gradient(matrix: Tensor, grad: np.ndarray, allow_reflection: bool) -> np.ndarray:
    """``R [z]x`` with ``z`` from the linear system of the derivative, batch first."""
    rotation, v, s = _definition(matrix, allow_reflection)
    twist = rotation.swapaxes(1, 2) @ grad
    twist = twist - twist.swapaxes(1, 2)
    vee = np.stack([twist[:, 2, 1], twist[:, 0, 2], twist[:, 1, 0]], -1)
    gaps = s.sum(1, keepdims=True) - s
    z = (v @ ((v.swapaxes(1, 2) @ vee[..., None]) / gaps[..., None]))[..., 0]
    cross = np.zeros_like(rotation)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z[:, 2], z[:, 1], -z[:, 0]
    return rotation @ (cross - cross.swapaxes(1, 2))


def _check(dtype: torch.dtype, count: int, allow_reflection: bool) -> None:
    from multicontrast.linalg._rotation_triton import rotation3, rotation3_backward

    # With reflections allowed a matrix of rank 2 has two nearest.
    families = [values for values in ROTATIONS.values() if values[2] != 0 or not allow_reflection]
    matrix = torch.cat([_family(values, count, dtype) for values in families], -1)
    gaps = np.repeat([values[1] + (abs(values[2]) if allow_reflection else values[2]) for values in families], count)
    # The matrix itself is rounded, which alone turns the rotation by an eps of this ratio.
    unit = torch.finfo(dtype).eps * np.repeat([values[0] for values in families], count) / gaps
    rotation = rotation3(matrix.to(device()), allow_reflection)
    expected, _, _ = _definition(matrix, allow_reflection)
    result = rotation.cpu().numpy().astype(np.longdouble).transpose(2, 0, 1)
    assert np.abs(result @ result.swapaxes(1, 2) - np.eye(3)).max() <= 8 * torch.finfo(dtype).eps
    error = np.abs(result - expected).max((1, 2)) / unit
    assert error.max() <= 8, error
    grad = torch.randn(matrix.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    slope = rotation3_backward(grad.to(device()), matrix.to(device()), allow_reflection)
    exact = _gradient(matrix, grad.numpy().astype(np.longdouble).transpose(2, 0, 1), allow_reflection)
    error = np.abs(slope.cpu().numpy().astype(np.longdouble).transpose(2, 0, 1) - exact).max((1, 2))
    error = error / np.abs(exact).max((1, 2)) / unit
    assert error.max() <= 64, error


@on(*COMPILED, "gpu")
def test_values_and_gradients_whatever_the_approximate_operations_do():
    emulated(noise=1.0)
    _check(torch.float32, 60, allow_reflection=False)


@on("interpreter", "sm_80", "gpu")
def test_nearest_of_both_signs():
    _check(torch.float32, 60, allow_reflection=True)


@on("interpreter", "sm_80", "gpu")
def test_float64():
    _check(torch.float64, 8, False)


@on("interpreter", "sm_80", "gpu", slow=("sm_80",))
def test_awkward_sizes_and_strides():
    from multicontrast.linalg._rotation_triton import rotation3, rotation3_backward

    for count in (0, 1, 129):
        matrix, grad = torch.randn(2, 3, 3, count, device=device())
        expected, slope = rotation3(matrix), rotation3_backward(grad, matrix)
        padded = torch.full((count, 5, 7), float("nan"), device=device())
        padded[:, 1:4, ::3] = matrix.permute(2, 1, 0)
        strided = padded[:, 1:4, ::3].permute(2, 1, 0)
        torch.testing.assert_close(rotation3(strided), expected, rtol=0, atol=0)
        spread = torch.full((3, 3, 2 * count), float("nan"), device=device())
        spread[..., ::2] = grad
        torch.testing.assert_close(rotation3_backward(spread[..., ::2], strided), slope, rtol=0, atol=0)


def _degenerate(dtype: torch.dtype) -> Tensor:
    """Rank 1 and 0, a reflection with two equal least values, single entries: the rotation is one of many."""
    turned = [_family(values, 12, dtype) for values in ((1.0, 0, 0), (1, 1e-9, 0), (1, 1, -1), (1, 0.5, -0.5))]
    special = torch.zeros(23, 3, 3, dtype=dtype)
    for index in range(9):
        special[index].view(-1)[index] = 1.0
        special[9 + index].view(-1)[index] = -1.0
    special[18, 0] = 1.0
    special[19], special[20] = -torch.eye(3), 1.0
    special[21] = torch.diag(torch.tensor([1.0, 1.0, -1.0]))  # the last is zero
    return torch.cat((*turned, special.permute(1, 2, 0)), -1)


@on("interpreter", "sm_80", "sm_100", "gpu", slow=("sm_80", "sm_100"))
def test_degenerate_matrices_give_a_rotation_that_is_a_maximum_and_a_finite_gradient():
    from multicontrast.linalg._rotation_triton import rotation3, rotation3_backward

    for dtype in (torch.float32, torch.float64):
        matrix = _degenerate(dtype)
        eps = torch.finfo(dtype).eps
        rotation = rotation3(matrix.to(device()))
        assert torch.equal(rotation[..., -1].cpu(), torch.eye(3, dtype=dtype))
        _, _, s = _definition(matrix, False)
        result = rotation.double().cpu().numpy().transpose(2, 0, 1)
        assert np.abs(result @ result.swapaxes(1, 2) - np.eye(3)).max() <= 16 * eps
        assert np.abs(np.linalg.det(result) - 1).max() <= 16 * eps
        reached = (result * matrix.double().numpy().transpose(2, 0, 1)).sum((1, 2))
        assert (s.sum(1) - reached <= 16 * eps * s[:, 0]).all()
        grad = torch.randn(matrix.shape, dtype=dtype).to(device())
        slope = rotation3_backward(grad, matrix.to(device()))
        assert slope.isfinite().all() and not slope[..., -1].any()
        largest = matrix.abs().amax((0, 1)).clamp_min(torch.finfo(dtype).tiny).to(device())
        assert (slope.abs().amax((0, 1)) * largest).max() <= 50 / eps**0.5


@on("interpreter", *COMPILED, "gpu", slow=COMPILED)
def test_nan_and_infinity_poison_their_matrix_and_no_other():
    from multicontrast.linalg._rotation_triton import rotation3, rotation3_backward

    matrix = torch.eye(3, device=device())[..., None].repeat(1, 1, 20)
    for entry in range(9):
        matrix[entry // 3, entry % 3, 2 * entry] = float("nan")
        matrix[entry // 3, entry % 3, 2 * entry + 1] = -float("inf")
    for result in (rotation3(matrix), rotation3_backward(torch.ones_like(matrix), matrix)):
        assert result[..., :18].isnan().all() and result[..., 18:].isfinite().all()


@on("sm_90", "gpu")
def test_offsets_beyond_32_bits():
    from multicontrast.linalg._rotation_triton import rotation3

    near = torch.randn(3, 3, 3, device=device())
    far = torch.empty(2**31 + 64, device=device()).as_strided((3, 3, 3), (3, 1, 2**30))
    far.copy_(near)
    torch.testing.assert_close(rotation3(far), rotation3(near), rtol=0, atol=0)


@on("torch", "interpreter", "gpu")
def test_the_operator_is_well_formed_and_one_node_for_the_compiler():
    from multicontrast.linalg.rotation import batch_last_rotation as rotation3
    from multicontrast.linalg.rotation import proper_rotation

    allow_reflection = True
    matrix = torch.randn(3, 3, 5, device=device(), requires_grad=True)
    torch.library.opcheck(torch.ops.multicontrast.rotation.default, (matrix, allow_reflection))

    def loss(matrix: Tensor) -> Tensor:
        return proper_rotation(matrix.permute(2, 0, 1), allow_reflection=allow_reflection)[:, 0, 1].square().sum()

    expected = torch.autograd.grad(loss(matrix), matrix)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(matrix), matrix), expected)

    class Module(torch.nn.Module):
        def forward(self, matrix: Tensor) -> Tensor:
            return loss(matrix)

    exported = torch.export.export(Module(), (matrix,)).module()
    torch.testing.assert_close(exported(matrix), loss(matrix))
    stack = torch.randn(4, 3, 3, 5, device=device())
    mapped = torch.func.vmap(lambda one: rotation3(one, allow_reflection), in_dims=1)(stack.movedim(0, 1))
    torch.testing.assert_close(mapped, torch.stack([rotation3(one, allow_reflection) for one in stack]))
    mapped = torch.func.vmap(torch.func.grad(loss))(stack)
    torch.testing.assert_close(mapped, torch.stack([torch.func.grad(loss)(one) for one in stack]))


@on("interpreter", "gpu")
def test_the_public_function_runs_the_kernel_and_agrees_with_plain_pytorch():
    import os

    from multicontrast.linalg import rotation

    for dtype in (torch.float32, torch.float64):
        matrix = torch.randn(2, 3, 3, 3, dtype=dtype, device=device(), requires_grad=True)
        cotangent = torch.randn_like(matrix)
        found = []
        for backend in ("triton", "torch"):
            os.environ["MULTICONTRAST_BACKEND"] = backend
            try:
                result = rotation.proper_rotation(matrix)
                found.append((result.detach(), *torch.autograd.grad(result, matrix, cotangent)))
            finally:
                os.environ["MULTICONTRAST_BACKEND"] = "triton"
        torch.testing.assert_close(*found)
