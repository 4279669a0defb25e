"""Tries odd values in every argument of a valid call: the answer must be right, or an error in three parts.

Every argument of a function is replaced by odd values in turn, the others staying valid. What must not happen, by kind:

``foreign``   an exception of another type, which somebody else raised
``unworded``  a TypeError or ValueError that does not say what was needed, what came and what to do
``accepted``  an answer for a value that is not of the argument's kind: text for a flag, a bool for a number
``nan``       NaN for a finite number, where the valid call gives none
``differs``   another answer than for the same value in its plain form (a NumPy scalar, a strided view, a subclass), or
              than for the same call before
``two at once`` a foreign or unworded error for odd values in two arguments
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import decimal
import fractions
import functools
import inspect
import math
import random
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from multicontrast._checks import describe

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


def odd_values() -> dict[str, Any]:
    """Values of all kinds but tensors of the right shape, by name; new ones at each call."""
    values: list[Any] = [None, True, False, 0, 1, -1, 2, 3, -5, 10**20, 10**400, -(10**400), 2**62, 2**63, 0.0, -0.0]
    values += [0.5, 1.0, -25.0, 1e8, 1e308, 1e-46, 5e-324, math.nan, math.inf, -math.inf, 1j, decimal.Decimal("0.5")]
    values += [fractions.Fraction(1, 2), np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(1), np.uint8(1)]
    values += [np.bool_(True), np.array(0.5), np.array(1), np.array([0.5, 0.75]), np.ones((4, 3), np.float32)]
    values += [np.array([]), "", "x", "no", "false", "mean", "0.5", "\0", "[/red]", "a" * 10_000, b"x", np.str_("x")]
    values += [bytearray(b"x"), [], (), [0.5], [0, 1], [[0.5]], ["x"], {}, {"a": 1}, set(), {0, 1}, range(3), (None,)]
    values += [[True], [10**400], [math.nan], collections.deque([0.5]), Ellipsis, slice(3), int, len, torch.float32]
    values += [torch.device("cpu"), torch.tensor(0.5), torch.tensor(1), torch.tensor(True), torch.tensor([])]
    values += [torch.ones(2), torch.eye(3), nn.Linear(2, 2), ValueError("x"), np.datetime64("2020-01-01")]
    within: list[Any] = []
    within.append(within)
    named = {_named(value): value for value in values}
    named |= {"iterator": iter([0.5]), "generator expression": (x for x in [0.5]), "a list within itself": within}
    named |= {"an object": object(), "__index__": _Index(), "__float__": _Float(), "text subclass": _Text("x")}
    return named | {"hostile": _Hostile(), "torch.Generator": torch.Generator()}


def _named(value: Any) -> str:
    text = f"{type(value).__name__} {describe(value)}"
    return text if isinstance(value, (Tensor, int, float, str, np.generic)) else f"{text} {str(value)[:60]}"


_TYPES = "float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2 complex64 bool"
_TYPES += " int8 uint8 int16 int32 int64 uint16 uint32 uint64"
_CHANGES: dict[str, Callable[[Tensor], Any]] = {
    **{name: lambda x, name=name: x.to(getattr(torch, name)) for name in _TYPES.split()},
    "sparse": Tensor.to_sparse,
    "sparse csr": Tensor.to_sparse_csr,
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor([x, x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "nested rows": lambda x: torch.nested.nested_tensor(list(x)),
    "meta": lambda x: x.to("meta"),
    "lazy": lambda _: nn.UninitializedParameter(),
    "parameter": lambda x: nn.Parameter(x.clone()),
    "subclass": lambda x: x.as_subclass(_Tensor),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "flipped memory": lambda x: _reversed(_reversed(x).contiguous()),
    "negative bit": lambda x: torch._neg_view(-x),
    "expanded": lambda x: x[:1].expand(x.shape),
    "no strides": lambda x: torch.zeros((), dtype=x.dtype).expand(x.shape),
    "inference": torch.inference_mode()(Tensor.clone),
    "zero tensor": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "one axis more": lambda x: x[None],
    "one axis less": lambda x: x[0],
    "no axis": lambda x: x.flatten()[0],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "a row less": lambda x: x[1:],
    "a column less": lambda x: x[..., 1:],
    "numpy": Tensor.numpy,
    "list": Tensor.tolist,
    **{
        f"all {value}": lambda x, value=value: torch.full_like(x, value)
        for value in (math.nan, math.inf, -1.0, 1e30, 1e-45, 0.0)
    },
    "huge integers": lambda x: torch.full_like(x, 2**62),
}


def _reversed(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.ndim)))


def odd_tensors(base: Tensor) -> dict[str, Any]:
    """Tensors that come from ``base`` by one change each; fewer where torch has no such tensor of its type."""
    dense, found = base.detach().clone(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, change in _CHANGES.items():
            with contextlib.suppress(RuntimeError, TypeError, IndexError, NotImplementedError):
                found[name] = change(dense)
    return found


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

# Arguments that are of more kinds than their valid value shows.
_ALSO = {
    "object": "temperature similarity gather encoders inputs device extra_negatives metrics pairs module diagnostics",
    "tensor": "tau negatives area ids thresholds sigmas joints inputs match width",
    "number": "norm area width",
    "numbers": "root k ids",
    "count": "root k counts",
    "texts": "ids action subject notes",
    "tensors": "inputs",
    "flag": "tiled",
    "text": "imagenet",
    "none": "root",
}
# Numbers that must be at least 0; most of them must be positive.
_NOT_NEGATIVE = "fps threshold tau temperature alpha t hardness base init min max norm unit_scale label_smoothing area"
_NOT_NEGATIVE += " digits size dim k examples num_negatives"


def kind_of(value: Any) -> str:
    """Which kind of argument a value is."""
    for types, name in (
        ((bool, np.bool_), "flag"),
        ((int, np.integer), "count"),
        ((float, np.floating, fractions.Fraction), "number"),
        (str, "text"),
        (Tensor, "tensor"),
    ):
        if isinstance(value, types):
            return name
    if isinstance(value, (list, tuple, range, collections.deque)) or getattr(value, "ndim", 0) == 1:  # of NumPy
        kinds = {kind_of(item) for item in value}
        if not kinds:
            return "empty"
        if kinds <= {"count", "number"}:
            return "numbers"
        return "texts" if kinds == {"text"} else "tensors" if kinds == {"tensor"} else "mixture"
    return "none" if value is None else "object"


def may_be(parameter: inspect.Parameter, base: Any, value: Any) -> bool:
    """Whether a value is of a kind that the argument takes."""
    own = {kind_of(base), *(kind for kind, names in _ALSO.items() if parameter.name in names.split())}
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
        if value < 0 and parameter.name in _NOT_NEGATIVE.split():
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


def _identical(one: Any, other: Any) -> bool:
    """Whether two plain values are the same tensor, or the same list of them, bit for bit."""
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_identical, one, other))
    return (
        type(one) is type(other) is Tensor
        and (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        and one.layout == other.layout == torch.strided
        and not one.is_nested
        and not one.is_meta
        and torch.equal(one, other)
    )


def _is_plain(value: Any) -> bool:
    """Whether there is no other form of a value, so that calling again would say nothing."""
    return value is None or type(value) in (bool, int, float, str)


def numbers_in(result: Any) -> Iterator[Tensor]:
    """All that was computed."""
    if isinstance(result, Tensor):
        yield result.detach()
    elif isinstance(result, (bool, int, float)):
        yield torch.tensor(result, dtype=torch.float64)
    elif isinstance(result, (dict, list, tuple)):
        for value in result.values() if isinstance(result, dict) else result:
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


# --- Trying ----------------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A function, and the arguments of a valid call of it."""

    function: Callable[..., Any]
    arguments: dict[str, Any]


