"""Public functions return a right value or raise an error in three parts, for any argument.

Every argument of every public function, class and method is replaced by odd values in turn, the others staying valid.
What must not happen, by kind:

``foreign``   an exception of another type, which somebody else raised
``unworded``  a TypeError or ValueError that does not say what was needed, what came and what to do
``accepted``  an answer for a value that is not of the argument's kind: text for a flag, a bool for a number
``nan``       NaN for a finite number, where the valid call gives none
``differs``   another answer than for the same value in its plain form: a NumPy scalar, a strided view, a subclass

``python tests/test_any_argument.py metrics linalg`` prints what falls, by function.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import decimal
import fractions
import inspect
import math
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multicontrast as mc
import unihpe_ref
from multicontrast import _checks, metrics
from multicontrast.losses import sample_tuples
from unihpe_ref import data, diffusion, models
from unihpe_ref.config import ModelConfig, SamplerConfig
from unihpe_ref.models.vit import ViTEncoder
from unihpe_ref.parts import Part
from unihpe_ref.report import PoseReport

# --- Odd values ------------------------------------------------------------------------------------------------------


class _Text(str):
    pass


class _Tensor(Tensor):
    pass


class _Hostile:
    """Answers every question with an error."""

    def _refuse(self, *_: Any) -> Any:
        raise RuntimeError("asked")

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __float__ = __index__ = __eq__ = __hash__ = _refuse


class _Index:
    def __index__(self) -> int:
        return 1


class _Float:
    def __float__(self) -> float:
        return 0.5


def _self_holding() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def odd_values() -> dict[str, Any]:
    """Values of all kinds but tensors of the right shape, by name; new ones at each call."""
    values: list[Any] = [
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        -5,
        10**20,
        10**400,
        -(10**400),
        2**62,
        2**63,
        0.0,
        -0.0,
        0.5,
    ]
    values += [1.0, -25.0, 1e8, 1e308, 1e-46, 5e-324, math.nan, math.inf, -math.inf, 1j, decimal.Decimal("0.5")]
    values += [fractions.Fraction(1, 2), np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(1), np.uint8(1)]
    values += [
        np.bool_(True),
        np.array(0.5),
        np.array(1),
        np.array([0.5, 0.75]),
        np.ones((4, 3), np.float32),
        np.array([]),
    ]
    values += ["", "x", "no", "false", "mean", "0.5", "\0", "[/red]", "a" * 10_000, b"x", bytearray(b"x"), np.str_("x")]
    values += [[], (), [0.5], [0, 1], [[0.5]], ["x"], {}, {"a": 1}, set(), {0, 1}, range(3), (None,), [True], [10**400]]
    values += [[math.nan], collections.deque([0.5]), Ellipsis, slice(3), int, len, torch.float32, torch.device("cpu")]
    values += [torch.tensor(0.5), torch.tensor(1), torch.tensor(True), torch.tensor([]), torch.ones(2), torch.eye(3)]
    values += [nn.Linear(2, 2), ValueError("x"), np.datetime64("2020-01-01")]
    named = {_named(value): value for value in values}
    named |= {
        "iterator": iter([0.5]),
        "generator expression": (x for x in [0.5]),
        "a list within itself": _self_holding(),
    }
    named |= {"an object": object(), "__index__": _Index(), "__float__": _Float(), "text subclass": _Text("x")}
    return named | {"hostile": _Hostile(), "torch.Generator": torch.Generator()}


def _named(value: Any) -> str:
    text = f"{type(value).__name__} {_checks.describe(value)}"
    return text if isinstance(value, (Tensor, int, float, str, np.generic)) else f"{text} {str(value)[:60]}"


def odd_tensors(base: Tensor) -> dict[str, Any]:
    """Tensors that come from ``base`` by one change each."""
    dense = base.detach().clone()
    found: dict[str, Any] = {}

    def add(name: str, make: Callable[[], Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch has no such tensor of this type
            with contextlib.suppress(RuntimeError, TypeError, IndexError, NotImplementedError):
                found[name] = make()

    for dtype in ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "bool"):
        add(dtype, lambda dtype=dtype: dense.to(getattr(torch, dtype)))
    for dtype in ("int8", "uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64"):
        add(dtype, lambda dtype=dtype: dense.to(getattr(torch, dtype)))
    add("sparse", lambda: dense.to_sparse())
    add("sparse csr", lambda: dense.to_sparse_csr())
    add("mkldnn", lambda: dense.to_mkldnn())
    add("quantised", lambda: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8))
    add("nested", lambda: torch.nested.nested_tensor([dense, dense]))
    add("jagged", lambda: torch.nested.nested_tensor([dense, dense], layout=torch.jagged))
    add("nested rows", lambda: torch.nested.nested_tensor(list(dense)))
    add("meta", lambda: dense.to("meta"))
    add("lazy", lambda: nn.UninitializedParameter())
    add("parameter", lambda: nn.Parameter(dense.clone()))
    add("subclass", lambda: dense.as_subclass(_Tensor))
    add("strided", lambda: torch.stack([dense, dense], -1)[..., 0])
    add(
        "flipped memory",
        lambda: dense.permute(*reversed(range(dense.ndim))).contiguous().permute(*reversed(range(dense.ndim))),
    )
    add("negative bit", lambda: torch._neg_view(-dense))
    add("expanded", lambda: dense[:1].expand(dense.shape))
    add("no strides", lambda: torch.zeros((), dtype=dense.dtype).expand(dense.shape))
    add("inference", lambda: _inference(dense))
    add("zero tensor", lambda: torch._efficientzerotensor(dense.shape, dtype=dense.dtype))
    add("one axis more", lambda: dense[None])
    add("one axis less", lambda: dense[0])
    add("no axis", lambda: dense.flatten()[0])
    add("no rows", lambda: dense[:0])
    add("no columns", lambda: dense[..., :0])
    add("a row less", lambda: dense[1:])
    add("a column less", lambda: dense[..., 1:])
    add("numpy", lambda: dense.numpy())
    add("list", lambda: dense.tolist())
    for value in (math.nan, math.inf, -1.0, 1e30, 1e-45, 0.0):
        add(f"all {value}", lambda value=value: torch.full_like(dense, value))
    add("huge integers", lambda: torch.full_like(dense, 2**62))
    return found


def _inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


def odd_for(base: Any, thorough: bool = True) -> dict[str, Any]:
    """What replaces an argument whose valid value is ``base``; unless ``thorough``, fewer for the items of a list."""
    values = odd_values()
    if isinstance(base, Tensor):
        values |= odd_tensors(base)
    elif isinstance(base, (list, tuple)) and base:
        changed = odd_tensors(base[0]) if isinstance(base[0], Tensor) else {}
        items = list((values | changed).items())
        values |= {f"first: {name}": [value, *base[1:]] for name, value in items[:: 1 if thorough else 3]}
        values |= {"one more": [*base, base[-1]], "one less": list(base[1:]), "iterator of it": iter(base)}
    return values


# --- What is right ---------------------------------------------------------------------------------------------------

# Arguments that are of more kinds than their valid value here shows.
ALSO = {
    "tau": "tensor",
    "temperature": "object",
    "negatives": "tensor",
    "similarity": "object",
    "root": "numbers count none",
    "k": "numbers count",
    "counts": "count",
    "norm": "number",
    "area": "number tensor",
    "gather": "object",
    "ids": "tensor numbers texts",
    "action": "texts",
    "subject": "texts",
    "thresholds": "tensor",
    "sigmas": "tensor",
    "joints": "tensor",
    "encoders": "object",
    "inputs": "tensor tensors object",
    "tiled": "flag",
    "match": "tensor",
    "device": "object",
    "extra_negatives": "object",
    "metrics": "object",
    "pairs": "object",
    "module": "object",
    "imagenet": "text",
    "notes": "texts",
    "width": "number tensor",
}
# Numbers that must be at least 0; most of them must be positive.
NOT_NEGATIVE = (
    "fps",
    "threshold",
    "tau",
    "temperature",
    "alpha",
    "t",
    "hardness",
    "base",
    "init",
    "min",
    "max",
    "norm",
)
NOT_NEGATIVE += ("unit_scale", "label_smoothing", "area", "digits", "size", "dim", "k", "examples", "num_negatives")


def kind_of(value: Any) -> str:
    """Which kind of argument a value is."""
    if isinstance(value, (bool, np.bool_)):
        return "flag"
    if isinstance(value, (int, np.integer)):
        return "count"
    if isinstance(value, (float, np.floating, fractions.Fraction)):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, (list, tuple, range, collections.deque)) or (
        isinstance(value, np.ndarray) and value.ndim == 1
    ):
        kinds = {kind_of(item) for item in value}
        if not kinds:
            return "empty"
        if kinds <= {"count", "number"}:
            return "numbers"
        return "texts" if kinds == {"text"} else "tensors" if kinds == {"tensor"} else "mixture"
    return "none" if value is None else "object"


def may_be(parameter: inspect.Parameter, base: Any, value: Any) -> bool:
    """Whether a value is of a kind that the argument takes."""
    own = {kind_of(base), *ALSO.get(parameter.name, "").split()}
    kind = kind_of(value)
    if kind == "none":
        return parameter.default is None or "object" in own or "none" in own
    if kind == "object":
        return "object" in own
    if kind == "empty":
        return bool(own & {"numbers", "texts", "tensors", "object"})
    if kind in ("count", "number"):
        if isinstance(value, float) and math.isnan(value):
            return False
        if value < 0 and parameter.name in NOT_NEGATIVE:
            return False
        return kind in own or (kind == "count" and "number" in own)
    if kind == "tensor" and "numbers" in own:
        return value.ndim == 1
    return kind in own or ("object" in own and kind in ("mixture", "tensors", "texts"))


def plain(value: Any) -> Any:
    """The same value as Python or torch has it by default."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, fractions.Fraction):
        return float(value)
    if isinstance(value, Tensor) and value.device.type == "cpu" and not value.is_nested and not value.is_inference():
        return value.detach().resolve_neg().clone(memory_format=torch.contiguous_format).as_subclass(Tensor)
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return str(value) if isinstance(value, str) else value


