"""Canonical operators: one spelling for what ATen spells in many ways.

In-place operators become functional, overloads are merged, views become "reshape" and
"permute", splits become one "slice" per part, and arguments are bound to the schema's
names (`self` is called `x`). Fused operators (softmax, norms, attention, losses) are kept
whole: the analysis knows more about them than about their parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

_DROPPED = frozenset(
    {"layout", "device", "pin_memory", "memory_format", "non_blocking", "generator",
     "implicit", "names"}
)  # fmt: skip
_RESHAPES = frozenset(
    {"view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy",
     "unsqueeze", "squeeze", "flatten", "unflatten", "view_as", "resize", "squeeze_copy",
     "unsqueeze_copy"}
)  # fmt: skip
_PERMUTES = frozenset(
    {
        "t",
        "transpose",
        "permute",
        "movedim",
        "swapaxes",
        "swapdims",
        "numpy_T",
        "mT",
        "adjoint",
        "t_copy",
        "transpose_copy",
        "permute_copy",
    }
)
_EXPANDS = frozenset({"expand", "expand_as", "broadcast_to", "expand_copy"})
_IDENTITIES = frozenset(
    {"clone", "detach", "alias", "contiguous", "lift", "lift_fresh", "lift_fresh_copy",
     "positive", "resolve_conj", "resolve_neg", "alias_copy", "detach_copy"}
)  # fmt: skip
_CASTS = frozenset({"_to_copy", "to", "type_as", "_autocast_to_reduced_precision"})
_SPLITS = frozenset(
    {"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk",
     "unsafe_chunk", "tensor_split", "split_copy", "split_with_sizes_copy"}
)  # fmt: skip
_FILLS = frozenset({"fill", "zero", "full", "full_like", "new_full"})
_SHAPE_ONLY = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided",
     "zeros", "zeros_like", "ones", "ones_like", "new_zeros", "new_ones", "_efficientzerotensor",
     "arange", "scalar_tensor", "eye", "linspace", "tril_indices", "triu_indices"}
)  # fmt: skip
PLAIN = (
    _RESHAPES | _PERMUTES | _EXPANDS | _IDENTITIES | _CASTS
    | {"slice", "select", "narrow", "flip", "roll", "repeat", "_to_copy"}
)  # fmt: skip
"""Operators whose result has the elements of their operand and no others."""
LOOKUPS = frozenset({"index", "index_select", "gather", "embedding", "take"})
"""Operators that pick elements of `x` (or `weight`) by an index."""
_UNIFORM = frozenset({"rand", "rand_like", "uniform"})
_NORMAL = frozenset({"randn", "randn_like", "normal"})


@dataclass(frozen=True, slots=True)
class Canonical:
    """One canonical operator: name, functional target, arguments with tensors still inside."""

    op: str
    target: Any
    arguments: dict[str, Any]


@cache
def name_of(func: Any) -> str:
    """`aten.add_.Tensor` -> "add"; operators of other libraries keep their namespace."""
    namespace, _, name = func._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace == "aten" else f"{namespace}::{name}"


@cache
def is_random(func: Any) -> bool:
    """True for operators that draw random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


def reads_values(op: str) -> bool:
    """False for factories: their result depends on shapes only, never on an operand's data."""
    return op not in _SHAPE_ONLY


@cache
def functional(func: Any) -> Any:
    """The overload that computes the same without writing to its arguments, or None."""
    if not func._schema.is_mutable:
        return func
    namespace, _, name = func._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    overload = func._schema.overload_name or "default"
    if packet is None or overload not in packet.overloads():
        return None
    return getattr(packet, overload)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the schema of an operator says, worked out once.

    Attributes:
        defaults: Default of every argument, by canonical name, in order.
        positional: Canonical names of the arguments that may come without their name.
        names: Canonical name by schema name.
        written: Canonical names of the arguments that are written to.
        outs: Schema names of `out` arguments.
    """

    defaults: dict[str, Any]
    positional: tuple[str, ...]
    names: dict[str, str]
    written: tuple[str, ...]
    outs: frozenset[str]


@cache
def signature(func: Any) -> Signature:
    """The signature of an overload."""
    arguments = func._schema.arguments
    names = {argument.name: _argument_name(argument.name) for argument in arguments}
    return Signature(
        defaults={
            names[argument.name]: argument.default_value if argument.has_default_value() else None
            for argument in arguments
        },
        positional=tuple(names[each.name] for each in arguments if not each.kwarg_only),
        names=names,
        written=tuple(
            names[argument.name]
            for argument in arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
        outs=frozenset(argument.name for argument in arguments if argument.is_out),
    )


def bind(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by schema name, defaults filled in."""
    known = signature(func)
    bound = known.defaults.copy()
    bound.update(zip(known.positional, args, strict=False))
    for name, value in kwargs.items():
        bound[known.names[name]] = value
    return bound


