"""What every transfer function has to pass: torch's own result lies in its interval.

A case table is a list `CASES` of `Case` in a file beside this one; the contract test finds
it by itself. A case names the canonical operator and its arguments, with an `Arg` wherever
the operator takes a tensor:

    CASES = [
        Case("add", {"x": Arg((N, 3)), "other": Arg((3,)), "alpha": 2}),
        Case("embedding", {"weight": Arg((5, 4)), "indices": Arg((N, 2), low=0, high=4,
             dtype=torch.long, exact=True), ...}),
        Case("uniform", {"low": 0.0, "high": 1.0, "shape": (N, 3), "dtype": DTYPE},
             oracle=draw_uniform),
    ]

The harness makes a box for every `Arg` (a point, or wide, merged, one-sided infinite, at
the dtype's limits, with NaN), calls the rule, draws points inside the box, calls torch and
looks whether every result is contained.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.graph import Value
from ranum.analysis.interval import Interval
from ranum.analysis.propagate import twin_intervals
from ranum.analysis.transfer.registry import Twin

N = "N"
"""Stands for a size that is 2 in most tests and 0 in the test of empty tensors."""

DTYPE = "DTYPE"
"""Stands for the floating dtype under test."""

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DRAWS = 3


@dataclass(frozen=True)
class Arg:
    """A tensor argument.

    Attributes:
        shape: Sizes; `N` varies.
        low, high: Where ordinary values come from, both included for integers.
        dtype: None for the floating dtype under test, or a fixed one.
        exact: True if the rule may rely on knowing the data (indices, masks of scatter).
        within: No value ever leaves this range: what the operator is specified for
            (a variance is not negative, say). Wild boxes go up to it.
        nan: False if NaN is not a lawful element.
    """

    shape: tuple[Any, ...]
    _: KW_ONLY
    low: float = -4.0
    high: float = 4.0
    dtype: torch.dtype | None = None
    exact: bool = False
    within: tuple[float, float] = (-math.inf, math.inf)
    nan: bool = True


@dataclass(frozen=True)
class Case:
    """One way to call an operator.

    Attributes:
        op: Canonical name.
        arguments: By canonical name; `Arg` for tensors, also inside lists.
        oracle: Called with the arguments as keywords; torch.ops.aten.<op> by default.
        constrain: Rewrites drawn arguments so that they fit together (an `output` that is
            the softmax of something). Boxes grow to hold the rewritten values.
        dtypes: Floating dtypes to try; those torch has no CPU kernel for are left out.
        wild: False to leave out infinities, NaN and values near the dtype's limits.
        ignore: Outputs that are not compared (an RNG state).
        unbounded: True if the rule may say nothing, by giving None for an output or at all.
    """

    op: str
    arguments: Mapping[str, Any]
    oracle: Callable[..., Any] | None = None
    constrain: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    dtypes: tuple[torch.dtype, ...] = FLOATS
    wild: bool = True
    ignore: tuple[int, ...] = ()
    unbounded: bool = False

    @property
    def args(self) -> list[Arg]:
        """All tensor arguments, in order."""
        return list(_leaves(list(self.arguments.values())))

    @property
    def sizes_vary(self) -> bool:
        """True if a size is `N`."""
        return _mentions(list(self.arguments.values()), N)

    @cached_property
    def floating(self) -> tuple[torch.dtype, ...]:
        """Dtypes to try: those with a CPU kernel; one if no argument depends on it."""
        depends = any(arg.dtype is None for arg in self.args)
        depends |= _mentions(list(self.arguments.values()), DTYPE)
        return (
            tuple(dtype for dtype in self.dtypes if _supports(self, dtype))
            if depends
            else self.dtypes[:1]
        )

    def call(self, arguments: Mapping[str, Any]) -> Any:
        """Torch's own result."""
        if self.oracle is not None:
            return self.oracle(**arguments)
        packet = getattr(torch.ops.aten, self.op)
        return packet(**{"self" if key == "x" else key: arguments[key] for key in arguments})