def numbers_in(result: Any) -> Iterator[Tensor]:
    """All that was computed."""
    if isinstance(result, Tensor):
        yield result.detach()
    elif isinstance(result, (bool, int, float)):
        yield torch.tensor(result, dtype=torch.float64)
    elif isinstance(result, dict):
        for value in result.values():
            yield from numbers_in(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from numbers_in(value)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for item in dataclasses.fields(result):
            yield from numbers_in(getattr(result, item.name))


def rounded(value: Any) -> Any:
    """The same value but for some roundings. Other strides are another order of summation, another rounding."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value * (1 + 8 * torch.finfo(value.dtype).eps * torch.randn(value.shape).sign().to(value))
    return type(value)(rounded(item) for item in value) if type(value) in (list, tuple) else value


def scale_of(result: Tensor) -> float:
    """The largest finite magnitude, at least 1: what a sum has lost by rounding is relative to its terms."""
    finite = result[result.isfinite()] if result.is_floating_point() else result.new_empty(0)
    return max(1.0, float(finite.abs().max())) if finite.numel() else 1.0


def agree(one: Any, other: Any, beside: Any = None) -> bool:
    """Whether two results are the same but for a rounding, or as near as the other is to one ``beside`` it."""
    results = [list(numbers_in(result)) for result in (one, other, other if beside is None else beside)]
    return len({len(result) for result in results}) == 1 and all(
        a.shape == b.shape == c.shape
        and a.dtype == b.dtype
        and (
            a.is_meta
            or torch.allclose(a, b, 1e-4, 1e-5 * scale_of(b), equal_nan=True)
            or (a.is_floating_point() and bool((a - b).abs().max() <= (b - c).abs().max()))
        )
        for a, b, c in zip(*results)
    )


def has_nan(result: Any) -> bool:
    """Whether anything that was computed is NaN."""
    return any(bool(x.isnan().any()) for x in numbers_in(result) if x.is_floating_point() and not x.is_meta)


_BEATS = re.compile(r".+; got .+\. \S.*", re.DOTALL)


def worded(error: BaseException) -> bool:
    """Whether an error says what was needed, what came, and what to do; that of a path may be that nothing is there."""
    return type(error) in (TypeError, ValueError, FileNotFoundError) and _BEATS.fullmatch(str(error)) is not None


class Fall(NamedTuple):
    """One value that an argument did not withstand."""

    kind: str
    argument: str
    value: str
    what: str


def falls(
    function: Callable[..., Any], fresh: Callable[[], dict[str, Any]], thorough: bool = True, only=None
) -> Iterator[Fall]:
    """Tries every odd value in every argument of a valid call."""
    parameters = inspect.signature(function).parameters
    valid = call(function, fresh())
    for name, base in fresh().items():
        if only and name not in only:
            continue
        parameter = parameters.get(name) or inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        for label, value in odd_for(base, thorough).items():
            try:
                result = call(function, fresh() | {name: value})
            except Exception as error:
                if not worded(error):
                    kind = "unworded" if type(error) in (TypeError, ValueError) else "foreign"
                    yield Fall(kind, name, label, f"{type(error).__name__}: {str(error)[:90]!r}")
                continue
            if label in ("iterator of it", "a list within itself") or label.startswith("first: a list within"):
                yield Fall("accepted", name, label, "")
            elif not may_be(parameter, base, value):
                yield Fall("accepted", name, label, _checks.describe(result))
            elif kind_of(value) in ("count", "number") and has_nan(result) and not has_nan(valid):
                yield Fall("nan", name, label, "")
            elif not isinstance(value, torch.Generator):  # the call has moved it on
                try:
                    expected = call(function, fresh() | {name: plain(value)})
                    same = agree(result, expected) or agree(
                        result,
                        expected,
                        beside=call(function, {key: rounded(plain(x)) for key, x in (fresh() | {name: value}).items()}),
                    )
                except Exception as error:
                    yield Fall("differs", name, label, f"its plain form raises {error!r}"[:90])
                else:
                    if not same:
                        yield Fall("differs", name, label, _checks.describe(result))


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """With the same random numbers each time, and without warnings."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats the stack for each kind of device: 0.4 ms
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(**arguments)


# --- Valid calls -----------------------------------------------------------------------------------------------------

Subject = tuple[Callable[..., Any], Callable[[], dict[str, Any]]]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _masks() -> dict[str, Any]:
    return {
        "present": torch.ones(4, 3, dtype=torch.bool),
        "ids": torch.tensor([0, 1, 2, 2]),
        "weight": torch.tensor([1.0, 2.0, 0.5, 1.0]),
        "extra_negatives": [_random(2, 5, seed=9 + m) for m in range(3)],
    }


def _loss_options(**others: Any) -> dict[str, Any]:
    return {
        "reduction": "mean",
        "normalize": True,
        "tiled": False,
        "gather": False,
        "ring": False,
        "label_smoothing": 0.1,
        "hardness": 0.5,
        **others,
    }


def _tuple_options() -> dict[str, Any]:
    return {
        "similarity": "eigenvalue",
        "negatives": "permutation",
        "num_negatives": 2,
        "anchor": 0,
        "generator": torch.Generator().manual_seed(0),
    }


_XYZ = ("x_img", "x_2d", "x_3d")


def _triple() -> dict[str, Any]:
    return {name: _random(4, 5, seed=m) for m, name in enumerate(_XYZ)}


def _two(masks: dict[str, Any]) -> dict[str, Any]:
    return masks | {"present": masks["present"][:, :2], "extra_negatives": masks["extra_negatives"][:2]}


def _module(kind: type, *names: str) -> Callable[..., Any]:
    def build(**options: Any) -> Any:
        module = kind(**options)
        inputs = [_random(4, 5, seed=m) for m in range(len(names) or 3)]
        return module(*inputs) if names else module(inputs)

    build.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return build


class _Encoder(nn.Module):
    """Of anything that has rows: what an encoder raises is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x.float().reshape(len(x), math.prod(x.shape[1:])).cumsum(1) + self.weight


def _losses() -> dict[str, Subject]:
    pairs = {"alpha": 1.0, "pairs": ((0, 1), (0, 2), (1, 2)), "symmetric": True}
    queue = mc.MemoryQueue
    tau = mc.Temperature
    found: dict[str, Subject] = {
        "pairwise_infonce": (
            mc.pairwise_infonce,
            lambda: {
                "x": _random(4, 5),
                "y": _random(4, 5, seed=1),
                "tau": 0.1,
                "symmetric": True,
                **_loss_options(),
                **_two(_masks()),
            },
        ),
        "triplet_infonce": (
            mc.triplet_infonce,
            lambda: _triple() | {"tau": 0.1} | _tuple_options() | _loss_options() | _masks(),
        ),
        "multimodal_infonce": (
            mc.multimodal_infonce,
            lambda: (
                {"embeddings": list(_triple().values()), "tau": 0.1} | _tuple_options() | _loss_options() | _masks()
            ),
        ),
        "trimodal_infonce": (
            mc.trimodal_infonce,
            lambda: _triple() | {"tau": 0.1} | pairs | _tuple_options() | _loss_options() | _masks(),
        ),
        "PairwiseInfoNCE": (
            _module(mc.PairwiseInfoNCE, "x", "y"),
            lambda: {"temperature": 0.1, "symmetric": True} | _loss_options(),
        ),
        "TripletInfoNCE": (
            _module(mc.TripletInfoNCE, *_XYZ),
            lambda: {"temperature": 0.1} | _tuple_options() | _loss_options(),
        ),
        "MultimodalInfoNCE": (
            _module(mc.MultimodalInfoNCE),
            lambda: {"temperature": 0.1} | _tuple_options() | _loss_options(),
        ),
        "TrimodalInfoNCE": (
            _module(mc.TrimodalInfoNCE, *_XYZ),
            lambda: {"temperature": 0.1} | pairs | _tuple_options() | _loss_options(),
        ),
        "PairwiseInfoNCE.forward": (
            mc.PairwiseInfoNCE(0.1).forward,
            lambda: {"x": _random(4, 5), "y": _random(4, 5, seed=1), "diagnostics": mc.Diagnostics()} | _two(_masks()),
        ),
        "TripletInfoNCE.forward": (mc.TripletInfoNCE(0.1).forward, lambda: _triple() | _masks() | _forward()),
        "MultimodalInfoNCE.forward": (
            mc.MultimodalInfoNCE(0.1).forward,
            lambda: {"embeddings": list(_triple().values())} | _masks() | _forward(),
        ),
        "TrimodalInfoNCE.forward": (mc.TrimodalInfoNCE(0.1).forward, lambda: _triple() | _masks() | _forward()),
        "Diagnostics": (mc.Diagnostics, lambda: {"sampling_gap": True}),
        "MemoryQueue": (lambda **o: queue(**o)(), lambda: {"size": 3, "dim": 5, "num_modalities": 2}),
        "MemoryQueue.push": (queue(3, 5).push, lambda: {"embeddings": [_random(2, 5), _random(2, 5, seed=1)]}),
        "Temperature": (lambda **o: tau(**o)(), lambda: {"init": 0.2, "min": 0.1, "max": 10.0, "learnable": True}),
        "Temperature.preset": (lambda **o: tau.preset(**o)(), lambda: {"name": "clip", "learnable": True}),
        "Temperature.for_similarity": (
            lambda **o: tau.for_similarity(**o)(),
            lambda: {
                "similarity": "multilinear",
                "num_modalities": 3,
                "dim": 8,
                "base": 0.07,
                "min": 0.001,
                "max": 10.0,
                "learnable": True,
            },
        ),
        "cached_step": (
            mc.cached_step,
            lambda: {
                "encoders": [_Encoder(), _Encoder()],
                "inputs": [_random(4, 2), _random(4, 2, seed=1)],
                "loss": mc.PairwiseInfoNCE(0.1),
                "chunk_size": 2,
                "scaler": torch.amp.GradScaler("cpu", enabled=False),
            },
        ),
        "sample_tuples": (
            sample_tuples,
            lambda: {
                "batch_size": 4,
                "num_modalities": 3,
                "num_negatives": 2,
                "scheme": "permutation",
                "exclude_positive": True,
                "generator": torch.Generator().manual_seed(0),
                "device": "cpu",
            },
        ),
    }
    held = tau(0.1)
    optimizer = torch.optim.SGD(mc.param_groups(held, 0.1), lr=0.1)
    found["Temperature.check_optimizer"] = (
        lambda optimizers: held.check_optimizer(optimizers),
        lambda: {"optimizers": optimizer},
    )
    found["param_groups"] = (
        lambda module, weight_decay: [group["weight_decay"] for group in mc.param_groups(module, weight_decay)],
        lambda: {"module": nn.ModuleList([nn.Linear(2, 2), held]), "weight_decay": 0.1},
    )
    signatures = {
        "MemoryQueue": queue,
        "Temperature": tau,
        "Temperature.preset": tau.preset,
        "Temperature.for_similarity": tau.for_similarity,
    }
    for name, kind in signatures.items():
        found[name][0].__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return found


def _forward() -> dict[str, Any]:
    index = torch.tensor([[0, 0, 0], [1, 2, 3]]).repeat(4, 1, 1)
    index[:, 0] = torch.arange(4)[:, None]
    return {"negatives": index, "diagnostics": mc.Diagnostics()}


def _linalg() -> dict[str, Subject]:
    square = _random(2, 3, 3)
    cosines = {name: 0.3 * _random(4, seed=m).tanh() for m, name in enumerate("abc")}
    found: dict[str, Subject] = {
        name: (getattr(mc.linalg, name), lambda: {"A": square + square.mT}) for name in ("eigh3", "eigmax", "eigvalsh3")
    }
    return found | {
        name: (getattr(mc.linalg, name), lambda: dict(cosines)) for name in ("gram3_eigmax", "gram3_eigvals")
    }


def _poses(*shape: int) -> dict[str, Any]:
    target = 100 * _random(*shape)
    return {"pred": target + _random(*shape, seed=1), "target": target}


_MASK = {"mask": torch.ones(17, dtype=torch.bool)}
_ITEM = {"mask": torch.ones(2, 17, dtype=torch.bool), "root": 0, "reduction": "mean"}
_CLIP = {"mask": torch.ones(2, 5, 17, dtype=torch.bool), "root": 0, "reduction": "mean", "fps": 25.0}
_STRICT = {"strict": True, "average": "micro"}
_POSE_FUNCTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "mpjpe": lambda: _poses(2, 17, 3) | _ITEM,
    "n_mpjpe": lambda: _poses(2, 17, 3) | _ITEM,
    "epe": lambda: _poses(2, 17, 2) | _ITEM,
    "pa_mpjpe": lambda: _poses(2, 17, 3) | _ITEM | {"scale": True, "allow_reflection": False},
    "procrustes_align": lambda: _poses(2, 17, 3) | {"scale": True, "allow_reflection": False} | _MASK,
    "mpjve": lambda: _poses(2, 5, 17, 3) | _CLIP,
    "accel_error": lambda: _poses(2, 5, 17, 3) | _CLIP,
    "pck": lambda: _poses(2, 17, 2) | {"norm": torch.ones(2), "threshold": 0.5} | _STRICT | _ITEM,
    "pckh": lambda: _poses(2, 17, 2) | {"norm": torch.ones(2), "threshold": 0.5} | _STRICT | _ITEM,
    "pck3d": lambda: _poses(2, 17, 3) | {"threshold": 150.0} | _STRICT | _ITEM,
    "auc3d": lambda: _poses(2, 17, 3) | {"thresholds": [0.0, 50.0, 150.0]} | _STRICT | _ITEM,
    "cps": lambda: (
        {
            "pred": 100 * _random(4, 2, 17, 3),
            "target": 100 * _random(2, 17, 3),
            "joints": [0, 1, 2],
            "thresholds": [1.0, 50.0],
            "strict": True,
            "dim": 0,
        }
        | _ITEM
    ),
    "min_mpjpe": lambda: (
        {
            "pred": 100 * _random(4, 2, 17, 3),
            "target": 100 * _random(2, 17, 3),
            "dim": 0,
            "mode": "pose",
            "procrustes": False,
        }
        | _ITEM
    ),
    "oks": lambda: (
        _poses(2, 17, 2)
        | {
            "area": torch.ones(2),
            "sigmas": list(metrics.COCO_SIGMAS),
            "mask": torch.ones(2, 17, dtype=torch.bool),
            "reduction": "mean",
        }
    ),
    "keypoint_ap": lambda: (
        _poses(2, 17, 2)
        | {
            "scores": torch.tensor([0.9, 0.8]),
            "area": torch.ones(2),
            "pred_image": torch.tensor([0, 1]),
            "target_image": torch.tensor([0, 1]),
            "sigmas": list(metrics.COCO_SIGMAS),
            "mask": torch.ones(2, 17, dtype=torch.bool),
            "thresholds": [0.5, 0.75],
            "max_detections": 20,
            "reduction": "mean",
        }
    ),
    "bbox_norm": lambda: {"target": _random(2, 17, 2), "kind": "max"} | _MASK,
    "torso_norm": lambda: {"target": _random(2, 17, 2), "first": 0, "second": 1},
    "head_norm": lambda: {"box": torch.tensor([[0.0, 0.0, 2.0, 3.0]])},
}


def _xy() -> dict[str, Any]:
    return {"x": _random(4, 5), "y": _random(4, 5, seed=1), "normalize": True}


def _retrieval() -> dict[str, Any]:
    return {
        "query": _random(4, 5),
        "gallery": _random(4, 5, seed=1),
        "match": torch.tensor([0, 1, 2, 3]),
        "ties": "mean",
        "normalize": True,
    }


def _several() -> dict[str, Any]:
    return {"embeddings": [_random(4, 5, seed=m) for m in range(3)], "normalize": True}


_EMBEDDING_FUNCTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "cosine_alignment": lambda: _xy() | {"reduction": "mean"},
    "alignment": lambda: _xy() | {"alpha": 2.0, "reduction": "mean"},
    "modality_gap": _xy,
    "uniformity": lambda: {"x": _random(4, 5), "t": 2.0, "normalize": True},
    "effective_rank": lambda: {"x": _random(4, 5), "normalize": True},
    "cosine_matrix": _several,
    "sign_flipped_share": _several,
    "retrieval_ranks": lambda: _retrieval() | {"ties": "pessimistic"},
    "retrieval_recall": lambda: _retrieval() | {"ties": "pessimistic", "k": [1, 2], "reduction": "mean"},
    "median_rank": lambda: _retrieval() | {"ties": "pessimistic"},
    "mean_reciprocal_rank": lambda: _retrieval() | {"ties": "pessimistic", "reduction": "mean"},
}
_CLASS_OPTIONS: dict[str, dict[str, Any]] = {
    "MPJPE": {"root": 0},
    "EPE": {"root": 0},
    "NMPJPE": {"root": 0},
    "MPJVE": {"root": 0, "fps": 25.0},
    "PAMPJPE": {"root": 0, "scale": True, "allow_reflection": False},
    "AccelError": {"root": 0, "fps": 25.0},
    "MinMPJPE": {"root": 0, "dim": 0, "mode": "pose", "procrustes": False},
    "PCK": {"threshold": 0.5, "root": 0, **_STRICT},
    "PCKh": {"threshold": 0.5, "root": 0, **_STRICT},
    "PCK3D": {"threshold": 150.0, "root": 0, **_STRICT},
    "AUC3D": {"thresholds": [0.0, 150.0], "root": 0, **_STRICT},
    "CPS": {"joints": [0, 1], "thresholds": [1.0, 50.0], "strict": True, "dim": 0, "root": 0},
    "OKS": {"sigmas": list(metrics.COCO_SIGMAS)},
    "RetrievalRecall": {"k": [1, 2], "ties": "pessimistic", "normalize": True},
    "ModalityAlignment": {"normalize": True},
}


def _update(name: str) -> dict[str, Any]:
    if name == "RetrievalRecall":
        return {"query": _random(4, 5), "gallery": _random(4, 5, seed=1), "ids": [0, 1, 2, 3]}
    if name == "ModalityAlignment":
        return {"embeddings": [_random(4, 5), _random(4, 5, seed=1)], "ids": [0, 1, 2, 3]}
    shape = {
        "MPJVE": (2, 5, 17, 3),
        "AccelError": (2, 5, 17, 3),
        "EPE": (2, 17, 2),
        "PCK": (2, 17, 2),
        "PCKh": (2, 17, 2),
        "OKS": (2, 17, 2),
    }.get(name, (2, 17, 3))
    poses = _poses(*shape)
    if name in ("MinMPJPE", "CPS"):
        poses["pred"] = torch.stack([poses["pred"], poses["target"]])
    norms = {"PCK": {"norm": torch.ones(2)}, "PCKh": {"norm": torch.ones(2)}, "OKS": {"area": torch.ones(2)}}.get(
        name, {}
    )
    return poses | norms | {"mask": torch.ones(shape[:-1], dtype=torch.bool), "group": ["a", "b"], "ids": [0, 1]}


def _metric(name: str) -> dict[str, Subject]:
    kind, options = getattr(metrics, name), _CLASS_OPTIONS[name]
    groups = {} if name in ("RetrievalRecall", "ModalityAlignment") else {"groups": ["a", "b"]}

    def used(**given: Any) -> Any:
        metric = kind(**given)
        update = _update(name)
        if given.get("groups") is None:
            update.pop("group", None)
        metric.update(**update)
        return metric.compute()

    def updated(**given: Any) -> Any:
        metric = kind(**options, **groups)
        metric.update(**given)
        return metric.compute()

    used.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    updated.__signature__ = inspect.signature(kind.update)  # type: ignore[attr-defined]
    return {
        name: (used, lambda: dict(options) | groups | {"sync_on_compute": True}),
        f"{name}.update": (updated, lambda: _update(name)),
    }


def _report() -> dict[str, Subject]:
    options = {
        "actions": ["a", "b"],
        "subjects": ["s"],
        "joint_names": [str(j) for j in range(17)],
        "parents": [-1, *range(16)],
        "root": 0,
        "unit": "mm",
        "unit_scale": 1.0,
        "examples": 4,
    }
    batch = _poses(2, 17, 3) | {"action": ["a", "b"], "subject": ["s", "s"], "mask": _MASK["mask"], "ids": [0, 1]}

    def used(**given: Any) -> Any:
        report = PoseReport(**given)
        report.update(**batch)
        return report.compute()

    def updated(**given: Any) -> Any:
        report = PoseReport(**options, metrics={"MPJPE": metrics.MPJPE})
        report.update(**given)
        return report.compute()

    used.__signature__ = inspect.signature(PoseReport)  # type: ignore[attr-defined]
    updated.__signature__ = inspect.signature(PoseReport.update)  # type: ignore[attr-defined]
    report = PoseReport(**options)
    report.update(**batch)
    found: dict[str, Subject] = {
        "PoseReport": (used, lambda: dict(options)),
        "PoseReport.update": (updated, lambda: dict(batch)),
        "PoseReport.merge": (PoseReport(**options).merge, lambda: {"other": PoseReport(**options)}),
    }
    for owner in (report, report.compute()):
        for method in ("to_markdown", "to_latex"):
            found[f"{type(owner).__name__}.{method}"] = (getattr(owner, method), lambda: {"digits": 1})
    return found


def _metrics() -> dict[str, Subject]:
    found: dict[str, Subject] = {
        name: (getattr(metrics, name), fresh) for name, fresh in (_POSE_FUNCTIONS | _EMBEDDING_FUNCTIONS).items()
    }
    for name in _CLASS_OPTIONS:
        found |= _metric(name)
    metric = metrics.MPJPE(root=0)
    found["Accumulator.merge"] = (metric.merge, lambda: {"other": metrics.MPJPE(root=0)})
    return found


def _distributed() -> dict[str, Subject]:
    return {"gather_rows": (mc.distributed.gather_rows, lambda: {"x": _random(4, 5)})}


def _lifter() -> dict[str, Subject]:
    lifter = unihpe_ref.load_lifter()
    seen = {"joints_px": 200 * _random(2, 17, 2).sigmoid(), "image_size": torch.tensor([640.0, 480.0])}
    seen["intrinsics"] = torch.tensor([[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]])
    without = {name: value for name, value in seen.items() if name != "intrinsics"}
    drawn = {"flip": True, "generator": torch.Generator()}

    def lift(**given: Any) -> Any:
        return vars(lifter.lift(**given))

    lift.__signature__ = inspect.signature(lifter.lift)  # type: ignore[attr-defined]
    return {
        "load_lifter": (
            unihpe_ref.load_lifter,
            lambda: {"device": "cpu", "joints_2d": "annotated", "whole": False},
        ),
        "Lifter.lift": (lift, lambda: dict(seen) | drawn),
        "Lifter.lift by image_size": (lift, lambda: dict(without)),
        "Lifter.embed_2d": (lifter.embed_2d, lambda: dict(seen)),
    }


def _as(model: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, with the signature of ``model``."""
    call.__signature__ = inspect.signature(model)  # type: ignore[attr-defined]
    return call


def _halved(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * x


def _diffusion() -> dict[str, Subject]:
    times = torch.tensor([0.0, 0.5, 1.0])

    def process(kind: type) -> Callable[..., Any]:
        def made(**given: Any) -> list[Tensor]:
            held = kind(**given)
            return [getattr(held, name)(times) for name in ("mean", "std", "drift", "diffusion_squared")]

        return _as(kind, made)

    def network(**given: Any) -> Tensor:
        made = diffusion.ScoreNetwork(**given)
        projected = made.project(torch.ones(3, made.stem.condition.in_features))
        return made(torch.ones(3, made.out.out_features), torch.ones(3), projected)

    sizes = {"size": 6, "condition_width": 4, "width": 32, "time_width": 8, "blocks": 1}
    preserving = {"beta_min": 0.1, "beta_max": 20.0}
    sde, generator = diffusion.SubVP(), torch.Generator()
    without_gradient = torch.no_grad()
    return {
        "VP": (process(diffusion.VP), lambda: dict(preserving)),
        "SubVP": (process(diffusion.SubVP), lambda: dict(preserving)),
        "VE": (process(diffusion.VE), lambda: {"sigma_min": 0.01, "sigma_max": 50.0}),
        "make_sde": (diffusion.make_sde, lambda: {"name": "vp"}),
        "ScoreNetwork": (
            _as(diffusion.ScoreNetwork, network),
            lambda: sizes | {"dropout": 0.25, "parameterisation": "preconditioned", "spread": 0.2, "sde": sde},
        ),
        "ScoreNetwork.project": (
            without_gradient(diffusion.ScoreNetwork(**sizes).project),
            lambda: {"condition": _random(3, 4)},
        ),
        "denoising_loss": (
            diffusion.denoising_loss,
            lambda: {
                "estimate_noise": _halved,
                "x0": _random(2, 5),
                "sde": sde,
                "reduction": "mean",
                "generator": generator.manual_seed(0),
                "part": Part.whole(2),
                "time_steps": 10,
                "weight": torch.ones_like,
            },
        ),
        "sample": (
            diffusion.sample,
            lambda: {
                "estimate_noise": _halved,
                "shape": (2, 3),
                "sde": sde,
                "sampler": "sde",
                "steps": 3,
                "generator": generator.manual_seed(0),
                "device": "cpu",
                "dtype": torch.float32,
            },
        ),
    }


class _Mean(nn.Module):
    """Stands for an image encoder."""

    def forward(self, image: Tensor) -> Tensor:
        _checks.check_shape("_Mean", "image", image, ("B", 3, "H", "W"))
        return image.mean((2, 3)).repeat(1, 3)[:, :8]


def _models() -> dict[str, Subject]:
    sizes = {"encoder_width": 8, "encoder_layers": 1, "encoder_heads": 2, "encoder_feedforward": 8, "decoder_blocks": 0}
    sizes |= {"decoder_width": 64, "decoder_time_width": 4, "embedding_dim": 8, "image_encoder": "none"}
    config, sampler = ModelConfig(**sizes, encoder_noise_token=True), SamplerConfig(steps=2)
    model = models.UniHPE(config, sampler).eval()
    model.image_encoder = _Mean()
    with torch.device("meta"):
        encoder = ViTEncoder("vit_s", 8)
    weights = encoder.backbone.state_dict()
    embedding, box = {"embedding": _random(2, 8)}, {"box_info": _random(2, 3)}
    seen = {"kp2d": _random(2, 17, 2)} | box | {"joint_noise": torch.full((2,), 0.01)}
    generator = torch.Generator()
    image = {"image": _random(2, 3, 32, 32)}

    def drawn() -> dict[str, Any]:
        return {"hypotheses": 2, "sampling": sampler, "generator": generator.manual_seed(0)}

    def one() -> dict[str, Any]:
        return embedding | {"modality": "2d"} | box | {"generator": generator.manual_seed(0)}

    def method(name: str, fresh: Callable[[], dict[str, Any]]) -> dict[str, Subject]:
        bound = getattr(model, name)
        return {f"UniHPE.{name}": (_as(bound, torch.no_grad()(bound)), fresh)}

    hypotheses = {"hypotheses": _random(3, 2, 17, 3)}
    found: dict[str, Subject] = {
        "UniHPE": (
            _as(models.UniHPE, lambda **given: models.UniHPE(**given).encode(kp3d=_random(2, 17, 3)).detach()),
            lambda: {"config": config, "sampler": sampler},
        ),
        "UniHPE.encode by kp3d": (torch.no_grad()(model.encode), lambda: {"kp3d": _random(2, 17, 3)}),
        "UniHPE.encode by image": (torch.no_grad()(model.encode), lambda: dict(image)),
        "parameters": (models.parameters, lambda: {"module": nn.Linear(2, 2)}),
        "multiply_adds": (models.multiply_adds, lambda: {"call": lambda: torch.eye(2) @ torch.eye(2)}),
        "costs": (models.costs, lambda: {"config": config, "image_size": (256, 192)}),
        "mean_hypothesis": (models.mean_hypothesis, lambda: dict(hypotheses)),
        "best_hypothesis": (models.best_hypothesis, lambda: hypotheses | {"target": _random(2, 17, 3, seed=1)}),
        "retrieve": (models.retrieve, lambda: {"query": _random(2, 5), "gallery": _random(4, 5, seed=1), "k": 2}),
        "load_pose_weights": (
            models.load_pose_weights,
            lambda: {"encoder": encoder, "weights": weights, "fuse_init": "zero", "imagenet": weights},
        ),
    }
    found |= method("encode", lambda: dict(seen))
    found |= method("told", lambda: {"joint_noise": 0.01})
    found |= method("decode", lambda: embedding | {"source": "2d", "target": "3d"} | box | drawn())
    found |= method("decode_2d", one) | method("decode_3d", one)
    found |= method("lift", lambda: seen | drawn()) | method("estimate", lambda: image | box | drawn())
    joints = {"joints_2d": _random(2, 17, 2), "joints_3d": _random(2, 17, 3)} | box
    return found | method(
        "decoding_losses",
        lambda: (
            {"embeddings": {"2d": embedding["embedding"]}}
            | joints
            | {"generator": generator.manual_seed(0), "part": Part.whole(2)}
        ),
    )


def _geometry() -> dict[str, Subject]:
    camera = data.fixed_cameras()[:2]
    points, pixels = _random(2, 17, 3) + torch.tensor([0.0, 0.0, 5.0]), 500 + 100 * _random(2, 17, 2)
    box, affine = (
        {"box": torch.tensor([[500.0, 500.0, 300.0]] * 2)},
        torch.tensor([[[2.0, 0.1, 3.0], [0.1, 2.0, 1.0]]] * 2),
    )
    lens = {name: getattr(camera, name) for name in ("focal", "principal", "radial", "tangential")}
    two = {name: lens[name] for name in ("focal", "principal")}
    fields = {field.name: getattr(camera, field.name) for field in dataclasses.fields(camera)}
    tree = {field.name: getattr(data.SKELETON, field.name) for field in dataclasses.fields(data.SKELETON)}
    generator = torch.Generator()

    def drawn() -> dict[str, Any]:
        ranges = {"distance": (4.0, 6.0), "height": (1.0, 2.0), "focal": (1000.0, 1100.0), "roll_degrees": 2.0}
        return {"generator": generator.manual_seed(0), "count": 2} | ranges

    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "Camera": lambda: dict(fields),
        "random_camera": drawn,
        "project": lambda: {"points": points} | lens,
        "intrinsic_matrix": lambda: dict(two),
        "crop_intrinsics": lambda: {"affine": affine, "intrinsics": camera.intrinsics},
        "look_at": lambda: {"eye": _random(2, 3), "target": _random(2, 3, seed=1)},
        "joint_box": lambda: {"joints_px": pixels, "padding": 1.25, "aspect": 0.75},
        "tight_box_size": lambda: {"joints_px": pixels},
        "normalise_joints": lambda: {"joints_px": pixels} | box,
        "denormalise_joints": lambda: {"joints": _random(2, 17, 2)} | box,
        "box_information": lambda: box | two,
        "crop_affine": lambda: box | {"crop_size": (256, 192), "convention": "udp"},
        "apply_affine": lambda: {"affine": affine, "points": pixels},
        "invert_affine": lambda: {"affine": affine},
        "Skeleton": lambda: dict(tree),
        "flip_joints": lambda: {"joints": _random(2, 17, 3)},
        "flip_pixels": lambda: {"joints_px": pixels, "width": torch.tensor([640.0, 1000.0])},
        "limb_lengths": lambda: {"joints": _random(2, 17, 3)},
        "normalise_image": lambda: {"image": _random(2, 3, 4, 4)},
        "denormalise_image": lambda: {"image": _random(2, 3, 4, 4)},
    }
    methods: dict[str, Callable[[], dict[str, Any]]] = {
        "world_to_camera": lambda: {"points": points},
        "camera_to_world": lambda: {"points": points},
        "project": lambda: {"points": points, "distort": True},
        "rolled": lambda: {"angle": _random(2)},
    }
    found: dict[str, Subject] = {name: (getattr(data, name), fresh) for name, fresh in calls.items()}
    found["flip_pixels by number"] = (data.flip_pixels, lambda: {"joints_px": pixels, "width": 640.0})
    found["Skeleton.index"] = (data.SKELETON.index, lambda: {"name": "head"})
    return found | {f"Camera.{name}": (getattr(camera, name), fresh) for name, fresh in methods.items()}


def _motion() -> dict[str, Subject]:
    motion = data.generate_motion(0, actions=("walk", "wave"), num_subjects=2, num_test_subjects=1, seconds=0.4)
    source = data.PoseSource(motion, augment=True)
    fields = {field.name: getattr(motion, field.name) for field in dataclasses.fields(motion)}
    generator = torch.Generator()
    names = {"action_names": ["walk", "wave"], "subject_names": ["G1", "G2"]}
    indices = torch.tensor([0, 5, 12])

    def made(**given: Any) -> Any:
        source = data.PoseSource(**given)
        generator.manual_seed(0)
        return [vars(batch) for batch in (source.batch(indices, generator), source.evaluation_batch(indices))]

    def drawn(**given: Any) -> Tensor:
        return next(source.sampler(**given))

    def fresh(**others: Any) -> dict[str, Any]:
        return others | {"generator": generator.manual_seed(0)}

    return {
        "Motion": (data.Motion, lambda: dict(fields)),
        "Motion.select": (motion.select, lambda: {"split": "test"}),
        "Motion.every": (motion.every, lambda: {"step": 2}),
        "generate_motion": (
            data.generate_motion,
            lambda: (
                {"seed": 0, "actions": ["walk"], "num_subjects": 2, "num_test_subjects": 1, "takes": 1}
                | {"seconds": 0.2, "fps": 10.0}
            ),
        ),
        "Augmentation": (
            data.Augmentation,
            lambda: {field.name: 0.1 for field in dataclasses.fields(data.Augmentation)},
        ),
        "PoseSource": (
            _as(data.PoseSource, made),
            lambda: (
                {"motion": motion, "cameras": "fixed", "augment": False, "seed": 0, "view": "box", "joint_noise": 0.01}
                | names
                | {"image_size": None}
            ),
        ),
        "PoseSource.split": (source.split, lambda: {"name": "test"}),
        "PoseSource.batch": (source.batch, lambda: fresh(indices=indices, rows=slice(0, 2))),
        "PoseSource.evaluation_batch": (source.evaluation_batch, lambda: {"indices": indices, "camera": 1}),
        "PoseSource.evaluation_indices": (source.evaluation_indices, lambda: {"stride": 2}),
        "PoseSource.sampler": (_as(source.sampler, drawn), lambda: fresh(batch_size=2, min_gap_seconds=0.1)),
    }


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)  # of the models' weights, whatever was imported before
    SUBJECTS = {
        "losses": _losses(),
        "metrics": _metrics(),
        "linalg": _linalg(),
        "distributed": _distributed(),
        "report": _report(),
        "lifter": _lifter(),
        "diffusion": _diffusion(),
        "models": _models(),
        "geometry": _geometry(),
        "motion": _motion(),
    }
