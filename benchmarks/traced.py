"""Launches, bytes and products of each loss, counted without a GPU: forward and backward under fake CUDA tensors.

    python -m benchmarks.traced            # a table; no GPU, half a minute
    python -m benchmarks.traced --json     # the same as JSON; stdout has nothing else

These are counted for one step of B samples in three modalities of D = 1,024, with embeddings and temperature as leaves:

    launches    dispatched operators that compute, with `logsumexp` counted as the operators it consists of. For our
                own operators each kernel of the CUDA implementation, which is run with a launcher that only records
    bytes       read and written: each tensor once for each launch that reads it and once for each that writes it, so
                data that a cache holds within a launch is free. For our own kernels the source shows which arguments
                they load and store, in the branches that the compile-time constants leave
    gemm_flops  of matrix products, by the type of their factors
    waits       of the host for the device
    copies      between host and device
    host_ms     processor time of the host under this trace, to compare rows only

Nothing here was measured on a GPU. `clip x3` is three CLIP losses as open_clip writes them (two products each).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import inspect
import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import multicontrast as mc
from benchmarks import cases, cli, driver, records

BATCHES, DIM = (180, 4096), 1024
_MEMORY = 80 << 30  # bytes of the assumed GPU
CLIP = "clip x3"
aten = torch.ops.aten


@dataclass
class Counts:
    """The counts of a step."""

    launches: int = 0
    bytes: int = 0
    gemm_flops: Counter[str] = field(default_factory=Counter)
    waits: int = 0
    copies: int = 0
    names: Counter[str] = field(default_factory=Counter)  # of the launched operators and kernels


# The trace ------------------------------------------------------------------------------------------------------------

_WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"}
_NO_WORK = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::detach", "aten::lift_fresh", "aten::_unsafe_view", "aten::alias", "aten::set_", "prim::device",
}  # fmt: skip
_PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}


class Trace(TorchDispatchMode):
    """Counts what would run on a GPU, above FakeTensorMode. CPU tensors are computed, not faked."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        if name == "aten::_pin_memory":  # it needs a driver
            return args[0]
        if name == "aten::is_pinned":
            return False
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device")
        on_gpu = any(isinstance(x, FakeTensor) for x in inputs) or (device and torch.device(device).type == "cuda")
        if not on_gpu:
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if name in _WAITS:
            self.counts.waits += 1
        if name == "aten::_local_scalar_dense":
            return 1.0
        if function.namespace == "multicontrast":
            return self._implementation(function)(*args, **kwargs)
        if function.namespace == "aten" and function._can_decompose():  # within an operator they come as they are
            with self:
                return function.decompose(*args, **kwargs)
        if function is aten.logsumexp.default:
            with self:
                return _logsumexp(*args, **kwargs)
        result = function(*args, **kwargs)
        self._count(function, name, inputs, kwargs, result)
        return result

    def _implementation(self, function: Any) -> Callable[..., Any]:
        """The CUDA implementation of one of our operators, run under this trace."""
        definition = torch._library.custom_ops.OPDEFS[function._schema.name]
        kernels = definition._backend_fns
        kernel = kernels["cuda"] if "cuda" in kernels else kernels[None]

        def run(*args: Any, **kwargs: Any) -> Any:
            with self, _recording(self.counts):
                return kernel(*args, **kwargs)

        return run

    def _count(self, function: Any, name: str, inputs: list[Tensor], kwargs: Mapping[str, Any], result: Any) -> None:
        counts = self.counts
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        crosses = name in ("aten::_to_copy", "aten::copy_") and len({x.device.type for x in (*inputs, *outputs)}) > 1
        if crosses:
            counts.copies += 1
            counts.waits += not kwargs.get("non_blocking", False)
        if name in _NO_WORK or function.is_view:
            return
        counts.launches += 1
        counts.names[name] += 1
        counts.bytes += sum(map(_extent, (*inputs, *outputs)))
        if name in _PRODUCTS:
            left, right = inputs[-2:]
            kind = str(left.dtype).removeprefix("torch.")
            counts.gemm_flops[kind] += 2 * left.numel() * right.shape[-1]


