"""How the step's arithmetic is carried out, where that is not plain IEEE 754.

The bounds hold for arithmetic that rounds every operator once, to nearest, in the dtype it is
written in. Hardware and compilers may do otherwise; an `Execution` says how, and widens the
bounds of those operators that it concerns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ranum.analysis.graph import Graph, Node
from ranum.analysis.interval import Interval, round_nearest
from ranum.errors import ArgumentError

Precision = Literal["float32", "tf32", "bf16"]

ROUNDING: Mapping[Precision, float] = {"tf32": 1.25 * 2.0**-10, "bf16": 1.25 * 2.0**-7}
"""Relative error of an operand cut off after 10 or 7 bits, and a quarter more for the sums."""
_FLUSHED = frozenset({torch.float32, torch.float64, torch.bfloat16})
"""float16 keeps its small numbers: it is computed in float32."""

_MATMULS = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "linear", "matmul",
     "einsum", "_grouped_mm", "_scaled_dot_product_attention", "_addmm_activation", "cdist",
     "_cdist_forward", "_euclidean_dist"}
)  # fmt: skip
_ATTENTION = "_scaled_dot_product"
_CONVOLUTIONS = frozenset(
    {"convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution",
     "convolution_backward", "_convolution", "lstm", "gru", "rnn_tanh", "rnn_relu", "_cudnn_rnn",
     "mkldnn_rnn_layer", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"}
)  # fmt: skip
_SUMS = frozenset(
    {"sum", "nansum", "mean", "cumsum", "addcmul", "addcdiv", "lerp", "trace", "index_add",
     "scatter_add", "index_put", "dot", "mv", "mm", "bmm", "addmm", "baddbmm", "addmv", "addbmm",
     "linear", "convolution", "avg_pool1d", "avg_pool2d", "_adaptive_avg_pool2d",
     "nll_loss_forward"}
)  # fmt: skip
"""Operators whose result is a sum of products: each term may lose a subnormal."""
_SINGLE = frozenset(
    {"add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "exp2", "expm1", "log", "log2",
     "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "sigmoid", "tanh", "relu",
     "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "where", "identity", "reshape",
     "permute", "expand", "slice", "select", "cast", "copy", "full", "join", "index",
     "index_select", "gather", "embedding", "cat", "stack", "constant_pad_nd", "amax", "amin",
     "max", "min", "sign", "floor", "ceil", "round", "trunc", "sin", "cos", "tan", "erf", "relu6",
     "hardtanh", "leaky_relu", "threshold", "masked_fill", "flip", "roll", "repeat", "tril",
     "triu", "topk", "sort", "pow", "max_pool2d_with_indices", "uniform", "normal", "bernoulli"}
)  # fmt: skip
"""Operators that round once: a subnormal result, or operand, is all they can lose."""
_PRODUCTS = frozenset({"prod", "cumprod"})
_MOVES = frozenset({"identity", "reshape", "permute", "expand", "slice", "select"})
"""Operators whose results are elements of their operand, and that is flushed already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How arithmetic is carried out.

    Attributes:
        flush_to_zero: Subnormal operands and results may become 0, as after
            `torch.set_flush_denormal(True)` or in code compiled with fast mathematics.
        fma: A product that is added to may not be rounded before, as in code that a compiler
            fused (`torch.compile`, XLA); eager torch rounds it.
        matmul: Precision in which float32 matrix products take their operands.
        convolution: The same of convolutions and fused recurrent layers.
    """

    flush_to_zero: bool = False
    fma: bool = False
    matmul: Precision = "float32"
    convolution: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("matmul", "convolution"):
            value = getattr(self, name)
            if value not in get_args(Precision):
                raise ArgumentError(
                    f"{name} must be one of {', '.join(get_args(Precision))}; got {value!r}."
                )

    @staticmethod
    def of_torch(device: str = "cpu") -> Execution:
        """As torch is set up now, in this thread, for a type of device.

        Whether subnormals are flushed cannot be asked of torch; it is tried out.
        """
        flushes = device == "cpu" and _is_flushing()
        backends: Any = torch.backends
        if device == "cuda":
            matmul = _precision(backends.cuda.matmul)
            convolution = _precision(getattr(backends.cudnn, "conv", None), usual="tf32")
        else:
            matmul = _precision(getattr(backends.mkldnn, "matmul", None))
            convolution = _precision(getattr(backends.mkldnn, "conv", None))
        return Execution(flush_to_zero=flushes, matmul=matmul, convolution=convolution)

    @property
    def is_plain(self) -> bool:
        """True if nothing is to be widened."""
        return self == _PLAIN

    def __str__(self) -> str:
        parts = [
            "subnormal numbers may become 0" if self.flush_to_zero else "",
            "products may be added without rounding" if self.fma else "",
            f"matrix products take {self.matmul} operands" if self.matmul != "float32" else "",
            f"convolutions take {self.convolution} operands"
            if self.convolution != "float32"
            else "",
        ]
        return ", ".join(part for part in parts if part)

    # --- what a walk asks -------------------------------------------------------------------

    def operands(self, node: Node, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of an operator as the hardware sees them."""
        error = self._rounding(node.op)
        if not error and not self.flush_to_zero:
            return arguments
        if not error and node.op != "pow" and all(map(_is_flushed, arguments.values())):
            return arguments
        limit = 1.0
        if node.op == "pow" and self.flush_to_zero and _is_negative(arguments.get("exponent")):
            limit = 0.5  # x^-2 is 1 / (x x), and x x is flushed

        def seen(argument: Any) -> Any:
            if isinstance(argument, (list, tuple)):
                items = [seen(item) for item in argument]
                same = all(new is old for new, old in zip(items, argument, strict=True))
                return argument if same else type(argument)(items)
            if not isinstance(argument, Interval):
                return argument
            if error and argument.dtype == torch.float32:
                argument = _relative(argument, error)
            return _flushed(argument, limit) if self.flush_to_zero else argument

        found = arguments
        for name, argument in arguments.items():
            item = seen(argument) if isinstance(argument, (Interval, list, tuple)) else argument
            if item is not argument:
                found = dict(arguments) if found is arguments else found
                found[name] = item
        return found

    def outputs(
        self, node: Node, arguments: Mapping[str, Any], outputs: list[Interval]
    ) -> list[Interval]:
        """The results of an operator as the hardware may give them."""
        if self.fma and node.op in ("mul", "square", "pow"):
            outputs = [_unrounded(output) for output in outputs]
        if self.flush_to_zero:
            return [_lossy(node.op, arguments, output) for output in outputs]
        return outputs

    def keeps_facts(self, graph: Graph, node: Node) -> bool:
        """False for a sum that may take a product without its rounding."""
        if not self.fma or node.op not in ("add", "sub", "rsub"):
            return True
        makers = (graph.producer(number) for number in node.operands)
        return not any(maker is not None and maker.op in ("mul", "square") for maker in makers)

    def _rounding(self, op: str) -> float:
        if self.matmul == self.convolution == "float32":
            return 0.0
        op = op.removesuffix("_backward")
        if op in _CONVOLUTIONS:
            return ROUNDING.get(self.convolution, 0.0)
        if op in _MATMULS or op.startswith(_ATTENTION):
            return ROUNDING.get(self.matmul, 0.0)
        return 0.0