# Areas of unihpe_ref; all public names of those with a module here are tried.
_REFERENCE: dict[str, ModuleType | None] = {
    "report": None,
    "lifter": None,
    "geometry": None,
    "motion": None,
    "diffusion": diffusion,
    "models": models,
}

# Public, and not tried; with the reason.
LEFT_OUT = {
    "TermDiagnostics": "made by a loss",
    "Temperature.register_parameter": "torch's",
    "Accumulator.plot": "a picture of torchmetrics' kind",
    "Accumulator.set_extra_state": "called by load_state_dict",
    "PoseMetric.mean_of": "called by reports",
    "Alignment": "made by procrustes_align",
    "Summary": "made by a metric",
    "PoseEstimate": "made by a model",
    "Retrieved": "made by retrieve",
    "PoseResult": "made by a report",
    "PoseMetric": "a base class: its options are tried in each metric",
    "Similarity": "a protocol",
    "ScoreNetwork.forward": "called at every step of a sampler",
    "ScoreNetwork.loss_weight": "called by denoising_loss",
    **{
        f"{kind}.{name}": "called at every step of a sampler"
        for kind in ("VP", "SubVP", "VE")
        for name in ("beta", "log_mean", "mean", "std", "drift", "diffusion_squared")
    },
    "CosineSimilarity.of_present": "called by the losses",
    "CosineSimilarity.with_gradient": "called by the losses",
    "CosineSimilarity.with_pullback": "called by the losses",
    "CosineSimilarity.without_gradient": "called by the losses",
    "Accumulator.forward": "the arguments of update",
    "Accumulator.merge_state": "torchmetrics' name of merge",
    "Accumulator.set_dtype": "torchmetrics' name, which does nothing",
    "PoseMetric.update": "tried in each metric",
    "MPJPE.update": "tried in each metric",
}


