"""What the modules of a model put out in a sampled step, seen through forward hooks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ranum.errors import RanumWarning
from ranum.guards.types import ActivationReading, InputReading, NormalizationReading

FIRST_SAMPLES = 5
"""Samples of a run's beginning in which its initialisation is looked at."""
_LEAST_MOMENTUM = 1e-3
"""Below it, a running statistic moves too little to tell what the batch was."""
_NEAR = 0.01
"""Of an activation's range: how near to its end an element is saturated."""

_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_BOUNDED = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
    nn.Hardtanh: (-1.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
}
_NORMALIZATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_BATCH_NORMS = nn.modules.batchnorm._BatchNorm
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.Embedding)


@dataclass(slots=True)
class Statistics:
    """Extremes of a module's outputs so far, as 0-d tensors on their device."""

    lower: Tensor
    upper: Tensor
    dead: Tensor | None = None
    saturated: Tensor | None = None
    spread: Tensor | None = None

    def merge(self, other: Statistics) -> None:
        self.lower = torch.minimum(self.lower, other.lower)
        for name in ("upper", "dead", "saturated", "spread"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine is not None and others is not None:
                setattr(self, name, torch.maximum(mine, others))

    def numbers(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class GivenInput:
    """What the first module was given."""

    where: str
    is_normalized: bool
    numbers: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Normalization:
    """A batch against the running statistics before it, `[C]` each.

    Attributes:
        mean: Difference of the means, times `momentum` where the module has mixed them.
        variance: The same for the variances.
        before: Running variance.
        eps: Of the module.
        share: Of the differences that is in `mean` and `variance`.
        momentum: As in `NormalizationReading`.
        count: Values per channel.
    """

    mean: Tensor
    variance: Tensor
    before: Tensor
    eps: float
    share: float
    momentum: float
    count: int


@dataclass(frozen=True, slots=True)
class ModulesSeen:
    """What a sample holds of the modules, with its numbers on the device.

    Attributes:
        statistics: By module.
        given: What the first module was given; None if that cannot be measured.
        normalizations: By module.
        ran: Modules whose output asks for a gradient.
    """

    statistics: dict[str, Statistics] = field(default_factory=dict)
    given: GivenInput | None = None
    normalizations: dict[str, Normalization] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)

    def tensors(self) -> list[Tensor]:
        """Every number, in the order in which `fields` takes them; `[]` each."""
        return [
            *(number for one in self.statistics.values() for number in one.numbers().values()),
            *(() if self.given is None else self.given.numbers.values()),
            *_compared(list(self.normalizations.values())),
        ]

    def fields(self, numbers: Iterator[float]) -> dict[str, Any]:
        """Fields of a `Reading`, with the numbers as the host has read them."""
        found: dict[str, Any] = {
            "activations": {
                name: ActivationReading(**{part: next(numbers) for part in one.numbers()})
                for name, one in self.statistics.items()
            }
        }
        if self.given is not None:
            found["inputs"] = InputReading(
                where=self.given.where,
                is_normalized=self.given.is_normalized,
                **{part: next(numbers) for part in self.given.numbers},
            )
        found["normalizations"] = {
            name: NormalizationReading(
                shift=next(numbers),
                ratio=next(numbers),
                momentum=one.momentum,
                count=one.count,
            )
            for name, one in self.normalizations.items()
        }
        return found


class ModuleWatcher:
    """Collects what the leaf modules of a model put out, as numbers that stay on the device.

    Args:
        model: The model.

    Attributes:
        is_on: False once something could not be read.
        samples: Sampled steps so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.is_on = True
        self.samples = 0
        self._step: int | None = None
        self._handles: list[Any] = []
        self._channels_first = True
        self._is_first = False
        self.forget()

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Hooks the modules while inside; may be entered several times for one step."""
        if not self.is_on:
            yield
            return
        if step != self._step:
            self.forget()
            self._step = step
        self._is_first = self._given is None
        self.detach()
        self._attach()
        try:
            yield
        finally:
            self.detach()

    def take(self, step: int) -> ModulesSeen:
        """What was seen in a sampled step; the next one starts anew."""
        seen = ModulesSeen()
        if self._step == step:
            seen = ModulesSeen(self._statistics, self._given, self._normalizations, self._ran)
        self.forget()
        self._step = None
        self.samples += 1
        return seen

    def forget(self) -> None:
        """What has been seen of a step counts no more."""
        self._statistics: dict[str, Statistics] = {}
        self._normalizations: dict[str, Normalization] = {}
        self._running: dict[str, tuple[Tensor, Tensor]] = {}
        self._ran: set[str] = set()
        self._given: GivenInput | None = None

    def detach(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _attach(self) -> None:
        for name, module in _leaves(self.model):
            self._handles.append(module.register_forward_hook(self._hook(name)))
            if isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
                self._handles.append(module.register_forward_pre_hook(self._before(name)))

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            try:
                self._see(name, module, args, output)
            except Exception as error:
                self.give_up(error)

        return see

    def _before(self, name: str) -> Any:
        def keep(module: Any, args: Any) -> None:
            if torch.compiler.is_compiling() or name in self._running:
                return
            try:
                self._running[name] = (module.running_mean.clone(), module.running_var.clone())
            except Exception as error:
                self.give_up(error)

        return keep

    @torch.no_grad()
    def _see(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not self.is_on:
            return
        if self._is_first:
            self._is_first = False
            try:
                self._given = _input(name, module, args)
            except Exception:  # sparse, nested, boolean: it has no scale
                self._given = None
        if isinstance(module, _CHANNELS_FIRST):
            self._channels_first = True
        elif isinstance(module, _CHANNELS_LAST):
            self._channels_first = False
        tensor = _first_tensor(output)
        if tensor is None:
            return
        if tensor.requires_grad:
            self._ran.add(name)
        tensor = tensor.detach()
        statistics = Statistics(*torch.aminmax(tensor))
        if isinstance(module, _RECTIFIERS):
            statistics.dead = _dead_share(tensor, self._channels_first)
        if (bounds := _BOUNDED.get(type(module))) is not None:
            near = _NEAR * (bounds[1] - bounds[0])
            ends = (tensor < bounds[0] + near) | (tensor > bounds[1] - near)
            statistics.saturated = ends.float().mean()
        if self.samples < FIRST_SAMPLES:
            statistics.spread = _spread(tensor)
        if name in self._running and name not in self._normalizations:
            self._normalizations[name] = _mixed(module, args[0], *self._running[name])
        if name in self._statistics:
            self._statistics[name].merge(statistics)
        else:
            self._statistics[name] = statistics

    def give_up(self, error: Exception) -> None:
        """Switches itself off, and says so once."""
        if self.is_on:
            self.is_on = False
            warnings.warn(
                f"activation statistics are switched off: {type(error).__name__}: {error}. "
                "Loss and gradients are still read.",
                RanumWarning,
                stacklevel=4,
            )


def _spread(tensor: Tensor) -> Tensor | None:
    """Largest range of an element over the first dimension; None for one example."""
    if tensor.ndim == 0 or len(tensor) < 2:
        return None
    return (tensor.amax(0) - tensor.amin(0)).amax().float()


def _input(name: str, module: nn.Module, args: Any) -> GivenInput | None:
    tensor = args[0] if args and isinstance(args[0], Tensor) else None
    if tensor is None or not tensor.numel() or tensor.is_complex() or tensor.requires_grad:
        return None
    numbers: dict[str, Tensor] = {}
    given = tensor.detach()
    given = given.float() if given.dtype in (torch.float16, torch.bfloat16) else given
    numbers["lower"], numbers["upper"] = (end.float() for end in torch.aminmax(given))
    if given.is_floating_point() and given.numel() > 1:
        deviation, mean = torch.std_mean(given)
        numbers["mean"], numbers["deviation"] = mean, deviation
    spread = _spread(given)
    if spread is not None:
        numbers["spread"] = spread
    return GivenInput(name, isinstance(module, _NORMALIZATIONS), numbers)


def _mixed(module: nn.Module, given: Tensor, mean: Tensor, variance: Tensor) -> Normalization:
    """A batch `[N, C, ...]` against the running statistics `[C]` before it."""
    assert isinstance(module, _BATCH_NORMS)
    # None means the average of all batches so far: noisy at first, as it has to be.
    momentum = (module.momentum or 0.0) if module.training else 0.0
    is_average = module.training and module.momentum is None
    if momentum >= _LEAST_MOMENTUM:
        # The module has just mixed the batch's statistics in: they can be had for nothing.
        assert module.running_mean is not None
        assert module.running_var is not None
        share, batch_mean, batch_variance = momentum, module.running_mean, module.running_var
    else:
        dims = [dim for dim in range(given.ndim) if dim != 1]
        share, (batch_variance, batch_mean) = 1.0, torch.var_mean(given.detach().float(), dims)
    return Normalization(
        mean=batch_mean - mean,
        variance=batch_variance - variance,
        before=variance,
        eps=module.eps,
        share=share,
        momentum=_LEAST_MOMENTUM if is_average else momentum,
        count=given.numel() // max(1, given.shape[1]),
    )


def _compared(all_of_them: Sequence[Normalization]) -> list[Tensor]:
    """Shift and ratio of each, medians over channels; fused, for there may be many."""
    if not all_of_them:
        return []
    eps = [one.eps for one in all_of_them]
    factors = [1 / one.share for one in all_of_them]
    scales = torch._foreach_add([one.before for one in all_of_them], eps)
    shifts = torch._foreach_mul([one.mean for one in all_of_them], factors)
    shifts = torch._foreach_div(torch._foreach_abs(shifts), torch._foreach_sqrt(scales))
    ratios = torch._foreach_mul([one.variance for one in all_of_them], factors)
    ratios = torch._foreach_maximum(torch._foreach_add(ratios, scales), eps)
    ratios = torch._foreach_div(ratios, scales)
    medians = [
        (a.float().median(), b.float().median()) for a, b in zip(shifts, ratios, strict=True)
    ]
    return [number for pair in medians for number in pair]


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules without children that run in eager mode, by path."""
    skipped: list[str] = []
    for name, module in model.named_modules():
        if name.startswith(tuple(skipped)):
            continue
        # By name: importing the class would import the whole compiler.
        if (
            type(module).__name__ == "OptimizedModule"
            or getattr(module, "_compiled_call_impl", None) is not None
            or isinstance(module, torch.jit.ScriptModule)
        ):
            skipped.append(f"{name}." if name else "")
        elif not any(True for _ in module.children()):
            yield name, module


def _first_tensor(output: Any) -> Tensor | None:
    """The first floating tensor with elements in a module's output, if any."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.numel() else None
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, Sequence) or isinstance(output, str | bytes):
        return None
    return next((tensor for part in output if (tensor := _first_tensor(part)) is not None), None)


def _dead_share(output: Tensor, channels_first: bool) -> Tensor | None:
    """Share of units that are <= 0 for the whole batch; None for a scalar output."""
    if output.ndim == 0:
        return None
    if output.ndim > 1:
        unit = 1 if channels_first or output.ndim == 2 else output.ndim - 1
        output = output.amax([dim for dim in range(output.ndim) if dim != unit])
    else:
        output = output.amax()
    return (output <= 0).float().mean()
