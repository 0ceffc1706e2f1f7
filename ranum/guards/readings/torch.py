"""Reads one PyTorch training step: a fused reduction on the device and one host read."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards._shards import is_sharded
from ranum.guards.readings import loss as losses
from ranum.guards.readings._norms import (
    dense_gradients,
    norms_of,
    on_host,
    scaled_norm,
    stepped,
    total,
)
from ranum.guards.types import (
    ActivationReading,
    InputReading,
    NormalizationReading,
    Reading,
)

FIRST_SAMPLES = 5
"""Samples of a run's beginning in which its initialisation is looked at."""
PART = 4096
"""Elements of a weight whose change stands for the change of all."""
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


_Pairs = dict[str, tuple[Tensor, Tensor]]


@dataclass(slots=True)
class _Statistics:
    """Extremes of a module's outputs so far, as 0-d tensors on their device."""

    lower: Tensor
    upper: Tensor
    dead: Tensor | None = None
    saturated: Tensor | None = None
    spread: Tensor | None = None

    def merge(self, other: _Statistics) -> None:
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
class _Input:
    """What the first module was given."""

    where: str
    is_normalized: bool
    numbers: dict[str, Tensor]


class TorchReader:
    """Measures a model's steps: loss, gradients, and now and then every layer.

    Every step costs one fused reduction over all gradients, and one read of it and the loss
    by the host. The gradients are those of what the optimizer is about to step, or of the
    model where no optimizer is given and in sampled steps. Every `sample_every`-th step also
    gives the norm of each gradient and each weight, and the extremes of every leaf module's
    output; they come with the same read.

    Norms are accumulated in float32 (float64 for float64 gradients), so float16 gradients
    cannot overflow them. Where the float32 sum of squares overflows although every gradient
    is finite (norms above 1.8e19), the norm is computed again with scaling, so a `grad_norm`
    that is not finite means that a gradient is not. Call `read` after the gradients were
    unscaled and before they are clipped. Sparse gradients are coalesced first.

    Activations are read through forward hooks that exist only inside `watch` of a sampled
    step. A module's output is its first floating tensor; a module that runs several times in
    a step shows the extremes over the runs and the largest share of dead units. The share of
    dead units is measured for `nn.ReLU` and `nn.ReLU6`; a unit is a channel after a
    convolution or BatchNorm, a feature (last dimension) after `nn.Linear` and the like.

    Besides, a sample holds how far the optimizer step after the sample before moved each weight
    (estimated from 4096 of its elements, which are copied meanwhile), what the first module that
    ran was given, how BatchNorm's running statistics compare with the batch, and, if `look` was
    called before the backward pass, what the loss functions of the step were given.

    Not seen: rectifiers called as functions (`F.relu`); modules with children (among them
    parametrized ones); the inside of compiled and scripted modules, where hooks do not run
    or would break the graph.

    Args:
        model: The model, or any module that holds all parameters being trained.
        sample_every: Steps between two samples; step 0 is one.

    Raises:
        ArgumentError: If `model` is not a module or `sample_every` is not a positive integer.
    """

    def __init__(self, model: nn.Module, *, sample_every: int = 10) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(
                f"model must be a torch.nn.Module; got {type(model).__name__}. "
                "Pass the module that holds the parameters."
            )
        if isinstance(sample_every, bool) or not isinstance(sample_every, int) or sample_every < 1:
            raise ArgumentError(
                f"sample_every must be a positive integer; got {sample_every!r}. "
                "Use a large number to sample rarely."
            )
        self.model = model
        self.sample_every = sample_every
        self._parameters: list[Tensor] = []
        self._names: list[str] = []
        self._statistics: dict[str, _Statistics] = {}
        self._watched_step: int | None = None
        self._handles: list[Any] = []
        self._channels_first = True
        self._can_watch = True
        self._has_read = False
        self._masks: set[str] = set()
        self._can_compare = True
        self._samples = 0
        self._input: _Input | None = None
        self._is_first = False
        self._terms: list[losses.Term] = []
        self._looked_step: int | None = None
        self._ran: set[str] = set()
        self._running: _Pairs = {}
        self._normalizations: dict[str, _Normalization] = {}
        self._parts: _Pairs = {}
        self._changes: _Pairs = {}
        self._usual: dict[str, float] = {}

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"TorchReader({name}, sample_every={self.sample_every})"

    def is_sampled(self, step: int) -> bool:
        """True if the step gets per-layer statistics."""
        return step % self.sample_every == 0

    @contextmanager
    def watch(self, step: int) -> Iterator[None]:
        """Collects activation statistics of the forward passes inside, in sampled steps.

        May be entered several times for one step (gradient accumulation). In other steps it
        does nothing.
        """
        if not self._can_watch or not self.is_sampled(step):
            yield
            return
        if step != self._watched_step:
            self._forget_step()
            self._watched_step = step
        self._is_first = self._input is None
        self._detach()
        self._attach()
        try:
            yield
        finally:
            self._detach()

    def look(self, step: int, loss: Any) -> None:
        """Looks at the step's loss functions; call before `backward`, in any step.

        Of several losses of a step, the first counts. In steps that are not sampled it does
        nothing; a loss without a graph, or one that cannot be read, shows nothing.

        Args:
            step: As in `read`.
            loss: That `backward` will be called on.
        """
        if not self.is_sampled(step) or step == self._looked_step:
            return
        self._looked_step, self._terms = step, []
        if isinstance(loss, Tensor) and loss.grad_fn is not None:
            try:
                self._terms = losses.terms(loss)
            except Exception:  # torch names and saves what it likes: then it is not seen
                self._terms = []

    @torch.no_grad()
    def read(
        self,
        *,
        step: int,
        loss: Tensor | float | None,
        optimizer: Any = None,
        epoch: int = 0,
        buffers: Sequence[tuple[str, Tensor]] = (),
    ) -> Reading:
        """Reads the step from the gradients that are in `.grad` now.

        Args:
            step: Optimizer steps attempted before this one.
            loss: The loss; of several elements, the mean is taken. None if it is not known.
            optimizer: Anything with torch's `param_groups`, or a sequence of such; the
                learning rate is the first group's.
            epoch: Counting from 0.
            buffers: Tensors to look at besides, by name; the first that is not finite becomes the
                reading's `bad_state`. Those that are not finite at the first reading are left
                alone: masks.

        Returns:
            The reading; `grad_norm` is None if no parameter has a gradient.

        Raises:
            ArgumentError: If `loss` is neither a tensor, a number nor None.
        """
        sampled = self.is_sampled(step)
        parameters = [] if sampled else stepped(optimizer)
        if not parameters:
            self._refresh()
            parameters = self._parameters
        owners, gradients = dense_gradients(parameters)
        grad_norms = norms_of(gradients)
        scalars: dict[str, Tensor] = {}
        loss_value = _scalar(loss, "loss", scalars)
        rate_value = _scalar(_learning_rate(optimizer), "rate", scalars)

        weight_names: list[str] = []
        weight_norms: list[Tensor] = []
        seen = _Seen()
        if self._parts:
            self._changes = self._extra(self._change)
            self._parts = {}
        if sampled:
            weight_names, weights = self._weights()
            weight_norms = norms_of(weights)
            seen = self._take(step)
        watched = [(name, tensor) for name, tensor in buffers if name not in self._masks]
        layers = [*grad_norms, *weight_norms, *norms_of([tensor for _, tensor in watched])]
        try:
            values = on_host([*scalars.values(), *layers, *seen.tensors()])
        except Exception as error:
            if not sampled:
                raise
            self._give_up(error)
            seen = _Seen()
            values = on_host([*scalars.values(), *layers])

        got = dict(zip(scalars, values, strict=False))
        rest = iter(values[len(scalars) :])
        each = [next(rest) for _ in gradients]
        # On the host, where it costs no operator: one read brings the norms anyway.
        norm = total(each) if each else None
        if norm is not None and not math.isfinite(norm):
            norm = scaled_norm(gradients, norm)
        sizes = {name: next(rest) for name in weight_names}
        bad = self._bad(watched, [next(rest) for _ in watched])
        return Reading(
            step=step,
            loss=got.get("loss", loss_value),
            grad_norm=norm,
            learning_rate=got.get("rate", rate_value),
            epoch=epoch,
            grad_norms=self._named(owners, each) if sampled else {},
            weight_norms=sizes,
            bad_state=bad,
            **seen.fields(rest),
        )

    def _take(self, step: int) -> _Seen:
        """What was seen of a sampled step; the next one starts anew."""
        seen = _Seen(changes=self._changes, usual=self._usual, alike=self._extra(self._alike))
        if self._looked_step == step:
            seen.terms = self._terms
        if self._watched_step == step:
            seen.statistics, seen.given = self._statistics, self._input
            seen.normalizations, seen.cut_off = self._normalizations, self._cut_off()
        self._changes = {}
        self._forget_step()
        self._watched_step = None
        self._terms = []
        self._parts = self._extra(self._copy_parts)
        self._samples += 1
        return seen

    def _extra(self, work: Callable[[], _Pairs]) -> _Pairs:
        """Looks at the weights; they are unusual, and not looked at again, if that fails."""
        if not self._can_compare:
            return {}
        try:
            return work()
        except Exception as error:
            self._can_compare = False
            warnings.warn(
                f"sizes of updates are not measured: {type(error).__name__}: {error}. "
                "Everything else is.",
                RanumWarning,
                stacklevel=4,
            )
            return {}

    def _forget_step(self) -> None:
        self._statistics, self._normalizations = {}, {}
        self._running, self._ran, self._input = {}, set(), None

    def _bad(self, watched: Sequence[tuple[str, Tensor]], norms: Sequence[float]) -> str:
        bad = [
            name
            for (name, tensor), norm in zip(watched, norms, strict=True)
            if not math.isfinite(norm) and not bool(tensor.isfinite().all())
        ]
        if not self._has_read:
            self._has_read = True
            self._masks.update(bad)
            return ""
        return next(iter(bad), "")

    def forget_update(self) -> None:
        """The step just read does not update the weights: it is withheld, or they go back."""
        self._parts = {}

    def close(self) -> None:
        """Removes any hook and forgets the model's parameters; reading again is allowed."""
        self._detach()
        self._forget_step()
        self._watched_step = None
        self._parts, self._changes, self._terms = {}, {}, []
        self._parameters, self._names = [], []

    # --- parameters ------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Takes up the model's parameters of now: a module may have been replaced."""
        found = _parameters(self.model)
        known = self._parameters
        if len(found) == len(known) and all(map(operator.is_, found, known)):
            return
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self._parameters = found
        self._names = [
            names.get(id(parameter), f"parameter {i}") for i, parameter in enumerate(found)
        ]

    def _named(self, owners: Sequence[Tensor], values: Sequence[float]) -> dict[str, float]:
        names = {id(p): name for name, p in zip(self._names, self._parameters, strict=True)}
        return {names[id(p)]: value for p, value in zip(owners, values, strict=True)}

    def _weights(self) -> tuple[list[str], list[Tensor]]:
        names, weights = [], []
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if not nn.parameter.is_lazy(parameter) and parameter.is_floating_point():
                names.append(name)
                weights.append(parameter.detach())
        return names, weights

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """Matrices and kernels that ask for a gradient."""
        for name, parameter in zip(self._names, self._parameters, strict=True):
            if (
                parameter.requires_grad
                and not nn.parameter.is_lazy(parameter)
                and parameter.is_floating_point()
                and parameter.ndim > 1
                and parameter.numel()
                and not is_sharded(parameter)
            ):
                yield name, parameter

    def _copy_parts(self) -> _Pairs:
        """Some elements of each weight as they are before this step changes them."""
        weights = dict(self._trained())
        if not weights:
            return {}
        copies = torch._foreach_mul([_part(weight.detach()) for weight in weights.values()], 1.0)
        return dict(zip(weights, zip(weights.values(), copies, strict=True), strict=True))

    def _change(self) -> _Pairs:
        """How far these elements have moved, and how large they were."""
        self._usual = {name: _usual_norm(w, old) for name, (w, old) in self._parts.items()}
        names, pairs = list(self._parts), list(self._parts.values())
        live, old = [_part(weight.detach()) for weight, _ in pairs], [before for _, before in pairs]
        moved = norms_of(torch._foreach_sub(live, old))
        return dict(zip(names, zip(moved, norms_of(old), strict=True), strict=True))

    def _alike(self) -> _Pairs:
        """Largest difference between the units of a weight, and its largest element."""
        if self._samples >= FIRST_SAMPLES:
            return {}
        return {
            name: ((weight.amax(0) - weight.amin(0)).amax(), weight.abs().amax())
            for name, weight in self._trained()
            if len(weight) > 1
        }

    def _cut_off(self) -> tuple[str, ...]:
        return tuple(
            name
            for name, parameter in zip(self._names, self._parameters, strict=True)
            if parameter.grad is None
            and parameter.requires_grad
            and name.rpartition(".")[0] in self._ran
        )

    # --- activations -----------------------------------------------------------------------

    def _attach(self) -> None:
        for name, module in _leaves(self.model):
            self._handles.append(module.register_forward_hook(self._hook(name)))
            if isinstance(module, _BATCH_NORMS) and module.running_mean is not None:
                self._handles.append(module.register_forward_pre_hook(self._before(name)))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            try:
                self._see(name, module, args, output)
            except Exception as error:
                self._give_up(error)

        return see

    def _before(self, name: str) -> Any:
        def keep(module: Any, args: Any) -> None:
            if torch.compiler.is_compiling() or name in self._running:
                return
            try:
                self._running[name] = (module.running_mean.clone(), module.running_var.clone())
            except Exception as error:
                self._give_up(error)

        return keep

    @torch.no_grad()
    def _see(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if not self._can_watch:
            return
        if self._is_first:
            self._is_first = False
            try:
                self._input = _input(name, module, args)
            except Exception:  # sparse, nested, boolean: it has no scale
                self._input = None
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
        statistics = _Statistics(*torch.aminmax(tensor))
        if isinstance(module, _RECTIFIERS):
            statistics.dead = _dead_share(tensor, self._channels_first)
        if (bounds := _BOUNDED.get(type(module))) is not None:
            near = _NEAR * (bounds[1] - bounds[0])
            ends = (tensor < bounds[0] + near) | (tensor > bounds[1] - near)
            statistics.saturated = ends.float().mean()
        if self._samples < FIRST_SAMPLES:
            statistics.spread = _spread(tensor)
        if name in self._running and name not in self._normalizations:
            self._normalizations[name] = _mixed(module, args[0], *self._running[name])
        if name in self._statistics:
            self._statistics[name].merge(statistics)
        else:
            self._statistics[name] = statistics

    def _give_up(self, error: Exception) -> None:
        if self._can_watch:
            self._can_watch = False
            warnings.warn(
                f"activation statistics are switched off: {type(error).__name__}: {error}. "
                "Loss and gradients are still read.",
                RanumWarning,
                stacklevel=3,
            )


@dataclass(frozen=True, slots=True)
class _Normalization:
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


@dataclass(slots=True)
class _Seen:
    """What a sample holds besides norms, with its numbers on the device."""

    statistics: dict[str, _Statistics] = field(default_factory=dict)
    given: _Input | None = None
    terms: list[losses.Term] = field(default_factory=list)
    normalizations: dict[str, _Normalization] = field(default_factory=dict)
    changes: _Pairs = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)
    alike: _Pairs = field(default_factory=dict)
    cut_off: tuple[str, ...] = ()

    def tensors(self) -> list[Tensor]:
        """Every number, in the order in which `fields` takes them; `[]` each."""
        return [
            *(number for one in self.statistics.values() for number in one.numbers().values()),
            *(() if self.given is None else self.given.numbers.values()),
            *(number for term in self.terms for number in term.numbers),
            *_compared(list(self.normalizations.values())),
            *(number for pair in self.changes.values() for number in pair),
            *(number for pair in self.alike.values() for number in pair),
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
        found["loss_terms"] = tuple(
            [term.reading([next(numbers) for _ in term.numbers]) for term in self.terms]
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
        updates = {}
        for name in self.changes:
            change, size = next(numbers), next(numbers)
            updates[name] = change / max(size, self.usual[name])
        found["updates"] = updates
        pairs = [(name, next(numbers), next(numbers)) for name in self.alike]
        # Of units that started alike, rounding may tell the last digits apart.
        found["alike"] = tuple(name for name, apart, size in pairs if apart <= 1e-4 * size)
        found["cut_off"] = self.cut_off
        return found


def _part(weight: Tensor) -> Tensor:
    """A view of some elements, spread over the weight; all of them if they are few."""
    flat = weight.view(-1) if weight.is_contiguous() else weight
    if flat.ndim > 1 or flat.numel() <= PART:
        return flat
    # Odd, so that it does not keep to a few columns of a matrix of even width.
    return flat[:: flat.numel() // PART | 1]


def _usual_norm(weight: Tensor, part: Tensor) -> float:
    """L2 of the part in torch's default initialisation: deviation 1 / sqrt(3 x inputs)."""
    inputs = weight.numel() / len(weight)
    return math.sqrt(part.numel() / (3 * inputs))


def _spread(tensor: Tensor) -> Tensor | None:
    """Largest range of an element over the first dimension; None for one example."""
    if tensor.ndim == 0 or len(tensor) < 2:
        return None
    return (tensor.amax(0) - tensor.amin(0)).amax().float()


def _input(name: str, module: nn.Module, args: Any) -> _Input | None:
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
    return _Input(name, isinstance(module, _NORMALIZATIONS), numbers)


def _mixed(module: nn.Module, given: Tensor, mean: Tensor, variance: Tensor) -> _Normalization:
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
    return _Normalization(
        mean=batch_mean - mean,
        variance=batch_variance - variance,
        before=variance,
        eps=module.eps,
        share=share,
        momentum=_LEAST_MOMENTUM if is_average else momentum,
        count=given.numel() // max(1, given.shape[1]),
    )


def _compared(all_of_them: Sequence[_Normalization]) -> list[Tensor]:
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


def _parameters(model: nn.Module) -> list[Tensor]:
    """Every parameter once; a flat walk, several times cheaper than `model.parameters()`."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    stack: list[nn.Module] = [model]
    while stack:
        module = stack.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)] = parameter
        stack.extend(child for child in reversed(module._modules.values()) if child is not None)
    return list(found.values())


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


def _scalar(value: Any, name: str, scalars: dict[str, Tensor]) -> float | None:
    """A number as it is; a tensor is put aside for the common read."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_sparse or value.is_complex() or not value.numel():
            raise ArgumentError(f"{name} must be a real number; got {value.dtype} {value.shape}.")
        scalars[name] = value.reshape(()) if value.numel() == 1 else value.float().mean()
        return None
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{name} must be a tensor, a number or None; got {type(value).__name__}. "
            "Pass the tensor that `backward` was called on."
        ) from None


def _learning_rate(optimizer: Any) -> Any:
    if isinstance(optimizer, list | tuple):
        optimizer = optimizer[0] if optimizer else None
    groups = getattr(optimizer, "param_groups", None)
    return groups[0].get("lr") if groups else None