def rooms() -> list[ModuleType | None]:
    """The public modules of multicontrast."""
    return [mc, *(_imported(info.name) for info in pkgutil.walk_packages(mc.__path__, "multicontrast."))]


def public(rooms: list[ModuleType | None]) -> set[str]:
    """The names of all public functions, classes and methods of the modules that take an argument."""
    found = set()
    for room in rooms:
        if room is None or not hasattr(room, "__all__"):
            continue
        for name in room.__all__:
            value = getattr(room, name)
            if inspect.isclass(value):
                found |= {name} if _arguments(value) else set()
                found |= {f"{owner}.{method}" for owner, method in _methods(value)}
            elif callable(value) and not isinstance(value, ModuleType) and _arguments(value):
                found.add(name)
    return found


def _imported(name: str) -> ModuleType | None:
    hidden = any(part.startswith("_") or part == "triton" for part in name.split("."))  # kernels are private, too
    return None if hidden else __import__(name, fromlist=["x"])


def _methods(kind: type) -> Iterator[tuple[str, str]]:
    for method in dir(kind):
        owner = next((base for base in kind.__mro__ if method in vars(base)), kind)
        value = getattr(kind, method)
        ours = (
            owner.__module__.startswith(("multicontrast", "unihpe_ref"))
            and not method.startswith("_")
            and callable(value)
        )
        if ours and method != "function" and _arguments(value):  # of a metric: the function is tried by its own name
            # Each metric's own update is tried, also where the method is inherited.
            shown = kind if method == "update" and kind.__name__ in _CLASS_OPTIONS else owner
            yield shown.__name__, method