@dataclass(frozen=True)
class Sketch:
    """How to draw a box for one argument.

    Attributes:
        seed: Of all random numbers.
        radius: Of the box around each centre; 0 for exact data.
        merged: Dimensions that share a bound, counted modulo the rank.
        infinite: Ends that are infinite for some blocks.
        edges: True to put some bounds on numbers where operators change: 0, 1, limits.
        huge: True to scale centres up to the dtype's largest number.
        nan: True to allow NaN, and to draw some.
    """

    seed: int = 0
    radius: float = 0.0
    merged: tuple[int, ...] = ()
    infinite: tuple[bool, bool] = (False, False)
    edges: bool = False
    huge: bool = False
    nan: bool = False


# --- boxes and points ----------------------------------------------------------------------


def box(arg: Arg, sketch: Sketch, dtype: torch.dtype, size: int = 2) -> Interval:
    """An interval for an argument, as the sketch says."""
    dtype = arg.dtype or dtype
    shape = tuple(size if item == N else item for item in arg.shape)
    generator = torch.Generator().manual_seed(sketch.seed)
    exact = arg.exact or (sketch.radius == 0 and not sketch.merged)
    merged = set() if exact else {dim % max(len(shape), 1) for dim in sketch.merged}
    blocks = tuple(min(n, 1) if dim in merged else n for dim, n in enumerate(shape))
    limits = _limits(arg, dtype)
    centre = _centres(arg, sketch, dtype, blocks, generator)
    if exact:
        return Interval.point(_exact_data(arg, sketch, dtype, centre, generator))
    radius = sketch.radius * (arg.high - arg.low)
    spread = torch.rand((2, *blocks), generator=generator, dtype=torch.float64) * radius
    ends = torch.stack([centre - spread[0], centre + spread[1]])
    if sketch.edges:
        ends = _sometimes(ends, _specials(arg, dtype), 0.4, generator)
    ends = ends.sort(dim=0).values
    lower, upper = ends[0], ends[1]
    if dtype.is_floating_point:
        some = torch.rand((2, *blocks), generator=generator) < 0.5
        lower = lower.masked_fill(some[0] & sketch.infinite[0], -math.inf)
        upper = upper.masked_fill(some[1] & sketch.infinite[1], math.inf)
    else:
        lower, upper = lower.floor(), upper.ceil()
    lower, upper = lower.clamp(*limits).to(dtype), upper.clamp(*limits).to(dtype)
    may_nan = sketch.nan and arg.nan and dtype.is_floating_point
    return Interval.between(lower, upper, shape, dtype, may_nan)


def draw(interval: Interval, seed: int, count: int) -> list[Tensor]:
    """Tensors inside an interval: corners, inner points, special values, NaN if possible."""
    if interval.is_point:
        return [interval.lower.clone() for _ in range(count)]
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = (count, *interval.shape), interval.dtype
    lower, upper = (bound.double().expand(shape) for bound in interval.expanded())
    ceiling = torch.finfo(dtype).max if dtype.is_floating_point else 2.0**62
    low, high = lower.clamp(-ceiling, ceiling), upper.clamp(-ceiling, ceiling)
    position = torch.rand(shape, generator=generator, dtype=torch.float64)
    near = torch.randn(shape, generator=generator, dtype=torch.float64)
    choices = torch.stack(
        [
            lower,
            upper,
            low * (1 - position) + high * position,
            near * 10.0 ** torch.randint(-8, 3, shape, generator=generator),
            _sometimes(near, _specials(None, dtype), 1.0, generator),
        ]
    )
    pick = torch.randint(0, len(choices), (1, *shape), generator=generator)
    data = choices.gather(0, pick)[0].clamp(lower, upper).to(dtype)
    if dtype.is_floating_point:
        data = torch.minimum(torch.maximum(data, interval.lower), interval.upper)
        if interval.may_nan:
            data = data.masked_fill(torch.rand(shape, generator=generator) < 0.3, math.nan)
    return list(data)