_PLAIN = Execution()


def _is_flushing() -> bool:
    return torch.full((), torch.finfo(torch.float32).tiny).mul(0.5).eq(0.0).item() is True


@contextmanager
def unflushed() -> Iterator[None]:
    """Arithmetic that keeps subnormal numbers, for bounds of a program that may lose them."""
    if not _is_flushing():
        yield
        return
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(True)


def _precision(setting: Any, usual: Precision = "float32") -> Precision:
    """What a backend's switch says; `usual` where it is not set."""
    chosen = getattr(setting, "fp32_precision", "none")
    if chosen == "none":
        chosen = getattr(torch.backends, "fp32_precision", "none")
    known: Mapping[str, Precision] = {"tf32": "tf32", "bf16": "bf16", "none": usual}
    return known.get(chosen, "float32")


def _is_negative(exponent: Any) -> bool:
    low = exponent.low if isinstance(exponent, Interval) else exponent
    return isinstance(low, (int, float)) and low < 0


# --- widening ------------------------------------------------------------------------------


def _relative(x: Interval, error: float) -> Interval:
    """Outward by a share of the magnitude, and by what is too small for the share."""
    floor = torch.finfo(x.dtype).tiny
    return _moved(
        x, x.lower - (x.lower.abs() * error + floor), x.upper + (x.upper.abs() * error + floor)
    )


