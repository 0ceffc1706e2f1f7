"""Canonical operators: one spelling for what ATen spells in many ways.

In-place operators become functional, overloads are merged, views become "reshape" and
"permute", splits become one "slice" per part, and arguments are bound to the schema's
names (`self` is called `x`). Fused operators (softmax, norms, attention, losses) are kept
whole: the analysis knows more about them than about their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ranum.analysis.capture.overload import Overload, is_tensor

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
_IN_PARTS = _SPLITS | {"unbind", "unbind_copy"}
_FILLS = frozenset({"fill", "zero", "full", "full_like", "new_full"})
PLAIN = (
    _RESHAPES | _PERMUTES | _EXPANDS | _IDENTITIES | _CASTS
    | {"slice", "select", "narrow", "flip", "roll", "repeat", "_to_copy"}
)  # fmt: skip
"""Operators whose result has the elements of their operand and no others."""
LOOKUPS = frozenset({"index", "index_select", "gather", "embedding", "take"})
"""Operators that pick elements of `x` (or `weight`) by an index."""
_UNIFORM = frozenset({"rand", "rand_like", "uniform"})
_NORMAL = frozenset({"randn", "randn_like", "normal"})


class Canonical(NamedTuple):
    """One canonical operator: name, functional target, arguments with tensors still inside."""

    op: str
    target: Any
    arguments: dict[str, Any]


def canonicalize(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    """The canonical operator of a call.

    Args:
        known: The overload called.
        bound: Its arguments.
        output: The tensor it returned, or the first of them.
    """
    rewrite = _REWRITES.get(known.name)
    canonical = None if rewrite is None else rewrite(known, bound, output)
    if canonical is not None:
        return canonical
    kept = {name: bound[name] for name in known.kept}
    if _picks_by_mask(known.name, kept):
        kept["shape"] = tuple(output.shape)
    return Canonical(known.name, known.functional, kept)


def parts(
    known: Overload, bound: dict[str, Any], outputs: Sequence[Tensor]
) -> list[dict[str, Any]] | None:
    """For splits and unbind: the "slice" arguments of each part; None for other operators."""
    if known.name not in _IN_PARTS:
        return None
    x = bound["x"]
    dim = int(bound.get("dim") or 0) % max(x.dim(), 1)
    slices, start = [], 0
    for output in outputs:
        size = output.shape[dim] if known.name in _SPLITS else 1
        slices.append({"x": x, "dim": dim, "start": start, "end": start + size, "step": 1})
        start += size
    return slices


# --- one function per way of writing it ----------------------------------------------------


def _reshape(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical | None:
    x = bound["x"]
    if x.dtype != output.dtype or x.numel() != output.numel():  # other bits, or other elements
        return None
    arguments = {"x": bound["x"], "shape": tuple(output.shape)}
    return Canonical("reshape", known.function, arguments)


def _permute(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    dims = _permutation(known.name, bound, output.dim())
    return Canonical("permute", known.function, {"x": bound["x"], "dims": dims})


def _expand(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    arguments = {"x": bound["x"], "shape": tuple(output.shape)}
    return Canonical("expand", known.function, arguments)


def _identity(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    return Canonical("identity", known.function, {"x": bound["x"]})


def _cast(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    x = bound["x"]
    if x.dtype == output.dtype:
        return Canonical("identity", known.function, {"x": x})
    return Canonical("cast", known.function, {"x": x, "dtype": output.dtype})


def _copy(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    return Canonical("copy", None, {"x": bound["x"], "src": bound["src"]})


def _full(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    value = bound.get("fill_value", bound.get("value", 0))
    return Canonical("full", None, {"value": value, **_like(output)})


def _uniform(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    ends = {"low": bound.get("from", 0.0), "high": bound.get("to", 1.0)}
    return Canonical("uniform", None, {**ends, **_like(output)})


def _normal(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical | None:
    moments = {"mean": bound.get("mean", 0.0), "std": bound.get("std", 1.0)}
    if any(is_tensor(moment) for moment in moments.values()):
        return None
    return Canonical("normal", None, {**moments, **_like(output)})


def _bernoulli(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    return Canonical("bernoulli", None, _like(output))


def _opaque(known: Overload, bound: dict[str, Any], output: Tensor) -> Canonical:
    return Canonical(bound["name"], None, {"operands": bound["operands"]})


def _like(output: Tensor) -> dict[str, Any]:
    return {"shape": tuple(output.shape), "dtype": output.dtype}


_Rewrite = Callable[[Overload, dict[str, Any], Tensor], Canonical | None]
_REWRITES: dict[str, _Rewrite] = {
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(_PERMUTES, _permute),
    **dict.fromkeys(_EXPANDS, _expand),
    **dict.fromkeys(_IDENTITIES, _identity),
    **dict.fromkeys(_CASTS, _cast),
    **dict.fromkeys(_FILLS, _full),
    **dict.fromkeys(_UNIFORM, _uniform),
    **dict.fromkeys(_NORMAL, _normal),
    "copy": _copy,
    "bernoulli": _bernoulli,
    "ranum::opaque": _opaque,
}


def _picks_by_mask(op: str, arguments: dict[str, Any]) -> bool:
    """True for operators whose result is as large as a mask holds: the shape seen is kept."""
    if op == "masked_select":
        return True
    return op == "index" and any(
        is_tensor(item) and item.dtype in (torch.bool, torch.uint8) for item in arguments["indices"]
    )


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