def _limits(arg: Arg, dtype: torch.dtype) -> tuple[float, float]:
    if dtype == torch.bool:
        return (0.0, 1.0)
    if not dtype.is_floating_point:
        return (max(arg.low, arg.within[0]), min(arg.high, arg.within[1]))
    return arg.within


def _centres(
    arg: Arg, sketch: Sketch, dtype: torch.dtype, blocks: Sequence[int], generator: torch.Generator
) -> Tensor:
    position = torch.rand(blocks, generator=generator, dtype=torch.float64)
    if dtype == torch.bool:
        return (position < 0.5).double()
    if not dtype.is_floating_point:
        return (arg.low + position * (arg.high - arg.low + 1)).floor()
    centre = arg.low + position * (arg.high - arg.low)
    if sketch.huge:
        centre = centre * (torch.finfo(dtype).max / max(abs(arg.low), abs(arg.high), 1e-3))
    return centre.clamp(*_limits(arg, dtype))


def _exact_data(
    arg: Arg, sketch: Sketch, dtype: torch.dtype, centre: Tensor, generator: torch.Generator
) -> Tensor:
    data = centre
    if dtype.is_floating_point:
        if sketch.edges:
            data = _sometimes(data, _specials(arg, dtype), 0.4, generator)
        for infinite, end in zip(sketch.infinite, (-math.inf, math.inf), strict=True):
            if infinite:
                data = _sometimes(data, [end], 0.3, generator)
        data = data.clamp(*_limits(arg, dtype))
        if sketch.nan and arg.nan:
            data = _sometimes(data, [math.nan], 0.2, generator)
    return data.to(dtype)


def _specials(arg: Arg | None, dtype: torch.dtype) -> list[float]:
    values = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0]
    if arg is not None:
        values += [arg.low, arg.high]
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        values += [info.max, info.min, info.tiny, info.tiny * info.eps]
        values += [-info.tiny, math.inf, -math.inf] if arg is None else []
    return values


def _sometimes(
    data: Tensor, values: Sequence[float], chance: float, generator: torch.Generator
) -> Tensor:
    pick = torch.randint(0, len(values), data.shape, generator=generator)
    chosen = torch.tensor(values, dtype=data.dtype)[pick]
    return torch.where(torch.rand(data.shape, generator=generator) < chance, chosen, data)


# --- checking ------------------------------------------------------------------------------


def check(
    case: Case,
    function: Callable[..., Any],
    sketches: Sequence[Sketch],
    dtype: torch.dtype = torch.float32,
    size: int = 2,
) -> None:
    """Raises AssertionError unless torch's results lie in the interval of `function`.

    Args:
        case: The call.
        function: The transfer function under test.
        sketches: One per tensor argument; the last is used for those left over.
        dtype: The floating dtype under test.
        size: What `N` stands for.
    """
    padded = [*sketches, *[sketches[-1]] * len(case.args)]
    boxes = [box(arg, sketch, dtype, size) for arg, sketch in zip(case.args, padded, strict=False)]
    count = 1 if all(item.is_point for item in boxes) else DRAWS
    draws = zip(*(draw(item, seed, count) for seed, item in enumerate(boxes)), strict=True)
    concrete = [_filled(case.arguments, tensors, dtype, size) for tensors in draws]
    if not boxes:
        concrete = [_filled(case.arguments, (), dtype, size)] * DRAWS
    symbolic = _filled(case.arguments, boxes, dtype, size)
    if case.constrain is not None:
        concrete = [case.constrain(arguments) for arguments in concrete]
        symbolic = _grown(symbolic, concrete)
    bounds = function(**symbolic)
    if bounds is None and case.unbounded:
        return
    for arguments in concrete:
        _compare(case, _tuple(bounds), _tuple(case.call(arguments)), arguments, symbolic)


