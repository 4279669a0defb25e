"""Random calls of the losses, compared with their definitions.

``draw_case(seed)`` is one call with all it needs. ``case.call()`` makes it, ``case.definition()`` is the same loss by
per-anchor loops in float64 (:mod:`tests.definitions`), and ``disagreements(case)`` compares the two in value, gradient,
gradient under ``create_graph=True`` and Hessian-vector product, by every leaf that wants a gradient.

``python -m tests.losses.differential 0 10000`` compares many, and counts what disagrees by implementation and options.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import importlib
import itertools
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import multicontrast as mc
from multicontrast.losses import api
from tests import definitions
from tests.losses.inputs import SCHEMES, SIMILARITIES

NAMES: list[str | None] = [None, *(implementation.name for implementation in api.IMPLEMENTATIONS)]
PIECES = {  # sizes at which implementations divide their work, as small as a few anchors
    "reference._CANDIDATES": 12,
    "reference._GATHERED": 60,
    "streamed.TILE": 2,
    "cpu.BLOCK_ENTRIES": 7,
    "cpu._CHUNK": 8,
    "cpu.TOGETHER": 0,
}


@contextlib.contextmanager
def small_pieces() -> Iterator[None]:
    """So that these few anchors are several pieces of work. A name that is gone raises."""
    before = {}
    for path, size in PIECES.items():
        module, name = path.split(".")
        home = importlib.import_module(f"multicontrast.losses.{module}")
        before[home, name] = getattr(home, name)
        setattr(home, name, size)
    try:
        yield
    finally:
        for (home, name), size in before.items():
            setattr(home, name, size)


# --- Similarities of the user's own ---------------------------------------------------------------------------------


def own_formula(cosines: Sequence[Tensor], slope: float | Tensor, bend: float | Tensor) -> Tensor:
    """A smooth function to which the order of the cosines matters, for any number of them."""
    terms = [(k + 1) * (slope * c + bend * c * c + c**3 / 4) for k, c in enumerate(cosines)]
    return sum(terms[1:], start=terms[0]) / len(cosines)


class OwnObject:
    """With a closed form for the derivative by the cosines."""

    slope, bend = 0.8, -0.3

    def __call__(self, cosines: Sequence[Tensor]) -> Tensor:
        return own_formula(cosines, self.slope, self.bend)

    def with_gradient(self, cosines: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        count = len(cosines)
        slopes = [
            (k + 1) / count * (self.slope + 2 * self.bend * c + 0.75 * c * c) for k, c in enumerate(cosines)
        ]  # fmt: skip
        return self(cosines), slopes


class OwnModule(nn.Module):
    def __init__(self, slope: Tensor, bend: Tensor) -> None:
        super().__init__()
        self.slope, self.bend = (nn.Parameter(x, requires_grad=x.requires_grad) for x in (slope, bend))

    def forward(self, cosines: Sequence[Tensor]) -> Tensor:
        return own_formula(cosines, self.slope, self.bend)


class OwnModuleWithGradient(OwnModule):
    with_gradient = OwnObject.with_gradient


def own_closure(slope: Tensor, bend: Tensor) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda cosines: own_formula(cosines, slope, bend)


OWN = ("function", "object", "closure", "module", "module with gradient")


# --- A case -------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One call: ``mc.<operation>(*embeddings, tau, **options)``, in some surroundings."""

    seed: int
    operation: str
    embeddings: list[Tensor]
    tau: Any
    options: dict[str, Any]
    surroundings: tuple[str, ...] = ()  # "autocast", "default device", "small pieces"
    own: dict[str, Tensor] = field(default_factory=dict)  # tensors inside a similarity of the user's own
    without: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.embeddings[0])

    @property
    def count(self) -> int:
        return len(self.embeddings)

    @property
    def draws(self) -> bool:
        return self.options.get("negatives", "default") in ("default", *SCHEMES) and self.operation != "pairwise"

    def tensors(self) -> dict[str, Tensor]:
        """Every floating tensor of the call by name; one that is passed twice has one name."""
        named = {f"embeddings[{m}]": x for m, x in enumerate(self.embeddings)}
        taus = self.tau if isinstance(self.tau, dict) else {None: self.tau}
        named |= {
            "tau" if key is None else f"tau[{key}]": value for key, value in taus.items() if isinstance(value, Tensor)
        }
        if "weight" in self.options:
            named["weight"] = self.options["weight"]
        extra = self.options.get("extra_negatives") or []
        named |= {f"extra_negatives[{m}]": x for m, x in enumerate(extra) if x is not None}
        named |= {f"similarity.{name}": x for name, x in self.own.items()}
        seen: set[int] = set()
        return {name: x for name, x in named.items() if not (id(x) in seen or seen.add(id(x)))}

    def leaves(self) -> dict[str, Tensor]:
        """Those of them that want a gradient."""
        return {name: x for name, x in self.tensors().items() if x.requires_grad}

    def call(self, **extra: Any) -> Tensor:
        """The loss. ``extra`` are further options, such as ``impl=``."""
        options = self.options | extra
        if self.draws:
            options["generator"] = torch.Generator().manual_seed(self.seed)
        if options.get("diagnostics"):
            options["diagnostics"] = mc.Diagnostics()
        function = getattr(mc, f"{self.operation}_infonce")
        embeddings = [self.embeddings] if self.operation == "multimodal" else self.embeddings
        with contextlib.ExitStack() as stack:
            if "autocast" in self.surroundings:
                stack.enter_context(torch.autocast("cpu", torch.bfloat16))
            if "default device" in self.surroundings:
                stack.enter_context(torch.device("meta"))
            stack.enter_context(self.pieces())
            return function(*embeddings, self.tau, **options)

    def pieces(self) -> contextlib.AbstractContextManager[None]:
        return small_pieces() if "small pieces" in self.surroundings else contextlib.nullcontext()

    def code(self, impl: str | None = None) -> str:
        """Python that makes the call again, and the call in words below it."""
        without = f", without={self.without!r}" if self.without else ""
        options = self.options | ({"generator": f"seed {self.seed}"} if self.draws else {})
        lines = [
            "from tests.losses.differential import disagreements, draw_case",
            f"case = draw_case({self.seed}{without})",
            f"print(disagreements(case, {impl!r}), case.call({'' if impl is None else f'impl={impl!r}'}))",
            f"# {self.operation}_infonce, B = {self.size}, D = {self.embeddings[0].shape[1]}, N = {self.count}"
            + "".join(f", under {word}" for word in self.surroundings),
            *(f"#   {name} = {_in_short(value)}" for name, value in self.tensors().items() if "embed" in name),
            f"#   tau = {_in_short(self.tau)}",
            *(f"#   {name} = {_in_short(value)}" for name, value in options.items()),
        ]
        return "\n".join(lines)

    # The definition, put together from the terms.

    def definition(self) -> Definition:
        """The same loss in float64, one anchor at a time, of leaves of its own."""
        doubles: dict[int, Tensor] = {}

        def double(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if id(x) not in doubles:
                doubles[id(x)] = x.detach().double().requires_grad_(x.requires_grad)
            return doubles[id(x)]

        options = self.options
        present = options.get("present")
        embeddings = [double(x) for x in self.embeddings]
        if present is not None:  # whatever an absent row holds
            embeddings = [torch.where(present[:, m, None], x, 0) for m, x in enumerate(embeddings)]
        extra = [double(x) for x in options.get("extra_negatives") or [None] * self.count]
        weight, reduction = double(options.get("weight")), options.get("reduction", "mean")
        shared = {
            name: options[name] for name in ("ids", "label_smoothing", "hardness", "normalize") if name in options
        }
        tau_of = self.tau if isinstance(self.tau, dict) else collections.defaultdict(lambda: self.tau)

        def average(rows: Tensor, here: Tensor) -> Tensor:
            return definitions.average(rows, here, weight, reduction)

        def pair(m: int, n: int) -> Tensor:
            rows, here = definitions.masked_pair_infonce(
                embeddings[m],
                embeddings[n],
                double(tau_of[m, n]),
                options.get("symmetric", True),
                [extra[m], extra[n]],
                present=None if present is None else present[:, [m, n]],
                **shared,
            )
            return average(rows, here)

        margins = [math.inf]
        if self.operation == "pairwise":
            loss = pair(0, 1)
        else:
            loss = embeddings[0].new_zeros(self.size if reduction == "none" else ())
            alpha = options.get("alpha", 1.0)
            if self.operation == "trimodal":
                for m, n in options.get("pairs", itertools.combinations(range(3), 2)):
                    loss = loss + pair(m, n)
            if alpha > 0:
                own = {name: double(x) for name, x in self.own.items()} or {"slope": 0.8, "bend": -0.3}
                similarity = functools.partial(_alike, options.get("similarity", "eigenvalue"), own, margins)
                directions = []
                for reverse in (False, True) if options.get("symmetric") and self.operation != "trimodal" else (False,):
                    rows, here = definitions.masked_tuple_infonce(
                        embeddings,
                        self._tuples(reverse),
                        double(tau_of["triplet"]),
                        similarity,
                        present=present,
                        extra=extra,
                        reverse=reverse,
                        **shared,
                    )
                    directions.append(rows)
                loss = loss + alpha * average(sum(directions) / len(directions), here)
        leaves = {name: double(x) for name, x in self.leaves().items()}
        return Definition(loss, leaves, min(margins))

    def _tuples(self, reverse: bool) -> list:
        negatives = self.options.get("negatives", "default")
        if isinstance(negatives, Tensor):
            return negatives.tolist()
        if negatives == "all":
            anchor = self.options.get("anchor", 0)
            return [definitions.every_tuple(self.size, self.count, i, anchor) for i in range(self.size)]
        index = mc.sample_tuples(
            self.size,
            self.count,
            num_negatives=self.options.get("num_negatives"),
            scheme="cyclic" if negatives == "default" else negatives,
            generator=torch.Generator().manual_seed(self.seed),
        )
        if reverse:  # anchor i is compared with the tuples of the anchors that it is a candidate of
            compared: list[list[tuple[int, ...]]] = [[] for _ in range(self.size)]
            for column in range(index.shape[1]):
                for j in range(self.size):
                    i = int(index[j, column, -1])
                    compared[i].append((j, *[i] * (self.count - 1)))
            return compared
        return index.tolist()


@dataclass
class Definition:
    loss: Tensor
    leaves: dict[str, Tensor]
    margin: float  # how far the similarity is from where it is not smooth


def _alike(similarity: Any, own: dict[str, Any], margins: list[float], rows: Tensor) -> Tensor:
    """The similarity of tuples of unit rows, ``(C, n, D)``; notes how smooth it is."""
    if not isinstance(similarity, str):
        return own_formula(definitions.cosines_of(rows), **own)
    value = definitions.tuple_similarity(rows, similarity)
    if similarity in ("eigenvalue", "singular_value"):
        spectrum = torch.linalg.eigvalsh(definitions.gram_matrix(rows.detach()))
        margins.append(float((spectrum[:, -1] - spectrum[:, -2]).min()))
    elif similarity in ("volume", "area"):
        margins.append(float(value.detach().abs().min()) ** 2)
    return value


def _in_short(value: Any) -> str:
    if isinstance(value, Tensor):
        leaf = ", requires_grad=True" if value.requires_grad else ""
        stride = "" if value.is_contiguous() else f", strides {value.stride()}"
        return f"torch.tensor({value.detach().tolist()}, dtype={value.dtype}{leaf}){stride}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_in_short(x)}" for key, x in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_short, value)) + "]"
    if callable(value) and not isinstance(value, nn.Module):  # whose repr has an address
        return f"{getattr(value, '__qualname__', type(value).__qualname__)}, of draw_case"
    return repr(value)