def _extent(x: Tensor) -> int:
    """Bytes of a tensor in memory; an expanded axis counts once."""
    count = 1
    for length, stride in zip(x.shape, x.stride()):
        count *= length if stride else 1
    return count * x.element_size()


def _logsumexp(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """`logsumexp` as in PyTorch's CUDA implementation."""
    peak = aten.amax(x, dims, True)
    peak = torch.where(peak.abs() == float("inf"), 0.0, peak)
    return (x - peak).exp().sum(dims, keepdim).log() + (peak if keepdim else peak.squeeze(dims))


@contextlib.contextmanager
def _recording(counts: Counts) -> Iterator[None]:
    """Kernels are counted, not launched."""

    def record(kernel: Any, _grid: Any, tuning: Any, _device: Any, arguments: Any, *rest: Any) -> None:
        constants = rest[-1]
        known = {**tuning.default.kwargs, **constants}
        counts.launches += 1
        counts.names[kernel.__name__] += 1
        reads, writes = touched(kernel, frozenset(known.items()))
        for name, argument in zip(kernel.arg_names, arguments):
            if isinstance(argument, Tensor):
                counts.bytes += _extent(argument) * ((name in reads) + (name in writes))

    path = "multicontrast._launch_triton."
    with mock.patch(path + "_launch", record), mock.patch(path + "architecture", return_value="cuda:80"):
        yield


# What a kernel reads and writes ---------------------------------------------------------------------------------------


@functools.cache
def touched(kernel: Any, constants: frozenset[tuple[str, Any]]) -> tuple[frozenset[str], frozenset[str]]:
    """``(names of arguments that are loaded from, names of those stored to)``, from the kernel's source."""
    reads: set[str] = set()
    writes: set[str] = set()
    known = dict(constants)
    _Touched(kernel, {name: {name} for name in kernel.arg_names}, known, reads, writes)
    # Offsets that are added to a pointer are not memory; pointers are recognised by their names.
    found = [frozenset(name for name in names if name.endswith("_ptr")) for names in (reads, writes)]
    return found[0], found[1]


class _Touched(ast.NodeVisitor):
    """Follows pointers from a kernel's arguments through assignments and calls."""

    def __init__(
        self, kernel: Any, origin: dict[str, set[str]], known: dict[str, Any], reads: set[str], writes: set[str]
    ) -> None:
        self.origin, self.known, self.reads, self.writes = origin, known, reads, writes
        self.globals = kernel.fn.__globals__
        self.visit(ast.parse(textwrap.dedent(inspect.getsource(kernel.fn))))

    def visit_If(self, node: ast.If) -> None:
        try:
            code = compile(ast.Expression(node.test), "", "eval")
            chosen = eval(code, {"__builtins__": {}}, self.known)
        except Exception:  # not a compile-time constant
            chosen = None
        for statement in (*(node.body if chosen in (None, True, 1) else ()), *(node.orelse if not chosen else ())):
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    self.origin[name.id] = self._pointers(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.origin[node.target.id] = self.origin.get(node.target.id, set()) | self._pointers(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = node.func
        if isinstance(function, ast.Attribute) and node.args:
            if function.attr == "load" or function.attr.startswith("atomic"):
                self.reads |= self._pointers(node.args[0])
            if function.attr == "store" or function.attr.startswith("atomic"):
                self.writes |= self._pointers(node.args[0])
        callee = self.globals.get(function.id) if isinstance(function, ast.Name) else None
        if callee is not None and hasattr(callee, "arg_names"):
            given = dict(zip(callee.arg_names, node.args)) | {
                word.arg: word.value for word in node.keywords if word.arg
            }
            origin = {name: self._pointers(value) for name, value in given.items()}
            known = {name: self._value(value) for name, value in given.items() if self._value(value) is not None}
            _Touched(callee, origin, known, self.reads, self.writes)

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        return self.known.get(node.id) if isinstance(node, ast.Name) else None

    def _pointers(self, node: ast.AST) -> set[str]:
        """The arguments that an expression points into, without those it loads."""
        if isinstance(node, ast.Call):
            return set()
        if isinstance(node, ast.Name):
            return self.origin.get(node.id, set())
        return set().union(*(self._pointers(child) for child in ast.iter_child_nodes(node)))


# The losses -----------------------------------------------------------------------------------------------------------

Loss = Callable[[list[Tensor], Tensor], Tensor]


def clip_loss(x: Tensor, y: Tensor, logit_scale: Tensor) -> Tensor:
    """open_clip's `ClipLoss` for unit rows, with a product for each direction."""
    logits = logit_scale * x @ y.T, logit_scale * y @ x.T
    labels = torch.arange(len(x), device=x.device, dtype=torch.long)
    return (F.cross_entropy(logits[0], labels) + F.cross_entropy(logits[1], labels)) / 2


def three_clip_losses(xs: list[Tensor], tau: Tensor) -> Tensor:
    """The baseline: features are normalised once, as open_clip's model does."""
    units, logit_scale = [F.normalize(x, dim=-1) for x in xs], 1 / tau
    first, second, third = (clip_loss(units[m], units[n], logit_scale) for m, n in cases.PAIRS)
    return first + second + third


def losses(batch: int) -> dict[str, tuple[Loss, torch.dtype]]:
    """The traced losses, by name."""
    full, half = torch.float32, torch.bfloat16

    def per_sample(**options: Any) -> Tensor:
        return torch.empty(batch, device="cuda", **options)

    def algorithm2(xs: list[Tensor], tau: Tensor) -> Tensor:
        index = mc.sample_tuples(batch, 3, device="cuda")
        units = [F.normalize(x, dim=-1) for x in xs]
        triplet = cases.definitions.algorithm2_triplet(*units, index, tau, decomposition="eigvalsh")
        return three_clip_losses(xs, tau) + triplet

    def pairs(xs: list[Tensor], tau: Tensor) -> Tensor:
        return mc.trimodal_infonce(*xs, tau, alpha=0.0)

    def present(xs: list[Tensor], tau: Tensor) -> Tensor:
        there = torch.empty(batch, 3, device="cuda", dtype=torch.bool)
        return mc.trimodal_infonce(*xs, tau, present=there)

    def by_ids(xs: list[Tensor], tau: Tensor) -> Tensor:
        return mc.trimodal_infonce(*xs, tau, ids=per_sample(dtype=torch.int64))

    def weighted(xs: list[Tensor], tau: Tensor) -> Tensor:
        return mc.trimodal_infonce(*xs, tau, weight=per_sample())

    def trimodal(xs: list[Tensor], tau: Tensor) -> Tensor:
        return mc.trimodal_infonce(*xs, tau)

    return {
        CLIP: (three_clip_losses, full),
        "clip x3, Algorithm 2": (algorithm2, full),
        "pairs": (pairs, full),
        "trimodal": (trimodal, full),
        "trimodal present": (present, full),
        "trimodal ids": (by_ids, full),
        "trimodal weight": (weighted, full),
        "trimodal bfloat16": (trimodal, half),
    }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One loss at one size."""

    loss: str
    batch: int
    dim: int
    dtype: str
    launches: int
    bytes: int
    gemm_flops: dict[str, int]
    waits: int
    copies: int
    host_ms: float
    torch: str = torch.__version__
    date: str = ""


def trace(loss: Loss, batch: int, dim: int, dtype: torch.dtype) -> Counts:
    """Forward and backward, once."""
    memory = mock.patch("torch.cuda.mem_get_info", return_value=(_MEMORY, _MEMORY))
    with memory, FakeTensorMode(allow_non_fake_inputs=True), Trace() as traced:
        xs = [torch.empty(batch, dim, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
        tau = torch.empty((), device="cuda", requires_grad=True)
        _backward(loss(xs, tau))
    return traced.counts


@torch.no_grad()
def _backward(loss: Tensor) -> None:
    """Runs the backward pass node by node, because PyTorch's own engine asks a driver for a device's streams."""
    consumers: Counter[Any] = Counter()
    nodes, seen = [loss.grad_fn], {loss.grad_fn}
    for node in nodes:
        assert node is not None
        for following, _ in node.next_functions:
            if following is not None:
                consumers[following] += 1
                if following not in seen:
                    seen.add(following)
                    nodes.append(following)
    waiting: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        assert node is not None
        given = waiting.pop(node, {})
        if not given and node is not loss.grad_fn:
            results: tuple[Tensor | None, ...] = (None,) * len(node.next_functions)
        else:
            inputs = [given.get(place) for place in range(len(node._input_metadata))]
            found = () if node.name().endswith("AccumulateGrad") else _apply(node, inputs)
            results = found if isinstance(found, tuple) else (found,)
        for (following, place), grad in zip(node.next_functions, results):
            if following is None:
                continue
            if grad is not None:
                meta = following._input_metadata[place]
                grad = grad.to(meta.dtype) if grad.dtype != meta.dtype else grad
                grad = grad.sum_to_size(meta.shape) if tuple(grad.shape) != tuple(meta.shape) else grad
                held = waiting.setdefault(following, {})
                held[place] = held[place] + grad if place in held else grad
            consumers[following] -= 1
            if not consumers[following]:
                ready.append(following)


def _apply(node: Any, inputs: list[Tensor | None]) -> Any:
    return node.apply(*inputs) if hasattr(node, "apply") else node(*inputs)


def measure(name: str, batch: int, dim: int = DIM, repeats: int = 3) -> Row:
    """The row of a loss; its host time is the least of some steps, because the first imports and reads sources."""
    loss, dtype = losses(batch)[name]
    seconds = []
    for _ in range(1 + repeats):
        begin = time.process_time()
        counts = trace(loss, batch, dim, dtype)
        seconds.append(time.process_time() - begin)
    return Row(
        loss=name, batch=batch, dim=dim, dtype=str(dtype).removeprefix("torch."), launches=counts.launches,
        bytes=counts.bytes, gemm_flops=dict(counts.gemm_flops), waits=counts.waits, copies=counts.copies,
        host_ms=round(1e3 * min(seconds), 2),
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    """The rows for reading."""
    lines = [f"{'B':>5} {'launches':>9} {'GiB':>8} {'waits':>6} {'copies':>7} {'host ms':>8}  GEMM, GF; loss"]
    for row in rows:
        products = ", ".join(f"{flops / 1e9:.3g} {kind}" for kind, flops in row.gemm_flops.items())
        counts = f"{row.batch:>5} {row.launches:>9} {row.bytes / 2**30:>8.3f} {row.waits:>6} {row.copies:>7}"
        lines.append(f"{counts} {row.host_ms:>8.1f}  {products}; {row.loss}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Trace and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traced", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="a list of objects on stdout, and nothing else")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument("--only", nargs="+", metavar="LOSS", help="trace only these losses")
    parser.add_argument("--names", action="store_true", help="print the launched operators and kernels to stderr")
    cli.add_record(parser)
    options = parser.parse_args(arguments)
    rows = []
    for batch in options.batch:
        for name in losses(batch):
            if options.only and name not in options.only:
                continue
            rows.append(measure(name, batch, options.dim))
            if options.names:
                loss, dtype = losses(batch)[name]
                print(f"{name}, B = {batch}: {dict(trace(loss, batch, options.dim, dtype).names)}", file=sys.stderr)
    if options.record:
        date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        texts = [{**asdict(row), "gemm_flops": json.dumps(row.gemm_flops), "date": date} for row in rows]
        records.append(driver.RESULTS / "traced" / "losses.csv", [Row(**text) for text in texts])
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