def check_twin(
    case: Case,
    twin: Twin,
    function: Callable[..., Any],
    sketches: Sequence[Sketch],
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Raises AssertionError unless torch's results lie in the bounds of a twin.

    All operands are merged, but for one of those that the twin may see as they are. Where the twin
    answers, its bounds may not be much wider than those of `function`, the transfer function.

    Returns:
        True if the twin answered.
    """
    padded = [*sketches, *[sketches[-1]] * len(case.args)]
    boxes = [box(arg, sketch, dtype, 2) for arg, sketch in zip(case.args, padded, strict=False)]
    names = [name for name, item in case.arguments.items() if isinstance(item, Arg)]
    if len(names) == len(boxes):
        kept = twin.aside | {*[name for name in names if name in twin.exact][-1:]}
        boxes = [
            item if name in kept and item.is_point else item.merged()
            for name, item in zip(names, boxes, strict=True)
        ]
    else:
        boxes = [item.merged() for item in boxes]
    draws = zip(*(draw(item, seed, DRAWS) for seed, item in enumerate(boxes)), strict=True)
    concrete = [_filled(case.arguments, tensors, dtype, 2) for tensors in draws]
    symbolic = _filled(case.arguments, boxes, dtype, 2)
    if case.constrain is not None:
        concrete = [case.constrain(arguments) for arguments in concrete]
        symbolic = {
            name: item.merged() if isinstance(item, Interval) and name not in twin.aside else item
            for name, item in _grown(symbolic, concrete).items()
        }
    results = [_tuple(case.call(arguments)) for arguments in concrete]
    values = tuple(
        Value(index=number, shape=tuple(item.shape), dtype=item.dtype)
        if isinstance(item, Tensor)
        else None
        for number, item in enumerate(results[0])
    )
    bounds = twin_intervals(twin, symbolic, values, whole=False)
    if bounds is None:
        return False
    for arguments, result in zip(concrete, results, strict=True):
        _compare(case, tuple(bounds), result, arguments, symbolic)
    for bound, tight, value in zip(bounds, _tuple(function(**symbolic)), values, strict=False):
        if value is not None and isinstance(tight, Interval) and tight.is_finite:
            _compare_width(case, bound, tight, symbolic)
    return True


def _compare_width(
    case: Case, bound: Interval, tight: Interval, symbolic: Mapping[str, Any]
) -> None:
    """The twin's bounds are those of the transfer function up to rounding."""
    if not bound.dtype.is_floating_point:
        return
    scale = max(abs(tight.low), abs(tight.high), tight.high - tight.low)
    slack = 64 * torch.finfo(bound.dtype).eps * scale + 64 * torch.finfo(bound.dtype).tiny
    if bound.low < tight.low - slack or bound.high > tight.high + slack:
        raise AssertionError(
            f"{case.op}: the twin gives {bound.low, bound.high}, the transfer function "
            f"{tight.low, tight.high}\n  boxes {_shown(symbolic)}"
        )


def _supports(case: Case, dtype: torch.dtype) -> bool:
    """True if torch has a CPU kernel for the case in a dtype."""
    boxes = [box(arg, Sketch(seed=1), dtype) for arg in case.args]
    arguments = _filled(case.arguments, [draw(item, 0, 1)[0] for item in boxes], dtype, 2)
    if case.constrain is not None:
        arguments = case.constrain(arguments)
    try:
        case.call(arguments)
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented for" in str(error) or "not supported" in str(error):
            return False
        raise
    return True


def tables() -> dict[str, list[Case]]:
    """The case tables beside this file and in folders below, by dotted name."""
    here = Path(__file__)
    paths = (path.relative_to(here.parent) for path in here.parent.rglob("[!_]*.py"))
    names = sorted(".".join(path.with_suffix("").parts) for path in paths)
    names.remove(here.stem)
    return {name: importlib.import_module(f"transfer_cases.{name}").CASES for name in names}


def _compare(
    case: Case,
    bounds: tuple[Any, ...],
    results: tuple[Any, ...],
    arguments: Mapping[str, Any],
    symbolic: Mapping[str, Any],
) -> None:
    if len(bounds) != len(results):
        raise AssertionError(f"{case.op}: {len(bounds)} intervals, {len(results)} results")
    for index, (bound, result) in enumerate(zip(bounds, results, strict=True)):
        if index in case.ignore or not isinstance(result, Tensor):
            continue
        if bound is None and case.unbounded:
            continue
        if fault := _fault(bound, result):
            raise AssertionError(
                f"{case.op}, output {index}: {fault}\n  boxes {_shown(symbolic)}\n"
                f"  drawn {dict(arguments)}"
            )


def _fault(bound: Any, result: Tensor) -> str:
    """What is wrong with an interval for a result, or ""."""
    if not isinstance(bound, Interval):
        return f"the rule gave {bound!r} for a tensor"
    if bound.shape != tuple(result.shape):
        return f"shape {bound.shape} for {tuple(result.shape)}"
    if bound.dtype != result.dtype or bound.lower.dtype != bound.dtype != bound.upper.dtype:
        return f"{bound.dtype} with bounds in {bound.lower.dtype} for {result.dtype}"
    if bound.lower.dim() != result.dim() or bound.upper.shape != bound.lower.shape:
        return f"bounds of shape {tuple(bound.lower.shape)}, {tuple(bound.upper.shape)}"
    if _is_nan(bound.lower) or _is_nan(bound.upper):
        return "NaN in a bound"
    if not bound.contains(result):
        low, high = bound.expanded()
        wrong = ~((result >= low) & (result <= high))
        wrong &= ~(result.isnan() & bound.may_nan)
        rows = zip(result[wrong].tolist(), low[wrong].tolist(), high[wrong].tolist(), strict=True)
        values = "; ".join(
            f"{value!r} outside [{least!r}, {most!r}]" for value, least, most in rows
        )
        return f"torch gave {values}; may_nan={bound.may_nan}"
    return ""


def _is_nan(bound: Tensor) -> bool:
    return bound.dtype.is_floating_point and bool(bound.isnan().any())


def _grown(symbolic: dict[str, Any], concrete: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    grown = dict(symbolic)
    for key, value in symbolic.items():
        if isinstance(value, Interval):
            points = [Interval.point(arguments[key]) for arguments in concrete]
            grown[key] = reduce(Interval.hull, points, value)
    return grown


def _shown(symbolic: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={list(value.shape)} {value.lower.tolist()}..{value.upper.tolist()}"
        if isinstance(value, Interval)
        else f"{key}={value}"
        for key, value in symbolic.items()
    )


def _filled(
    arguments: Mapping[str, Any], leaves: Sequence[Any], dtype: torch.dtype, size: int
) -> dict[str, Any]:
    remaining = iter(leaves)

    def fill(item: Any) -> Any:
        if isinstance(item, Arg):
            return next(remaining)
        if isinstance(item, (list, tuple)):
            return type(item)(fill(inner) for inner in item)
        if isinstance(item, str):
            return {N: size, DTYPE: dtype}.get(item, item)
        return item

    return {key: fill(value) for key, value in arguments.items()}


def _leaves(item: Any) -> Iterator[Arg]:
    if isinstance(item, Arg):
        yield item
    elif isinstance(item, (list, tuple)):
        for inner in item:
            yield from _leaves(inner)


def _mentions(item: Any, sentinel: str) -> bool:
    if isinstance(item, Arg):
        return _mentions(item.shape, sentinel)
    if isinstance(item, (list, tuple)):
        return any(_mentions(inner, sentinel) for inner in item)
    return isinstance(item, str) and item == sentinel


def _tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)
