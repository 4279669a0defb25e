"""Every option of the losses, defined once: its type, default, meaning and check.

A loss is written ``def loss(x, y, tau, **options: Unpack[PairOptions])``; :func:`with_options` writes the options into
its signature and docstring. Type checkers read the same classes.
"""

# No `from __future__ import annotations`: the annotations are read at run time.

import inspect
import math
import numbers
import textwrap
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, TypeVar

import torch
from torch import Tensor

from multicontrast._checks import (
    as_float,
    can_read_values,
    check_bools,
    check_choice,
    check_count,
    check_flag,
    check_floating,
    check_generator,
    check_list,
    check_names,
    check_number,
    check_same_device,
    check_weights,
    check_whole,
    describe,
    three_beats,
)
from multicontrast.distributed import Gather
from multicontrast.losses.candidates import MAX_MODALITIES
from multicontrast.losses.diagnostics import Diagnostics
from multicontrast.similarity import Similarity

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)

SimilarityName: TypeAlias = Literal["eigenvalue", "singular_value", "mean_cosine", "volume", "area", "multilinear"]
Scheme: TypeAlias = Literal["cyclic", "permutation", "shared", "tied", "all"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]

ALL_PAIRS = ((0, 1), (0, 2), (1, 2))


Check: TypeAlias = Callable[[str, str, Any], Any]  # of (operation, name, value): the value in plain Python


@dataclass(frozen=True)
class Option:
    """The default, the documentation and the check of one option."""

    default: Any
    doc: str
    check: Check | None = None  # None: checked together with the tensors


def _flag_or_none(operation: str, name: str, value: Any) -> bool | None:
    return None if value is None else check_flag(operation, name, value)


def _one_of(*names: str) -> Check:
    def check(operation: str, name: str, value: Any) -> Any:
        check_choice(operation, name, value, names)
        return value

    return check


def _number(below: float, remedy: str) -> Check:
    return lambda operation, name, value: check_number(operation, name, value, least=0, below=below, remedy=remedy)