def _arguments(value: Any) -> list[str]:
    try:
        return [name for name in inspect.signature(value).parameters if name != "self"]
    except (TypeError, ValueError):
        return []


# --- The tests -------------------------------------------------------------------------------------------------------


def test_every_public_name_is_tried_or_left_out_with_a_reason() -> None:
    tried = {name for subjects in SUBJECTS.values() for name in subjects}
    found = public(rooms())
    assert public([*rooms(), *_REFERENCE.values()]) - tried - set(LEFT_OUT) == set()
    assert tried - {name for area in _REFERENCE for name in SUBJECTS[area]} <= found, "no longer public"


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("area", "name"), [(area, name) for area, subjects in SUBJECTS.items() for name in subjects], ids=lambda x: x
)
def test_any_argument(area: str, name: str, thorough: bool) -> None:
    found = list(falls(*SUBJECTS[area][name], thorough))
    assert not found, "\n".join(f"{fall.kind}: {name}({fall.argument}={fall.value}) {fall.what}" for fall in found)


def _checked(
    flag: bool,
    count: int,
    number: float,
    choice: str,
    listed: list[float],
    counts: list[int],
    names: list[str],
    x: Tensor,
) -> Tensor:
    """Checks its arguments as the library does."""
    flag = _checks.check_flag("f", "flag", flag)
    count = _checks.check_count("f", "count", count, 1, 10**6)
    number = _checks.check_number("f", "number", number)
    _checks.check_choice("f", "choice", choice, ("mean", "sum"))
    numbers = _checks.check_numbers("f", "listed", listed)
    counts = _checks.check_counts("f", "counts", counts)
    names = _checks.check_texts("f", "names", names)
    _checks.check_floating("f", "x", x)
    return x.float().sum() + flag + count + torch.tensor(number) + sum(numbers) + sum(counts) + len(names)