class Fall(NamedTuple):
    """One value that an argument did not withstand."""

    kind: str
    argument: str
    value: str
    what: str


def falls(function: Callable[..., Any], arguments: dict[str, Any], thorough: bool = True) -> Iterator[Fall]:
    """Tries odd values in every argument of a valid call: all of them if ``thorough``, else every second one.

    Which half an argument gets depends on the function, so that all values are tried in each kind of argument.
    """
    parameters = inspect.signature(function).parameters
    valid = call(function, arguments)
    if not agree(valid, call(function, arguments)):
        yield Fall("differs", "", "the same call again", "")
    for number, (name, base) in enumerate(arguments.items(), zlib.crc32(repr(list(arguments)).encode())):
        parameter = parameters.get(name) or inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        odd = list(odd_for(base, thorough).items())
        for label, value in odd if thorough else odd[number % 2 :: 2]:
            given = functools.partial(call, function)
            try:
                result = given(arguments | {name: value})
            except Exception as error:
                if not worded(error):
                    kind = "unworded" if type(error) in (TypeError, ValueError) else "foreign"
                    yield Fall(kind, name, label, f"{type(error).__name__}: {str(error)[:90]!r}")
                continue
            if label in ("iterator of it", "a list within itself") or label.startswith("first: a list within"):
                yield Fall("accepted", name, label, "")
            elif not may_be(parameter, base, value):
                yield Fall("accepted", name, label, describe(result))
            elif kind_of(value) in ("count", "number") and has_nan(result) and not has_nan(valid):
                yield Fall("nan", name, label, "")
            elif not _is_plain(value):
                try:
                    usual = plain(value)
                    expected = valid if _identical(usual, base) else given(arguments | {name: usual})
                    same = agree(result, expected) or agree(
                        result,
                        expected,
                        beside=given({key: rounded(plain(x)) for key, x in (arguments | {name: value}).items()}),
                    )
                except Exception as error:
                    yield Fall("differs", name, label, f"its plain form raises {error!r}"[:90])
                else:
                    if not same:
                        yield Fall("differs", name, label, describe(result))