# --- Drawing ------------------------------------------------------------------------------------------------------


def draw_case(seed: int, without: Sequence[str] = ()) -> Case:
    """The case of a seed; ``without`` drops some of its options and surroundings (and changes nothing else)."""
    case = _Draw(seed).case()
    for name in without:
        case.options.pop(name, None)
        case.surroundings = tuple(word for word in case.surroundings if word != name)
        if name == "similarity":
            case.own.clear()
        if name == "tau":
            case.tau = 0.3
        if name in _INPUTS:
            case.embeddings = [_INPUTS[name](x) for x in case.embeddings]
    case.without = tuple(without)
    return case


def _leaf_of(x: Tensor, new: Tensor) -> Tensor:
    return new.detach().requires_grad_(x.requires_grad)


_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "strides": lambda x: _leaf_of(x, x.detach().contiguous()),
    "dtype": lambda x: _leaf_of(x, x.detach().double()),
}


class _Draw:
    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.extreme = False
        self.generator = torch.Generator().manual_seed(seed)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator)

    def case(self) -> Case:
        pick = self.random.choice
        self.operation = self.random.choices(("pairwise", "triplet", "multimodal", "trimodal"), (2, 2, 3, 3))[0]
        self.count = {"pairwise": 2, "multimodal": self.random.randint(2, 5)}.get(self.operation, 3)
        self.size = pick((1, 2, 2, 3, 3, 3, 4, 4, 5, 6))
        self.dim = pick((1, 2, 3, 3, 4, 5, 6))
        self.options: dict[str, Any] = {}
        self.own: dict[str, Tensor] = {}
        kind = self.random.choices(("float64", "float32", "mixed", "bfloat16", "float16"), (60, 25, 5, 5, 5))[0]
        self.kind = kind
        self.dtype = torch.float32 if kind == "mixed" else getattr(torch, kind)
        self.options["normalize"] = not self.chance(0.1)
        if self.operation != "pairwise":
            self.draw_tuples()
        self.draw_masks()
        embeddings = self.draw_embeddings()
        tau = self.draw_tau()
        if self.chance(0.6) and not self.extreme:
            self.options["reduction"] = pick(("mean", "sum", "none"))
        if self.operation == "pairwise" or (
            self.operation in ("triplet", "multimodal") and self.options.get("negatives") == "tied"
        ):
            self.options["symmetric"] = self.chance(0.5)
        if self.chance(0.3) and self.options.get("negatives") != "all":
            self.options["tiled"] = self.chance(0.6)
        if self.chance(0.04):
            self.options["gather"] = True
        if self.chance(0.04):
            self.options["diagnostics"] = True
        surroundings = tuple(word for word in ("autocast", "default device") if self.chance(0.04))
        if self.chance(0.5):
            surroundings += ("small pieces",)
        if self.options["normalize"]:
            del self.options["normalize"]
        return Case(
            self.seed, self.operation, embeddings, tau, self.options, surroundings, self.own
        )  # fmt: skip

    def draw_tuples(self) -> None:
        pick = self.random.choice
        if self.operation == "trimodal":
            if self.chance(0.5):
                pairs = self.random.sample([(0, 1), (0, 2), (1, 2)], self.random.randint(1, 3))
                self.options["pairs"] = tuple(pair if self.chance(0.5) else pair[::-1] for pair in pairs)
            if self.chance(0.5):
                self.options["symmetric"] = self.chance(0.3)
            if self.chance(0.5):
                self.options["alpha"] = pick((0.0, 0.25, 1.0, 3.0))
        similarity = pick((*SIMILARITIES, *OWN[: None if self.chance(0.5) else 0]))
        if similarity in OWN:
            self.options["similarity"] = self.draw_own(similarity)
        elif similarity != "eigenvalue" or self.chance(0.5):
            self.options["similarity"] = similarity
        scheme = pick(("default", *SCHEMES, "all", "all", "drawn index", "index"))
        if scheme == "all" and not (self.count <= 3 or similarity == "mean_cosine"):
            scheme = "default"
        if scheme == "all":
            self.size = min(self.size, {2: 7, 3: 4, 4: 3}.get(self.count, 2))
            self.options["negatives"] = scheme
            if self.chance(0.4):
                self.options["anchor"] = pick((0, "any", "any"))
            return
        negatives = None
        if self.size == 1:
            negatives = pick((None, 0))
        elif self.chance(0.5):
            most = self.size - 1 if scheme in ("shared", "tied") else 2 * self.size
            negatives = self.random.randint(0, most)
        if scheme == "index":
            index = self.integers(self.size, self.size, 1 + (self.size if negatives is None else negatives), self.count)
            self.options["negatives"] = index.int() if self.chance(0.2) else index
        elif scheme == "drawn index":
            self.options["negatives"] = mc.sample_tuples(
                self.size,
                self.count,
                num_negatives=negatives,
                exclude_positive=self.chance(0.7),
                generator=self.generator,
            )
        else:
            if scheme != "default":
                self.options["negatives"] = scheme
            if negatives is not None:
                self.options["num_negatives"] = negatives

    def draw_own(self, style: str) -> Any:
        if style == "function":
            return functools.partial(own_formula, slope=0.8, bend=-0.3)
        if style == "object":
            return OwnObject()
        dtype = torch.float32 if self.dtype.itemsize == 2 else self.dtype
        values = {name: self.normal().to(dtype) for name in ("slope", "bend")}
        for value in values.values():
            value.requires_grad_(self.chance(0.7))
        if style == "closure":
            self.own = values
            return own_closure(**values)
        module = {"module": OwnModule, "module with gradient": OwnModuleWithGradient}[style](**values)
        self.own = dict(module.named_parameters())
        return module

    def draw_masks(self) -> None:
        options, size = self.options, self.size
        if self.chance(0.25):
            self.draw_weight()
        if self.chance(0.4):  # most implementations mask nothing
            return
        if self.chance(0.2):
            options["present"] = torch.rand(size, self.count, generator=self.generator) < 0.75
        if self.chance(0.2):
            ids = self.integers(max(2, size - 1), size) * 1000
            options["ids"] = ids.int() if self.chance(0.3) else ids
        if self.chance(0.2):
            options["label_smoothing"] = self.random.choice((0.1, 0.5))
        if self.chance(0.2):
            options["hardness"] = self.random.choice((0.3, 1.0, 2.5))
        if self.chance(0.2):
            count, apiece = self.random.randint(0, 3), self.chance(0.4)
            shape = (size, count, self.dim) if apiece else (count, self.dim)
            extra = [
                None if self.chance(0.2) else self.rows(*shape).requires_grad_(self.chance(0.3))
                for _ in range(self.count)
            ]
            if any(x is not None for x in extra):
                options["extra_negatives"] = extra

    def draw_weight(self) -> None:
        weight = 0.2 + torch.rand(self.size, dtype=torch.float64, generator=self.generator)
        weight = weight.to(torch.float32 if self.chance(0.4) else torch.float64)
        kind = self.random.choices(("plain", "leaf", "zeros", "integer", "extreme"), (30, 25, 15, 5, 25))[0]
        if kind == "zeros":
            weight[self.integers(2, self.size) == 0] = 0
        elif kind == "integer":
            weight = self.integers(4, self.size)
        elif kind == "extreme":  # a sum would overflow
            self.extreme = True
            weight = weight * self.random.choice(
                (1e-30, 3e-37, 1e30, 2e37) if weight.dtype == torch.float32 else (1e-60, 1e-290, 1e60, 1e290)
            )
        self.options["weight"] = weight.requires_grad_(kind == "leaf")

    def rows(self, *shape: int) -> Tensor:
        """Rows, of length one where that is promised; in the type of the embeddings."""
        x = self.normal(*shape)
        return (x if self.options["normalize"] else definitions.unit(x)).to(self.dtype)

    def draw_embeddings(self) -> list[Tensor]:
        size, pick, present = self.size, self.random.choice, self.options.get("present")
        xs = [self.rows(size, self.dim) for _ in range(self.count)]
        if self.chance(0.25):
            kind = pick(("zero", "equal", "matched", "opposite", "all equal"))
            i, j, m = self.random.randrange(size), self.random.randrange(size), self.random.randrange(self.count)
            if kind == "zero" and self.options["normalize"]:
                xs[m][i] = 0
            elif kind == "equal":
                xs[m][j] = xs[m][i]
            elif kind == "matched":
                for x in xs:
                    x[i] = xs[0][i]
            elif kind == "opposite":
                xs[m][i] = -xs[0][j]
            elif kind == "all equal":
                xs[m][:] = xs[m][i].clone()
        if self.options["normalize"] and self.chance(0.2):
            most = {torch.float16: 3.0, torch.float64: 100.0}.get(self.dtype, 30.0)
            span = pick((3.0, most)) * (2 * torch.rand(self.count, size, 1, generator=self.generator).double() - 1)
            xs = [(x.double() * 10**exponent).to(self.dtype) for x, exponent in zip(xs, span)]
        if self.kind == "mixed":
            xs[0] = xs[0].double()
        if present is not None and self.chance(0.6):
            fill = pick((math.nan, math.inf, 0.0))
            xs = [torch.where(present[:, m, None], x, fill) for m, x in enumerate(xs)]
        if self.chance(0.25):
            strides = pick(("columns first", "every second", "expanded"))
            xs = [_restride(x, strides) for x in xs]
        everything = self.chance(0.6)
        xs = [x.detach().requires_grad_(everything or self.chance(0.5)) for x in xs]
        if present is None and self.chance(0.03):
            xs[-1] = xs[0]
        return xs

    def draw_tau(self) -> Any:
        if self.operation == "trimodal" and self.chance(0.25):
            keys = list(self.options.get("pairs", itertools.combinations(range(3), 2)))
            if self.options.get("alpha", 1.0) > 0:
                keys.append("triplet")
            return {key: self.one_tau() for key in keys}
        return self.one_tau()

    def one_tau(self) -> float | Tensor:
        tau = self.random.choices((0.05, 0.2, 0.4, 1.0, 3.0, 0.01, 0.002, 30.0), (10, 30, 30, 10, 5, 3, 3, 3))[0]
        if self.chance(0.3):
            return tau
        dtype = self.random.choice((torch.float32, torch.float64)) if self.chance(0.3) else self.dtype
        if dtype.itemsize == 2:
            dtype = torch.float32
        return torch.tensor(tau, dtype=dtype).requires_grad_(self.chance(0.7))