def _careless(
    flag: bool,
    count: int,
    number: float,
    choice: str,
    listed: list[float],
    counts: list[int],
    names: list[str],
    x: Tensor,
) -> Tensor:
    """Checks nothing."""
    return x.sum() * number + count + (1 if flag else 0) + len(choice) + sum(listed) + sum(counts) + len("".join(names))


def _valid() -> dict[str, Any]:
    return {
        "flag": True,
        "count": 2,
        "number": 0.5,
        "choice": "mean",
        "listed": [0.5, 1.0],
        "counts": [1, 2],
        "names": ["a", "b"],
        "x": _random(2, 3),
    }


def test_the_shared_checks_handle_odd_values() -> None:
    assert list(falls(_checked, _valid)) == []


def test_a_function_without_checks_falls_in_every_argument_and_kind() -> None:
    found = list(falls(_careless, _valid))
    assert {fall.argument for fall in found} == set(_valid())
    assert {fall.kind for fall in found} >= {"foreign", "unworded", "accepted"}


def _steep(x: Tensor) -> Tensor:
    """A rounding of its argument is visible in its value."""
    _checks.check_floating("f", "x", x)
    return 1e7 * x.mean((2, 3))


def _blind(x: Tensor) -> Tensor:
    """As steep, and it takes whatever strides memory has for a contiguous tensor's."""
    return _steep(x) + 1e7 * x.as_strided((2, 3), (3, 1))