def falls_in_twos(function: Callable[..., Any], arguments: dict[str, Any], tries: int = 30) -> Iterator[Fall]:
    """Tries odd values in two arguments at once, drawn by a fixed seed: what is said is still said in words."""
    draw, odd = random.Random(0), {name: list(odd_for(base, False).items()) for name, base in arguments.items()}
    for _ in range(tries if len(arguments) > 1 else 0):
        names = draw.sample(list(arguments), 2)
        labels, values = zip(*(draw.choice(odd[name]) for name in names))
        try:
            call(function, arguments | dict(zip(names, values)))
        except Exception as error:
            if not worded(error):
                yield Fall("two at once", " and ".join(names), " and ".join(labels), repr(error)[:90])


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """With the same random numbers each time, and without warnings."""
    for source in (torch.default_generator, *arguments.values()):
        if isinstance(source, torch.Generator):
            source.manual_seed(0)  # torch.manual_seed formats the stack for each kind of device: 0.4 ms
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(**arguments)


def show(area: str, subjects: dict[str, Subject]) -> None:
    """Prints what falls, by function."""
    kinds: collections.Counter[str] = collections.Counter()
    for name, subject in subjects.items():
        grouped: dict[tuple[str, str, str], list[str]] = collections.defaultdict(list)
        for fall in falls(*subject):
            kinds[fall.kind] += 1
            grouped[fall.kind, fall.argument, re.sub(r"[\d.]+", "#", fall.what)[:70]].append(fall.value)
        for (kind, argument, what), values in grouped.items():
            shown = "; ".join(value[:28] for value in values[:6])
            print(f"{area}.{name}({argument}) {kind} x{len(values)}: {shown} -> {what}")
    tries = sum(len(odd_for(base)) for subject in subjects.values() for base in subject.arguments.values())
    print(f"{area}: {tries} tries, {sum(kinds.values())} fell: {dict(kinds)}")