def _anchor(operation: str, _: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value not in (0, "any"):
        remedy = "Pass anchor=0 for the first modality's row, or anchor='any'."
        raise ValueError(three_beats(f"`{operation}` needs `anchor` to be 0 or 'any'", describe(value), remedy))
    return value


def _generator(operation: str, _: str, value: Any) -> Any:
    check_generator(operation, value)
    return value


def _diagnostics(operation: str, _: str, value: Any) -> Any:
    if value is not None and not isinstance(value, Diagnostics):
        remedy = "Make one with `multicontrast.Diagnostics()`, and read it after the call."
        needed = f"`{operation}` needs `diagnostics` to be a Diagnostics or None"
        raise TypeError(three_beats(needed, describe(value), remedy))
    return value


def _pairs(operation: str, _: str, value: Any) -> tuple[tuple[int, int], ...]:
    needed = f"`{operation}` needs `pairs` to be pairs of different modalities out of 0..2, each once"
    remedy = "For example pairs=((0, 1), (0, 2), (1, 2))."
    listed = [
        tuple(check_list(operation, f"pairs[{k}]", pair, remedy=remedy))
        for k, pair in enumerate(check_list(operation, "pairs", value, remedy=remedy))
    ]
    for k, pair in enumerate(listed):
        members = {check_count(operation, f"pairs[{k}]", m, -(2**63), remedy=remedy) for m in pair}
        if len(pair) != 2 or len(members) != 2 or not members <= {0, 1, 2}:
            raise ValueError(three_beats(needed, repr(pair)[:80], remedy))
    if len(set(map(frozenset, listed))) != len(listed):
        raise ValueError(three_beats(needed, repr(listed)[:80], remedy))
    return tuple((int(m), int(n)) for m, n in typing.cast("list[tuple[int, int]]", listed))


class StoredOptions(TypedDict, total=False):
    """The options of every loss that its module stores."""

    reduction: Annotated[
        Reduction,
        Option(
            "mean",
            '``"mean"`` over the anchors, ``"sum"``, or ``"none"`` for ``(B,)``.',
            _one_of("mean", "sum", "none"),
        ),
    ]
    normalize: Annotated[bool, Option(True, "pass ``False`` only if every row has length 1.", check_flag)]
    tiled: Annotated[
        bool | None,
        Option(
            None,
            "``True`` never holds a ``(B, B)`` tensor, ``False`` always does; ``None`` decides by the free memory.",
            _flag_or_none,
        ),
    ]
    gather: Annotated[
        Gather,
        Option(
            False,
            "``True``, or a process group, takes the rows of all ranks as candidates. Each rank returns the loss of "
            "its own anchors, whose mean over the ranks is that of one process; see :mod:`multicontrast.distributed`.",
        ),
    ]
    ring: Annotated[
        bool,
        Option(
            False,
            "with ``gather``, never hold the logits of all candidates. The rows of pairs and of tied tuples are sent "
            "from rank to rank, those of other schemes are gathered. First derivatives only.",
            check_flag,
        ),
    ]
    label_smoothing: Annotated[
        float,
        Option(
            0.0,
            "share of the target that is spread evenly over all candidates, the positive included.",
            _number(1, "0 puts the whole target on the positive; 0.1 is a usual value."),
        ),
    ]
    hardness: Annotated[
        float,
        Option(
            0.0,
            "exponent that raises the weight of near negatives; see :doc:`/losses/masks-and-weights`.",
            _number(math.inf, "0 weighs all negatives alike; 0.5 to 2 are usual values."),
        ),
    ]


class BatchOptions(TypedDict, total=False):
    """The options of one batch, which a module takes at each call."""

    present: Annotated[
        Tensor | None,
        Option(
            None,
            "bool ``(B, N)``: which samples have which modality. A tuple is compared by its present members and needs "
            "two of them; samples with fewer are ignored, even if their rows hold NaN.",
        ),
    ]
    ids: Annotated[
        Tensor | None,
        Option(None, "integers ``(B,)``: a candidate is not a negative if all its members have the anchor's id."),
    ]
    weight: Annotated[
        Tensor | None,
        Option(None, "``(B,)``, not negative: factors of the anchors' losses; the mean divides by their sum."),
    ]
    extra_negatives: Annotated[
        Sequence[Tensor | None] | None,
        Option(
            None,
            "for each modality a tensor or None: extra samples, ``(E, D)`` shared by all anchors or ``(B, E, D)`` with "
            "E for each anchor. Each gives one negative, the tuple of the anchor's first embedding and the sample's "
            "others; in a pair it is a candidate for the anchors of the other modality.",
        ),
    ]
    diagnostics: Annotated[
        Diagnostics | None, Option(None, "a :class:`multicontrast.Diagnostics` that the call fills.", _diagnostics)
    ]


class StoredPairOptions(StoredOptions, total=False):
    """The options that a loss with pairs stores in addition."""

    symmetric: Annotated[
        bool,
        Option(
            True,
            "whether a pair is the mean of both directions; ``False`` takes its first modality as anchors.",
            check_flag,
        ),
    ]


class StoredTupleOptions(StoredOptions, total=False):
    """The options that a loss with tuples stores in addition."""

    similarity: Annotated[
        SimilarityName | Similarity,
        Option(
            "eigenvalue",
            '``"eigenvalue"``, ``"singular_value"``, ``"mean_cosine"``, ``"volume"``, ``"area"``, ``"multilinear"``, '
            "or a callable on the list of cosines; see :mod:`multicontrast.similarity`.",
        ),
    ]
    negatives: Annotated[
        Scheme | Tensor,
        Option(
            "cyclic",
            '``"cyclic"`` (random shifts), ``"permutation"`` (UniHPE, Algorithm 1), ``"shared"``, ``"tied"`` (as '
            'GRAM), ``"all"`` (exact: up to three modalities, any number for the mean cosine), or an index ``(B, 1 + '
            "K, N)`` of row numbers whose column 0 is the positive, as :func:`multicontrast.sample_tuples` draws; "
            "see :mod:`multicontrast.losses.candidates`.",
        ),
    ]
    num_negatives: Annotated[
        int | None, Option(None, "K, the negatives of each anchor, for the drawn schemes; ``None`` means B - 1.")
    ]
    anchor: Annotated[
        Literal[0, "any"],
        Option(
            0,
            'with ``negatives="all"``, 0 for the tuples that hold the first embedding of the anchor, ``"any"`` for '
            "those that hold any of its embeddings.",
            _anchor,
        ),
    ]
    generator: Annotated[
        torch.Generator | None,
        Option(
            None,
            "source of the drawn tuples, on any device; by default torch's generator of the embeddings' device.",
            _generator,
        ),
    ]


class _SymmetricTuples(TypedDict, total=False):
    symmetric: Annotated[
        bool,
        Option(
            False,
            '``True``, for ``negatives="tied"`` alone, is the mean of both directions: ``(i; j, ..., j)`` and ``(j; '
            "i, ..., i)``.",
            check_flag,
        ),
    ]


class _Trimodal(TypedDict, total=False):
    alpha: Annotated[
        float,
        Option(
            1.0,
            "weight of the triplet term; 0 leaves the pairs alone.",
            _number(math.inf, "The paper uses alpha=1; 0 leaves the pairs alone."),
        ),
    ]
    pairs: Annotated[
        Sequence[tuple[int, int]],
        Option(ALL_PAIRS, "the pairs of modalities to align; stage 2 of the paper has ``((0, 1), (0, 2))``.", _pairs),
    ]


class PairOptions(StoredPairOptions, BatchOptions, total=False):
    """The options of :func:`multicontrast.pairwise_infonce`."""


class StoredSymmetricTupleOptions(StoredTupleOptions, _SymmetricTuples, total=False):
    """The options of :class:`multicontrast.MultimodalInfoNCE` and :class:`multicontrast.TripletInfoNCE`."""


class TupleOptions(StoredSymmetricTupleOptions, BatchOptions, total=False):
    """The options of :func:`multicontrast.multimodal_infonce` and :func:`multicontrast.triplet_infonce`."""


class StoredTrimodalOptions(_Trimodal, StoredPairOptions, StoredTupleOptions, total=False):
    """The options of :class:`multicontrast.TrimodalInfoNCE`."""


class TrimodalOptions(StoredTrimodalOptions, BatchOptions, total=False):
    """The options of :func:`multicontrast.trimodal_infonce`."""


class TupleBatchOptions(BatchOptions, total=False):
    """The options that modules with tuples take at each call."""

    negatives: Annotated[Tensor, Option(None, "an index that replaces the drawn negatives in this call.")]


def options_of(kind: type) -> dict[str, tuple[Any, Option]]:
    """The options of one of the classes above by name, each with its type and its :class:`Option`."""
    found = {}
    for name, hint in typing.get_type_hints(kind, localns={"dist": torch.distributed}, include_extras=True).items():
        annotation, option = typing.get_args(hint)
        found[name] = (annotation, option)
    return found


# Read once, at import: torch.compile does not trace annotations.
_TABLES: dict[type, dict[str, Option]] = {
    kind: {name: option for name, (_, option) in options_of(kind).items()}
    for kind in (
        PairOptions,
        StoredPairOptions,
        TupleOptions,
        StoredSymmetricTupleOptions,
        TrimodalOptions,
        StoredTrimodalOptions,
    )
}


def with_options(kind: type) -> Callable[[Function], Function]:
    """Give a function with ``**options: Unpack[kind]`` the signature and the docstring of its options.

    The docstring holds a line ``{options}`` where they belong.
    """
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation)
        for name, (annotation, option) in options_of(kind).items()
    ]

    def decorate(function: Function) -> Function:
        written = inspect.signature(function)
        named = [p for p in written.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = written.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        function.__doc__ = _with_lines(function.__doc__, kind)
        return function

    return decorate


def with_documented_options(cls: Class) -> Class:
    """The same for a module's docstring, with the options of its constructor."""
    cls.__doc__ = _with_lines(cls.__doc__, cls._kind)  # type: ignore[attr-defined]
    return cls


def _with_lines(doc: str | None, kind: type) -> str | None:
    """A docstring with the options in place of the line ``{options}``, at its indentation."""
    if doc is None or "{options}" not in doc:
        return doc
    indent = next(line for line in doc.splitlines() if line.strip() == "{options}").replace("{options}", "")
    lines = [
        textwrap.fill(
            f"{name}: {option.doc}",
            112,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, (_, option) in options_of(kind).items()
    ]
    return doc.replace(indent + "{options}", "\n".join(lines))


def check_options(operation: str, kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a kind, the given ones or their defaults. Raises for unknown names and invalid values."""
    table = _TABLES[kind]
    check_names(operation, given, table)
    settled = {name: option.default for name, option in table.items()}
    for name, value in given.items():
        check = table[name].check
        settled[name] = value if check is None else check(operation, name, value)
    return settled


# --- Arguments that are checked together -------------------------------------------------------------------------


def check_embeddings(
    operation: str, names: Sequence[str], embeddings: Sequence[Tensor], *, may_be_empty: bool = False
) -> None:
    """Raise unless 2 to 8 embeddings are ``(B, D)`` floating tensors of one shape on one device, with B, D >= 1.

    A rank's batch may be empty if there are several ranks.
    """
    if not 2 <= len(embeddings) <= MAX_MODALITIES:
        needed = f"`{operation}` needs 2 to {MAX_MODALITIES} modalities"
        raise ValueError(three_beats(needed, str(len(embeddings)), "Pass a tensor for each."))
    for name, x in zip(names, embeddings):
        check_floating(operation, name, x)
        if x.ndim != 2:
            remedy = "Pool or flatten each sample to one vector first."
            raise ValueError(three_beats(f"`{operation}` needs `{name}` of shape (B, D)", describe(x), remedy))
    first = embeddings[0]
    for name, x in zip(names[1:], embeddings[1:]):
        if x.shape[0] != first.shape[0]:
            raise ValueError(
                three_beats(
                    f"`{operation}` pairs rows, so `{names[0]}` and `{name}` need as many rows",
                    f"{first.shape[0]} and {x.shape[0]}",
                    "Drop samples that lack a modality before the loss.",
                )
            )
        if x.shape[1] != first.shape[1]:
            raise ValueError(
                three_beats(
                    f"`{operation}` needs `{names[0]}` and `{name}` in one space",
                    f"dimensions {first.shape[1]} and {x.shape[1]}",
                    "Project both to the same dimension.",
                )
            )
    if (first.shape[0] == 0 and not may_be_empty) or first.shape[1] == 0:
        came, remedy = f"shape {tuple(first.shape)}", "Skip the loss for an empty batch."
        raise ValueError(three_beats(f"`{operation}` needs at least one row and one column", came, remedy))
    check_same_device(operation, names, embeddings)


_LARGE = 10.0  # logits then differ by at most 0.2, and nothing is learned
_warned_of_scale: set[str] = set()


def check_tau(operation: str, tau: Any, dtype: torch.dtype) -> Any:
    """``tau``, a tensor or a float; raises unless it is a number or a 0-dim floating tensor, positive and finite in
    ``dtype`` (checked only where the value can be read). Warns once if it looks like a logit scale."""
    remedy = "Temperatures divide the similarities: 0.07 is a usual value, `Temperature` learns one."
    if isinstance(tau, Tensor):
        if not tau.dtype.is_floating_point:
            needed = f"`{operation}` needs `tau`, the temperature, to be a number or a floating tensor"
            raise TypeError(three_beats(needed, describe(tau), remedy))
        check_floating(operation, "tau", tau)
        if tau.ndim != 0:
            squeeze = "Call `.squeeze()` on it." if tau.numel() == 1 else remedy
            raise ValueError(three_beats(f"`{operation}` needs `tau` to be a 0-dim tensor", describe(tau), squeeze))
        if not can_read_values(tau):
            return tau
        value = tau.item()
    else:
        if not isinstance(tau, numbers.Real) or isinstance(tau, bool):
            raise TypeError(three_beats(f"`{operation}` needs `tau` to be a number or a tensor", describe(tau), remedy))
        value = as_float(tau)
    finfo = torch.finfo(dtype)
    if value != value:  # NaN, in a form that a compiler can trace
        remedy = "Check what it is computed from: a step with NaN gradients makes a learned temperature NaN."
        raise ValueError(three_beats(f"`{operation}` needs `tau` to be positive and finite", "NaN", remedy))
    if not 0 < value < math.inf:
        came = repr(value) if isinstance(tau, Tensor) else describe(tau)
        raise ValueError(three_beats(f"`{operation}` needs `tau` to be positive and finite", came, remedy))
    if not finfo.tiny <= value <= finfo.max:
        needed = f"`{operation}` needs `tau` inside the range of {str(dtype).removeprefix('torch.')}"
        raise ValueError(three_beats(needed, describe(value), remedy))
    if not torch.compiler.is_compiling() and value >= _LARGE and operation not in _warned_of_scale:
        _warned_of_scale.add(operation)
        remedy = "If this is a logit scale, as CLIP's, pass its inverse: tau=1 / logit_scale."
        needed = f"`{operation}` divides by `tau`, whose usual values lie between 0.01 and 1"
        warnings.warn(three_beats(needed, f"{value:g}", remedy), UserWarning, stacklevel=4)
    return tau if isinstance(tau, Tensor) else value


def check_per_sample(operation: str, embeddings: Sequence[Tensor], options: Mapping[str, Any]) -> None:
    """Raise unless ``present``, ``ids``, ``weight`` and ``extra_negatives`` fit the embeddings."""
    size, dim = embeddings[0].shape
    device = embeddings[0].device
    present, ids = options["present"], options["ids"]
    weight, extra = options["weight"], options["extra_negatives"]
    if present is not None:
        remedy = "Row i says which modalities sample i has, as `torch.isfinite(x).all(1)` might."
        check_bools(operation, "present", present, remedy)
        _check_shape(operation, "present", present, (size, len(embeddings)), "(B, N)", device, remedy)
    if ids is not None:
        check_whole(operation, "ids", ids)
        remedy = "Samples with equal numbers are never negatives of each other."
        _check_shape(operation, "ids", ids, (size,), "(B,)", device, remedy)
    if weight is not None:
        remedy = "Weights are finite and not negative; the mean divides by their sum."
        check_weights(operation, "weight", weight, remedy)
        _check_shape(operation, "weight", weight, (size,), "(B,)", device, remedy)
        if can_read_values(weight) and not bool(((weight >= 0) & (weight < math.inf)).all()):
            came = f"values from {weight.min().item():g} to {weight.max().item():g}"
            raise ValueError(three_beats(f"`{operation}` needs `weight` >= 0 and finite", came, remedy))
    if extra is not None:
        _check_extra(operation, size, dim, device, len(embeddings), extra)


def _check_shape(
    operation: str, name: str, value: Tensor, shape: tuple[int, ...], words: str, device: torch.device, remedy: str
) -> None:
    needed = f"`{operation}` needs `{name}` of shape {words} = {shape}"
    if value.shape != shape:
        raise ValueError(three_beats(needed, describe(value), remedy))
    if value.device != device:
        raise ValueError(three_beats(f"{needed} on {device}", describe(value), "Move it with `.to(device)`."))


def _check_extra(operation: str, size: int, dim: int, device: torch.device, count: int, extra: Any) -> None:
    remedy = "Pass [e_0, e_1, ...], with None for a modality that has none."
    check_list(operation, "extra_negatives", extra, remedy=remedy)
    if len(extra) != count:
        needed = f"`{operation}` needs `extra_negatives` for {count} modalities"
        raise ValueError(three_beats(needed, f"{len(extra)} entries", remedy))
    given = [(m, x) for m, x in enumerate(extra) if x is not None]
    for m, x in given:
        name = f"extra_negatives[{m}]"
        check_floating(operation, name, x)
        if x.ndim not in (2, 3) or x.shape[-1] != dim or (x.ndim == 3 and x.shape[0] != size):
            needed = f"`{operation}` needs `{name}` of shape (E, {dim}) or ({size}, E, {dim})"
            raise ValueError(three_beats(needed, describe(x), remedy))
        if x.device != device:
            needed = f"`{operation}` needs `{name}` on {device}"
            raise ValueError(three_beats(needed, describe(x), "Move it with `.to(device)`."))
        if x.shape[:-1] != given[0][1].shape[:-1]:
            needed = f"`{operation}` needs as many `extra_negatives` of each modality, whose rows are samples"
            came = f"{tuple(given[0][1].shape)} and {tuple(x.shape)}"
            raise ValueError(three_beats(needed, came, remedy))