def _unrounded(x: Interval) -> Interval:
    """Outward by one unit in the last place; an end at 0 stays, since signs are exact."""
    if not x.dtype.is_floating_point:
        return x
    eps = torch.finfo(x.dtype).eps
    low = torch.where(x.lower == 0, x.lower, x.lower - x.lower.abs() * eps)
    high = torch.where(x.upper == 0, x.upper, x.upper + x.upper.abs() * eps)
    return _moved(x, low, high)


def _is_flushed(argument: Any) -> bool:
    """True for what holds no interval, or one that has no subnormal end."""
    if isinstance(argument, Interval):
        return argument.dtype not in _FLUSHED or argument.has_normal_ends
    return not isinstance(argument, (list, tuple)) or all(map(_is_flushed, argument))


def _flushed(x: Interval, power: float = 1.0) -> Interval:
    """With 0 where an element may be subnormal; below tiny^power for powers."""
    if x.dtype not in _FLUSHED or x.is_empty_tensor:
        return x
    if power == 1.0 and x.has_normal_ends:
        return x
    tiny = torch.finfo(x.dtype).tiny ** power
    if x.is_uniform:
        least, most = x.low, x.high
        lost_least, lost_most = 0 < least < tiny, -tiny < most < 0
        if not (lost_least or lost_most):
            return x
        least, most = 0.0 if lost_least else least, 0.0 if lost_most else most
        return Interval.uniform(least, most, x.shape, x.dtype, x.may_nan)
    low, high = x.lower, x.upper
    lost_low, lost_high = (low > 0) & (low < tiny), (high < 0) & (high > -tiny)
    if not bool(lost_low.any()) and not bool(lost_high.any()):
        return x
    return _moved(x, low.masked_fill(lost_low, 0.0), high.masked_fill(lost_high, 0.0))


def _lossy(op: str, arguments: Mapping[str, Any], x: Interval) -> Interval:
    """A result some of whose subnormal parts may have become 0."""
    if x.dtype not in _FLUSHED or x.is_empty_tensor:
        return x
    if op in _PRODUCTS:
        return x.hull(Interval.full(0, 0, x.shape, x.dtype))
    if op not in _SINGLE:
        own = _intervals(arguments)
        terms = max((math.prod(each.shape) for each in own), default=1)
        slack = max(terms, 1) * torch.finfo(x.dtype).tiny
        if op not in _SUMS:
            slack = math.sqrt(slack)  # a root may be taken of what is lost, or a weight multiply it
        # Less is lost of a term than the term: only where signs mix can that change the sign.
        keeps_low = op not in _SUMS or all(each.low >= 0 for each in own)
        keeps_high = op not in _SUMS or all(each.high <= 0 for each in own)
        x = _slackened(x, slack, keeps_low, keeps_high)
    if op in _MOVES:
        x.has_normal_ends = True
    return _flushed(x)


def _slackened(x: Interval, slack: float, keeps_low: bool, keeps_high: bool) -> Interval:
    """Outward by an absolute error, which leaves signs alone where told to."""
    if x.is_uniform:
        least, most = x.low - slack, x.high + slack
        if keeps_low and x.low >= 0:
            least = max(least, 0.0)
        if keeps_high and x.high <= 0:
            most = min(most, 0.0)
        least, most = round_nearest(least, x.dtype), round_nearest(most, x.dtype)
        return Interval.uniform(least, most, x.shape, x.dtype, x.may_nan)
    low, high = x.lower - slack, x.upper + slack
    if keeps_low:
        low = torch.where(x.lower >= 0, low.clamp(min=0), low)
    if keeps_high:
        high = torch.where(x.upper <= 0, high.clamp(max=0), high)
    return _moved(x, low, high)


def _intervals(arguments: Mapping[str, Any]) -> list[Interval]:
    found = []
    for argument in arguments.values():
        items = argument if isinstance(argument, (list, tuple)) else (argument,)
        found += [
            item for item in items if isinstance(item, Interval) and item.dtype.is_floating_point
        ]
    return found


def _moved(x: Interval, low: Tensor, high: Tensor) -> Interval:
    """New bounds; infinite ends stay."""
    return Interval.between(
        torch.where(x.lower.isinf(), x.lower, low),
        torch.where(x.upper.isinf(), x.upper, high),
        x.shape,
        x.dtype,
        x.may_nan,
    )
