"""Reads one PyTorch training step: a fused reduction on the device and one host read."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ranum.errors import ArgumentError
from ranum.guards._shards import is_sharded
from ranum.guards.readings import loss as losses
from ranum.guards.readings._jumps import Jumps
from ranum.guards.readings._modules import FIRST_SAMPLES, ModulesSeen, ModuleWatcher
from ranum.guards.readings._norms import (
    dense_gradients,
    norms_of,
    on_host,
    scaled_norm,
    stepped,
    together,
    total,
)
from ranum.guards.readings._updates import Changes, Pairs, Updates
from ranum.guards.types import Reading


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

    Attributes:
        has_read: True once a step has been read.

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
        self._modules = ModuleWatcher(model)
        self._updates = Updates()
        self.has_read = False
        self._masks: set[str] = set()
        self._jumps = Jumps()
        self._terms: list[losses.Term] = []
        self._looked_step: int | None = None

    def __repr__(self) -> str:
        name = type(self.model).__name__
        return f"TorchReader({name}, sample_every={self.sample_every})"

    def is_sampled(self, step: int) -> bool:
        """True if the step gets per-layer statistics."""
        return step % self.sample_every == 0

    def watch(self, step: int) -> AbstractContextManager[None]:
        """Collects activation statistics of the forward passes inside, in sampled steps.

        May be entered several times for one step (gradient accumulation). In other steps it
        does nothing.
        """
        return self._modules.watch(step) if self.is_sampled(step) else nullcontext()

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
        measured = self.measure(
            step=step, loss=loss, optimizer=optimizer, epoch=epoch, buffers=buffers
        )
        return measured.reading()

    @torch.no_grad()
    def measure(
        self,
        *,
        step: int,
        loss: Tensor | float | None,
        optimizer: Any = None,
        epoch: int = 0,
        buffers: Sequence[tuple[str, Tensor]] = (),
    ) -> Measurement:
        """As `read`, but leaves the numbers on their device: nothing waits for it.

        Args:
            step: As in `read`.
            loss: As in `read`.
            optimizer: As in `read`.
            epoch: As in `read`.
            buffers: As in `read`; they must stay as they are until the measurement is read.
        """
        sampled = self.is_sampled(step)
        parameters = [] if sampled else stepped(optimizer)
        if not parameters:
            self._refresh()
            parameters = self._parameters
        owners, gradients = dense_gradients(parameters)
        scalars: dict[str, Tensor] = {}
        loss_value = _scalar(loss, "loss", scalars)
        has_loss = bool(scalars)
        rate_value = _scalar(_learning_rate(optimizer), "rate", scalars)
        watched = [(name, tensor) for name, tensor in buffers if name not in self._masks]

        weight_names: list[str] = []
        weight_norms: list[Tensor] = []
        seen = _Seen()
        self._updates.compare()
        if sampled:
            weight_names, weights = self._weights()
            weight_norms = norms_of(weights)
            seen = self._take(step)
        numbers = [
            *scalars.values(),
            *norms_of(gradients),
            *norms_of([tensor for _, tensor in watched]),
            *weight_norms,
        ]

        def fill(values: Sequence[float], seen: _Seen, gradients: Sequence[Tensor]) -> Reading:
            rest = iter(values)
            got = {name: next(rest) for name in scalars}
            each = [next(rest) for _ in owners]
            # On the host, where it costs no operator: one read brings the norms anyway.
            norm = total(each) if each else None
            if norm is not None and not math.isfinite(norm) and gradients:
                norm = scaled_norm(gradients, norm)
            bad_state, growth = self._bad(step, watched, [next(rest) for _ in watched])
            return Reading(
                step=step,
                loss=got.get("loss", loss_value),
                grad_norm=norm,
                learning_rate=got.get("rate", rate_value),
                epoch=epoch,
                bad_state=bad_state,
                growth=growth,
                grad_norms=self._named(owners, each) if sampled else {},
                weight_norms={name: next(rest) for name in weight_names},
                **seen.fields(rest),
            )

        return Measurement(
            numbers=numbers,
            trained=owners,
            gradients=gradients,
            first_gradient=len(scalars),
            watched=len(watched),
            has_loss=has_loss,
            is_on_device=loss_value is None,
            seen=seen,
            fill=fill,
            give_up=self._modules.give_up,
        )

    def _take(self, step: int) -> _Seen:
        """What was seen of a sampled step; the next one starts anew."""
        is_first = self._modules.samples < FIRST_SAMPLES
        alike = self._updates.alike(self._trained()) if is_first else {}
        terms, self._terms = self._terms if self._looked_step == step else [], []
        modules = self._modules.take(step)
        seen = _Seen(modules, terms, self._updates.take(), alike, self._cut_off(modules.ran))
        self._updates.copy(self._trained())
        return seen

    def _bad(
        self, step: int, watched: Sequence[tuple[str, Tensor]], norms: Sequence[float]
    ) -> tuple[str, float]:
        """The first that is not finite, or has grown beyond measure in a step; how many times."""
        bad = [
            name
            for (name, tensor), norm in zip(watched, norms, strict=True)
            if not math.isfinite(norm) and not bool(tensor.isfinite().all())
        ]
        if not self.has_read:
            self.has_read = True
            self._masks.update(bad)
            return "", 0.0
        if bad:
            return bad[0], 0.0
        jump = self._jumps.see(step, zip([name for name, _ in watched], norms, strict=True))
        if jump is None:
            return "", 0.0
        name, before = jump
        return name, float(dict(watched)[name].double().norm()) / before

    def forget_update(self) -> None:
        """The step just read does not update the weights: it is withheld, or they go back."""
        self._updates.forget()

    def close(self) -> None:
        """Removes any hook and forgets the model's parameters; reading again is allowed."""
        self._modules.detach()
        self._modules.forget()
        self._updates.close()
        self._terms = []
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

    def _cut_off(self, ran: set[str]) -> tuple[str, ...]:
        return tuple(
            name
            for name, parameter in zip(self._names, self._parameters, strict=True)
            if parameter.grad is None and parameter.requires_grad and name.rpartition(".")[0] in ran
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a sample holds besides norms, with its numbers on the device."""

    modules: ModulesSeen = field(default_factory=ModulesSeen)
    terms: list[losses.Term] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    alike: Pairs = field(default_factory=dict)
    cut_off: tuple[str, ...] = ()

    def tensors(self) -> list[Tensor]:
        """Every number, in the order in which `fields` takes them; `[]` each."""
        return [
            *self.modules.tensors(),
            *(number for term in self.terms for number in term.numbers),
            *(number for pair in self.changes.pairs.values() for number in pair),
            *(number for pair in self.alike.values() for number in pair),
        ]

    def fields(self, numbers: Iterator[float]) -> dict[str, Any]:
        """Fields of a `Reading`, with the numbers as the host has read them."""
        found = self.modules.fields(numbers)
        found["loss_terms"] = tuple(
            [term.reading([next(numbers) for _ in term.numbers]) for term in self.terms]
        )
        updates = {}
        for name in self.changes.pairs:
            change, size = next(numbers), next(numbers)
            updates[name] = change / max(size, self.changes.usual[name])
        found["updates"] = updates
        pairs = [(name, next(numbers), next(numbers)) for name in self.alike]
        # Of units that started alike, rounding may tell the last digits apart.
        found["alike"] = tuple(name for name, apart, size in pairs if apart <= 1e-4 * size)
        found["cut_off"] = self.cut_off
        return found


class Measurement:
    """What the reading of a step will say, with its numbers still on their devices.

    Attributes:
        trained: Parameters that have a gradient.
    """

    def __init__(
        self,
        *,
        numbers: list[Tensor],
        trained: list[Tensor],
        gradients: list[Tensor],
        first_gradient: int,
        watched: int,
        has_loss: bool,
        is_on_device: bool,
        seen: _Seen,
        fill: Callable[[Sequence[float], _Seen, Sequence[Tensor]], Reading],
        give_up: Callable[[Exception], None],
    ) -> None:
        self.trained = trained
        self._gradients = gradients
        self._numbers = numbers
        self._first = first_gradient
        self._watched = watched
        self._has_loss = has_loss
        self._is_on_device = is_on_device
        self._seen = seen
        self._fill = fill
        self._give_up = give_up
        self._sent: Tensor | None = None
        self._event: Any = None

    @property
    def can_be_sent(self) -> bool:
        """True if there are gradients, and no number is known to the host alone."""
        return bool(self.trained) and self._is_on_device

    @property
    def device(self) -> torch.device:
        """Where the numbers are brought together."""
        return self._numbers[0].device if self._numbers else torch.device("cpu")

    @property
    def checked(self) -> tuple[list[Tensor], list[Tensor]]:
        """Norms of the gradients, and what else has to be finite: the loss, norms of buffers."""
        end = self._first + len(self.trained)
        loss = self._numbers[: int(self._has_loss)]
        return self._numbers[self._first : end], loss + self._numbers[end : end + self._watched]

    def send(self, verdict: Tensor) -> None:
        """Starts to copy the numbers to the host, and one more; nothing waits.

        The gradients are let go: a norm whose square overflows float32 (beyond 1.8e19) will be
        read as infinite.

        Args:
            verdict: Whether the device has left the step out, `[]`.
        """
        try:
            numbers = together([verdict, *self._numbers, *self._seen.tensors()])
        except Exception as error:
            self._drop_seen(error)
            numbers = together([verdict, *self._numbers])
        if numbers.is_cuda:
            self._sent = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._sent.copy_(numbers, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))
        else:
            self._sent = numbers
        self._numbers, self._gradients = [], []

    def arrived(self) -> tuple[Reading, bool]:
        """The reading of numbers that were sent, and whether they were bad; waits for the copy."""
        assert self._sent is not None
        if self._event is not None:
            self._event.synchronize()
        values = self._sent.tolist()
        return self._fill(values[1:], self._seen, ()), values[0] != 0

    def reading(self) -> Reading:
        """Reads the numbers, in one read; waits for the device."""
        try:
            values = on_host([*self._numbers, *self._seen.tensors()])
        except Exception as error:
            self._drop_seen(error)
            values = on_host(self._numbers)
        return self._fill(values, self._seen, self._gradients)

    def _drop_seen(self, error: Exception) -> None:
        if not self._seen.tensors():
            raise error
        self._give_up(error)
        self._seen = _Seen()


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