def _restride(x: Tensor, kind: str) -> Tensor:
    """The same values in other places."""
    if kind == "columns first":
        return x.t().contiguous().t()
    if kind == "every second":
        wide = torch.full((2 * len(x), 2 * x.shape[1]), math.nan, dtype=x.dtype)
        wide[::2, 1::2] = x
        return wide[::2, 1::2]
    if kind == "expanded" and torch.equal(x, x[:1].expand_as(x)):
        return x[:1].expand_as(x)
    return x


# --- Comparing ------------------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """What the definition says of a case."""

    value: Tensor
    grads: dict[str, Tensor]
    products: dict[str, Tensor]
    margin: float
    cotangent: Tensor
    directions: dict[str, Tensor]


def expected_of(case: Case) -> Expected:
    found = case.definition()
    generator = torch.Generator().manual_seed(case.seed)
    cotangent = torch.randn(found.loss.shape, dtype=torch.float64, generator=generator)
    directions = {
        name: (torch.randn(x.shape, dtype=torch.float64, generator=generator) * _length(name, x)).to(x.dtype).double()
        for name, x in case.leaves().items()
    }
    grads = _gradients(found.loss, found.leaves, cotangent, True)
    products = _products(grads, found.leaves, directions)
    return Expected(found.loss.detach(), _detached(grads), products, found.margin, cotangent, directions)