def _argument_name(name: str) -> str:
    return "x" if name in ("self", "_self") else name


def canonicalize(func: Any, bound: dict[str, Any], output: Tensor) -> Canonical:
    """The canonical operator of a call with one tensor output of interest."""
    op = name_of(func)
    x = bound.get("x")
    shape = tuple(output.shape)
    if op in _RESHAPES:
        return Canonical("reshape", func, {"x": x, "shape": shape})
    if op in _PERMUTES and isinstance(x, Tensor):
        return Canonical("permute", func, {"x": x, "dims": _permutation(op, bound, x.dim())})
    if op in _EXPANDS:
        return Canonical("expand", func, {"x": x, "shape": shape})
    if op in _IDENTITIES:
        return Canonical("identity", func, {"x": x})
    if op in _CASTS and isinstance(x, Tensor):
        if x.dtype == output.dtype:
            return Canonical("identity", func, {"x": x})
        return Canonical("cast", func, {"x": x, "dtype": output.dtype})
    if op == "ranum::opaque":
        return Canonical(bound["name"], None, {"operands": bound["operands"]})
    if op == "copy":
        return Canonical("copy", None, {"x": x, "src": bound["src"]})
    if op in _FILLS:
        value = bound.get("fill_value", bound.get("value", 0))
        return Canonical("full", None, {"value": value, "shape": shape, "dtype": output.dtype})
    if op in _UNIFORM:
        arguments = {"low": bound.get("from", 0.0), "high": bound.get("to", 1.0)}
        return Canonical("uniform", None, arguments | {"shape": shape, "dtype": output.dtype})
    if op in _NORMAL and not any(isinstance(bound.get(key), Tensor) for key in ("mean", "std")):
        arguments = {"mean": bound.get("mean", 0.0), "std": bound.get("std", 1.0)}
        return Canonical("normal", None, arguments | {"shape": shape, "dtype": output.dtype})
    if op == "bernoulli":
        return Canonical("bernoulli", None, {"shape": shape, "dtype": output.dtype})
    dropped = _DROPPED | signature(func).outs
    kept = {name: value for name, value in bound.items() if name not in dropped}
    if _picks_by_mask(op, kept):
        kept["shape"] = shape
    return Canonical(op, functional(func), kept)


def _picks_by_mask(op: str, arguments: dict[str, Any]) -> bool:
    """True for operators whose result is as large as a mask holds: the shape seen is kept."""
    if op == "masked_select":
        return True
    return op == "index" and any(
        isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8)
        for item in arguments["indices"]
    )


def parts(
    func: Any, bound: dict[str, Any], outputs: Sequence[Tensor]
) -> list[dict[str, Any]] | None:
    """For splits and unbind: the "slice" arguments of each part; None for other operators."""
    op = name_of(func)
    x = bound.get("x")
    if not isinstance(x, Tensor) or op not in _SPLITS | {"unbind", "unbind_copy"}:
        return None
    dim = int(bound.get("dim") or 0) % max(x.dim(), 1)
    slices, start = [], 0
    for output in outputs:
        size = output.shape[dim] if op in _SPLITS else 1
        slices.append({"x": x, "dim": dim, "start": start, "end": start + size, "step": 1})
        start += size
    return slices


def _permutation(op: str, bound: dict[str, Any], rank: int) -> tuple[int, ...]:
    if op in ("permute", "permute_copy"):
        return tuple(dim % rank for dim in bound["dims"])
    order = list(range(rank))
    if rank == 0:
        return ()
    if op in ("transpose", "transpose_copy", "swapaxes", "swapdims"):
        first, second = (int(bound[key]) % rank for key in list(bound)[1:3])
        order[first], order[second] = order[second], order[first]
    elif op == "numpy_T":
        order.reverse()
    elif rank >= 2:
        order[-1], order[-2] = order[-2], order[-1]
    return tuple(order)
