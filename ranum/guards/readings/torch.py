"""Reads one PyTorch training step: a fused reduction on the device and one host read."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards._shards import any_sharded, local, whole_norms
from ranum.guards.types import ActivationReading, Reading

_RECTIFIERS = (nn.ReLU, nn.ReLU6)
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.RNNBase, nn.Embedding)


@dataclass(slots=True)
class _Statistics:
    """Extremes of a module's outputs so far, as 0-d tensors on their device."""

    lower: Tensor
    upper: Tensor
    dead: Tensor | None

    def merge(self, other: _Statistics) -> None:
        self.lower = torch.minimum(self.lower, other.lower)
        self.upper = torch.maximum(self.upper, other.upper)
        if self.dead is not None and other.dead is not None:
            self.dead = torch.maximum(self.dead, other.dead)


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
            self._statistics = {}
            self._watched_step = step
        self._detach()
        self._attach()
        try:
            yield
        finally:
            self._detach()

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
        parameters = [] if sampled else _stepped(optimizer)
        if not parameters:
            self._refresh()
            parameters = self._parameters
        owners, gradients = _gradients(parameters)
        grad_norms = _norms(gradients)
        scalars: dict[str, Tensor] = {}
        loss_value = _scalar(loss, "loss", scalars)
        rate_value = _scalar(_learning_rate(optimizer), "rate", scalars)

        weight_names: list[str] = []
        weight_norms: list[Tensor] = []
        statistics: dict[str, _Statistics] = {}
        if sampled:
            weight_names, weights = self._weights()
            weight_norms = _norms(weights)
            if self._watched_step == step:
                statistics = self._statistics
            self._statistics, self._watched_step = {}, None
        watched = [(name, tensor) for name, tensor in buffers if name not in self._masks]
        layers = [*grad_norms, *weight_norms, *_norms([tensor for _, tensor in watched])]
        activations = [
            tensor
            for entry in statistics.values()
            for tensor in (entry.lower, entry.upper, entry.dead)
            if tensor is not None
        ]
        try:
            values = _host([*scalars.values(), *layers, *activations])
        except Exception as error:
            if not activations:
                raise
            self._give_up(error)
            statistics = {}
            values = _host([*scalars.values(), *layers])

        got = dict(zip(scalars, values, strict=False))
        rest = iter(values[len(scalars) :])
        each = [next(rest) for _ in gradients]
        # On the host, where it costs no operator: one read brings the norms anyway.
        norm = _total(each) if each else None
        if norm is not None and not math.isfinite(norm):
            norm = _scaled_norm(gradients, norm)
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
            activations={
                name: ActivationReading(
                    lower=next(rest),
                    upper=next(rest),
                    dead=None if entry.dead is None else next(rest),
                )
                for name, entry in statistics.items()
            },
        )

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

    def close(self) -> None:
        """Removes any hook and forgets the model's parameters; reading again is allowed."""
        self._detach()
        self._statistics, self._watched_step = {}, None
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

    # --- activations -----------------------------------------------------------------------

    def _attach(self) -> None:
        for name, module in _leaves(self.model):
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            try:
                self._see(name, module, output)
            except Exception as error:
                self._give_up(error)

        return see

    @torch.no_grad()
    def _see(self, name: str, module: nn.Module, output: Any) -> None:
        if not self._can_watch:
            return
        if isinstance(module, _CHANNELS_FIRST):
            self._channels_first = True
        elif isinstance(module, _CHANNELS_LAST):
            self._channels_first = False
        tensor = _first_tensor(output)
        if tensor is None:
            return
        tensor = tensor.detach()
        lower, upper = torch.aminmax(tensor)
        dead = None
        if isinstance(module, _RECTIFIERS):
            dead = _dead_share(tensor, self._channels_first)
        statistics = _Statistics(lower, upper, dead)
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


def _stepped(optimizer: Any) -> list[Tensor]:
    """What the optimizers are about to step: a list at hand, where the model is a tree."""
    several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
    return [
        parameter
        for one in several
        for group in getattr(one, "param_groups", ())
        for parameter in group["params"]
    ]


def _gradients(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters that have a gradient, and the dense values of those."""
    owners, gradients = [], []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            gradient = gradient.coalesce().values()
        owners.append(parameter)
        gradients.append(gradient)
    return owners, gradients


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


def _norms(tensors: Sequence[Tensor], wide: torch.dtype | None = None) -> list[Tensor]:
    """L2 norm of each tensor, fused by device and dtype, in at least float32.

    Of tensors that are spread over processes, that of the whole: collective then.
    """
    parts = [local(tensor) for tensor in tensors] if any_sharded(tensors) else tensors
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(parts):
        groups.setdefault((tensor.device, tensor.dtype), []).append(index)
    norms: list[Tensor] = list(parts)
    for (_, dtype), indices in groups.items():
        least = torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
        for index, norm in zip(
            indices,
            torch._foreach_norm([parts[index] for index in indices], 2, dtype=wide or least),
            strict=True,
        ):
            norms[index] = norm
    return norms if parts is tensors else whole_norms(tensors, norms)


def _total(norms: Sequence[float]) -> float:
    """The norm of norms; NaN if one is NaN."""
    total = math.hypot(*norms)
    return math.nan if math.isinf(total) and any(map(math.isnan, norms)) else total


def _gathered(tensors: Sequence[Tensor]) -> list[Tensor]:
    device = tensors[0].device
    return [tensor if tensor.device == device else tensor.to(device) for tensor in tensors]


def _host(tensors: Sequence[Tensor]) -> list[float]:
    """The values of 0-d tensors, in one read."""
    if not tensors:
        return []
    values: list[float] = torch.stack(_gathered(tensors)).tolist()
    return values


def _scaled_norm(gradients: Sequence[Tensor], norm: float) -> float:
    """The norm without overflow; `norm` if a gradient really is not finite."""
    if any_sharded(gradients):
        return _total(_host(_norms(gradients, torch.float64)))
    largest = max(
        (float(gradient.abs().max()) for gradient in gradients if gradient.numel()), default=0.0
    )
    if not math.isfinite(largest) or not largest:
        return norm
    parts = [float(torch.linalg.vector_norm(gradient / largest)) for gradient in gradients]
    return largest * math.hypot(*parts)


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