def test_another_order_of_summation_is_no_other_answer() -> None:
    def pictures() -> dict[str, Any]:
        return {"x": _random(2, 3, 32, 32)}

    views = {"strided", "flipped memory", "subclass"}
    assert [fall for fall in falls(_steep, pictures) if fall.value in views] == []
    assert [fall.kind for fall in falls(_blind, pictures) if fall.value in views] == ["differs", "differs"]


if __name__ == "__main__":
    for area in sys.argv[1:] or SUBJECTS:
        kinds: collections.Counter[str] = collections.Counter()
        tries = 0
        for name, (function, fresh) in SUBJECTS[area].items():
            found = list(falls(function, fresh))
            tries += sum(len(odd_for(base)) for base in fresh().values())
            kinds.update(fall.kind for fall in found)
            grouped: dict[tuple[str, str, str], list[str]] = {}
            for fall in found:
                grouped.setdefault((fall.kind, fall.argument, re.sub(r"[\d.]+", "#", fall.what)[:70]), []).append(
                    fall.value
                )
            for (kind, argument, what), values in grouped.items():
                shown = "; ".join(value[:28] for value in values[:6])
                print(f"{area}.{name}({argument}) {kind} x{len(values)}: {shown} -> {what}")
        print(f"{area}: {tries} tries, {sum(kinds.values())} fell: {dict(kinds)}")