def _length(name: str, x: Tensor) -> Tensor:
    """By how much a leaf can move until the loss does: the length of a row (0 for one that is nothing), or its size."""
    x = x.detach().double()
    if "embeddings" in name or "extra" in name:
        norm = x.nan_to_num(0, 0, 0).norm(dim=-1, keepdim=True)
        return norm.expand_as(x)
    return x.abs() if name.startswith(("tau", "weight")) else torch.ones_like(x)


def _gradients(loss: Tensor, leaves: dict[str, Tensor], cotangent: Tensor, create_graph: bool) -> dict[str, Tensor]:
    if not leaves or not loss.requires_grad:
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    found = torch.autograd.grad(
        loss,
        list(leaves.values()),
        cotangent.to(loss.dtype),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, found))


def _products(grads: dict[str, Tensor], leaves: dict[str, Tensor], directions: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Hessian, times the directions."""
    moved = [(g * directions[name].to(g.dtype)).nan_to_num(0, 0, 0).sum() for name, g in grads.items()]
    total = sum(moved, start=torch.zeros(()))
    if not total.requires_grad:
        return {name: torch.zeros_like(x) for name, x in leaves.items()}
    return _detached(
        dict(
            zip(
                leaves,
                torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True),
            )
        )
    )


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in tensors.items()}


class DoesNotApply(Exception):
    """The implementation does not do this case."""


def disagreements(case: Case, impl: str | None = None, expected: Expected | None = None) -> list[str]:
    """What differs between the call and its definition; nothing if all is well.

    Raises :class:`DoesNotApply` if the implementation says by ValueError that it does not do this case.
    """
    expected = expected_of(case) if expected is None else expected
    forced = {} if impl is None else {"impl": impl}
    before = {name: x.detach().clone() for name, x in case.tensors().items()}
    leaves = case.leaves()
    with warnings.catch_warnings(), case.pieces():  # also while a backward pass computes parts again
        warnings.simplefilter("ignore")
        try:
            loss = case.call(**forced)
        except ValueError as error:
            if impl is None:
                return [f"raises {error!r}"]
            raise DoesNotApply from error
        except Exception as error:
            return [f"raises {error!r}"]
        complaints = _compare_value(case, loss, expected)
        if not leaves or complaints:
            return complaints
        if not loss.requires_grad and any(x.abs().max() > 0 for x in expected.grads.values() if x.numel()):
            return ["the loss has no graph"]
        try:
            complaints += _compare_each(
                case, "gradient", 1, _gradients(loss, leaves, expected.cotangent, False), expected
            )
        except Exception as error:
            complaints.append(f"gradient raises {error!r}")
        try:
            grads = _gradients(case.call(**forced), leaves, expected.cotangent, True)
            complaints += _compare_each(case, "gradient with create_graph", 1, _detached(grads), expected)
            products = _products(grads, leaves, expected.directions)
            complaints += _compare_each(case, "Hessian-vector product", 2, products, expected)
        except Exception as error:
            if not (case.options.get("tiled") and isinstance(error, RuntimeError) and "first" in str(error)):
                complaints.append(f"gradient with create_graph raises {error!r}")
    for name, x in case.tensors().items():
        if not torch.equal(x.detach().nan_to_num(7), before[name].nan_to_num(7)):
            complaints.append(f"{name} was changed in place")
    return complaints


def _compute_dtype(case: Case) -> torch.dtype:
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in case.embeddings])
    return dtype if dtype == torch.float64 else torch.float32


def _error_bound(case: Case, order: int, dtype: torch.dtype, margin: float) -> float:
    """What rounding may do to a derivative of this order, where lengths, weights and cotangents are about one."""
    eps = torch.finfo(dtype).eps
    taus = case.tau.values() if isinstance(case.tau, dict) else [case.tau]
    sharpness = 1 + (1 + case.options.get("hardness", 0)) / min(float(tau) for tau in taus)
    rounding = eps * case.count**2 * sharpness ** (order + 1)
    smooth = min(margin, 1.0)
    if case.options.get("similarity") in ("volume", "area"):
        # A square root: near its zero the value has half the digits.
        rounding = rounding / max(smooth, eps) ** 0.5
    return 100 * rounding / max(smooth, eps) ** order


def _compare_value(case: Case, loss: Tensor, expected: Expected) -> list[str]:
    dtype = _compute_dtype(case)
    if loss.dtype != dtype or loss.shape != expected.value.shape or loss.device.type != "cpu":
        return [f"the loss is {loss.dtype} {tuple(loss.shape)} on {loss.device}, not {dtype}"]
    bound = _error_bound(case, 0, dtype, expected.margin)
    got, scale = loss.detach().double(), 1 + float(expected.value.nan_to_num(0).abs().max())
    if not torch.allclose(got, expected.value, rtol=0, atol=bound * scale, equal_nan=True):
        return [f"value {got.tolist()} instead of {expected.value.tolist()}"]
    return []


def _compare_each(case: Case, what: str, order: int, got: dict[str, Tensor], expected: Expected) -> list[str]:
    complaints = []
    wanted = expected.grads if order == 1 else expected.products
    leaves = case.leaves()
    failed = bool(expected.value.isnan().any())  # what is NaN in the definition has no gradient to compare
    for name, g in got.items():
        x = leaves[name]
        if g.dtype != x.dtype or g.shape != x.shape:
            complaints.append(f"{what} by {name} is {g.dtype} {tuple(g.shape)}")
            continue
        length = _length(name, x)
        there = _comparable(case, name, x)
        if x.dtype.itemsize == 2 or failed:
            continue
        value = g.double()[there] * length[there]
        want = wanted[name][there] * length[there]
        dtype = max((_compute_dtype(case), x.dtype), key=lambda t: torch.finfo(t).eps)
        bound = _error_bound(case, order, dtype, expected.margin)
        scale = 1 + float(want.abs().max()) if want.numel() else 1.0
        if bound > 0.01 or not math.isfinite(scale):
            if not value.isfinite().all():
                complaints.append(f"{what} by {name} is not finite")
        elif not torch.allclose(value, want, rtol=0, atol=bound * scale):
            worst = float((value - want).abs().max())
            complaints.append(f"{what} by {name} off by {worst:.2g} of {scale:.2g} (bound {bound:.1g})")
    return complaints


def _comparable(case: Case, name: str, x: Tensor) -> Tensor:
    """Where the derivative is defined: not by a zero row, whose direction is nowhere."""
    if "embeddings" in name or "extra" in name:
        row = x.detach().double()
        return ((row.norm(dim=-1, keepdim=True) > 0) | row.isnan()).expand_as(x)
    return torch.ones_like(x, dtype=torch.bool)


# --- Many cases -----------------------------------------------------------------------------------------------------


@dataclass
class Failure:
    case: Case
    impl: str | None
    complaints: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.complaints, self.case.code(self.impl)])


@contextlib.contextmanager
def noting_implementations() -> Iterator[list[str]]:
    """The names of the implementations that compute what is called meanwhile."""
    names: list[str] = []

    def noted(one: api.Implementation) -> api.Implementation:
        return one._replace(loss=lambda *given: names.append(one.name) or one.loss(*given))

    with mock.patch.object(api, "IMPLEMENTATIONS", tuple(map(noted, api.IMPLEMENTATIONS))):
        yield names


def compare(seeds: Sequence[int], impls: Sequence[str | None] = NAMES) -> tuple[list[Failure], collections.Counter]:
    """The failures among the cases of some seeds, and how many cases each implementation did. The one that is chosen
    where none is named does its cases under that name alone."""
    failures, done = [], collections.Counter()
    for seed in seeds:
        case = draw_case(seed)
        expected, same = expected_of(case), None
        for impl in impls:
            complaints: list[str] = []
            try:
                if impl is None:
                    with noting_implementations() as names:
                        complaints = disagreements(case, None, expected)
                    same = names[-1] if names else None
                elif impl != same:
                    complaints = disagreements(case, impl, expected)
            except DoesNotApply:
                continue
            done[impl] += 1
            if complaints:
                failures.append(Failure(case, impl, complaints))
    return failures, done


def smallest(failure: Failure) -> Failure:
    """The same failure with every option left out that it does not need."""
    names = ["dtype", "strides", "tau", *failure.case.surroundings, *failure.case.options]
    for name in names:
        try:
            case = draw_case(failure.case.seed, (*failure.case.without, name))
            complaints = disagreements(case, failure.impl)
        except Exception:
            continue
        if complaints and _kind(complaints[0]) == _kind(failure.complaints[0]):
            failure = Failure(case, failure.impl, complaints)
    return failure


def _kind(complaint: str) -> str:
    return complaint.split(" by ")[0].split(" instead ")[0].split("(")[0][:40].rstrip("0123456789.-[], ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", type=int)
    parser.add_argument("stop", type=int)
    parser.add_argument("--impl", nargs="*", default=NAMES)
    parser.add_argument("--show", type=int, default=3, help="failures of each kind that are printed in full")
    arguments = parser.parse_args()
    began = time.process_time()
    failures, done = compare(range(arguments.start, arguments.stop), arguments.impl)
    seconds = time.process_time() - began
    kinds = collections.defaultdict(list)
    for failure in failures:
        small = smallest(failure)
        kinds[(small.impl, _kind(small.complaints[0]), *sorted(small.case.options))].append(small)
    for key, found in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(found):6d}  {key}")
        for small in found[: arguments.show]:
            print("    " + str(small).replace("\n", "\n    "))
    print(f"{len(failures)} failures; cases done {dict(done)}; {sum(done.values()) / seconds:.0f} a second")


if __name__ == "__main__":
    main()
