"""Runs the user's own training, step by step, from the initial weights and a seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ranum.analysis.capture.program import Program
from ranum.analysis.confirm.replay import RANDOM
from ranum.analysis.confirm.rerun import Failure, Probe, has_bad_gradient
from ranum.analysis.confirm.training.data import Batch
from ranum.analysis.confirm.training.optimizers import Recipe
from ranum.analysis.confirm.training.quick import Quick
from ranum.analysis.confirm.training.twins import Twin
from ranum.analysis.result import Context, Defect
from ranum.errors import ArgumentError

Ended = Literal["stepped", "bad loss", "bad gradient", "refused"]


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands: tensors, what the optimizer remembers, random numbers, steps."""

    tensors: tuple[Tensor, ...]
    optimizer: Any
    random: Tensor
    steps: int


class Trainer:
    """Ordinary training of a program; use it inside `training()`.

    Args:
        context: Of the analysis.
        defect: The operator that is watched.
        recipe: Makes the optimizer.
        seed: Of torch's random numbers, set once, before the first step.
    """

    def __init__(self, context: Context, defect: Defect, recipe: Recipe, seed: int) -> None:
        self._context = context
        self._defect = defect
        self._recipe = recipe
        self._seed = seed
        self._program: Program = context.program
        self._held = self._tensors()
        self._initial = tuple(one.detach().clone() for one in self._held)
        self._optimizer: Any = None
        self.is_random = any(node.op in RANDOM for node in context.graph.nodes)
        self.steps = 0
        self.all_steps = 0
        self.quick: Quick | None = None

    def _tensors(self) -> list[Tensor]:
        model = self._program.model
        buffers = [] if model is None else list(model.buffers())
        return [*self._program.parameters.values(), *buffers]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, weights move; afterwards everything is as it was."""
        with self._program.substituted({}):
            try:
                yield
            finally:
                self._write(self._initial)
                self._optimizer = None

    def begin(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Back to the initial weights, with a fresh optimizer and the seed.

        Args:
            weights: Values of parameters that start elsewhere.
        """
        self._write(self._initial)
        with torch.no_grad():
            for name, value in (weights or {}).items():
                self._program.parameters[name].data.copy_(value)
        self._optimizer = self._recipe.make(self._program.parameters)
        torch.manual_seed(self._seed)
        self.steps = 0

    @property
    def weights(self) -> dict[str, Tensor]:
        """The parameters as they are now."""
        return {name: one.detach() for name, one in self._program.parameters.items()}

    def step(self, batch: Batch) -> Ended:
        """One step of training; the weights stay as they are where it does not succeed."""
        self.all_steps += 1
        ended = self._quick_gradients(batch) or self._gradients(batch)
        if ended != "stepped":
            return ended
        slopes = [p.grad for p in self._program.parameters.values() if p.grad is not None]
        if not all(bool(s.sum().isfinite()) or bool(s.isfinite().all()) for s in slopes):
            return "bad gradient"
        self._optimizer.step()
        self.steps += 1
        return "stepped"

    @contextmanager
    def in_earnest(self) -> Iterator[None]:
        """Inside, every step is the program's own."""
        held, self.quick = self.quick, None
        try:
            yield
        finally:
            self.quick = held

    def _quick_gradients(self, batch: Batch) -> Ended | None:
        """Fills the gradients by the recorded forward pass; None if that is not possible."""
        if self.quick is None:
            return None
        try:
            found = self.quick.gradients(batch)
        except RuntimeError:
            return None
        if found is None:
            return None
        loss, slopes = found
        for parameter, slope in zip(self._program.parameters.values(), slopes, strict=True):
            parameter.grad = slope
        return "stepped" if bool(loss.isfinite()) else "bad loss"

    def _gradients(self, batch: Batch) -> Ended:
        """Fills the gradients by the program's own step."""
        self._optimizer.zero_grad(set_to_none=True)
        try:
            loss = self._program.step(*self._program.batch(batch))
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                raise ArgumentError(
                    "defect must come from a step that returns a loss which depends on its "
                    f"weights; that of {self._program.description} does not."
                )
            total = loss.sum()
            if not bool(total.isfinite()):
                return "bad loss"
            total.backward()
        except ArgumentError:
            raise
        except Exception:  # the user's step refuses such data
            return "refused"
        return "stepped"

    def failure(self, batch: Batch) -> Failure | None:
        """How the watched operator fails in a step on a batch, with the weights of now."""
        needs_gradient = self._defect.gradient_only
        leaves = list(self._program.parameters.values())
        if needs_gradient and not leaves:
            batch = {
                name: x.detach().clone().requires_grad_() if x.is_floating_point() else x
                for name, x in {**self._program.inputs, **batch}.items()
            }
            leaves = [x for x in batch.values() if x.requires_grad]
        probe = Probe(self._context, self._defect, None)
        self._optimizer.zero_grad(set_to_none=True)
        self.all_steps += 1
        try:
            with probe:
                loss = self._program.step(*self._program.batch(batch))
                bad = needs_gradient and has_bad_gradient(loss, leaves)
        except Exception:  # the user's step refuses such data
            return None
        outcome = probe.outcome
        if needs_gradient:
            outcome = "gradient not finite" if bad else None
        if outcome is None or probe.operand is None:
            return None
        value = float(loss.detach().sum()) if isinstance(loss, Tensor) else None
        return Failure(probe.operand, outcome, value)

    def draws(self) -> list[Tensor]:
        """What the random operators of a step give with the seed, in order."""
        found: list[Tensor] = []
        torch.manual_seed(self._seed)
        with torch.no_grad(), Probe(self._context, self._defect, found):
            self._program.step(*self._program.arguments)
        return found

    def snapshot(self) -> State:
        """Everything that a later step depends on."""
        return State(
            tuple(one.detach().clone() for one in self._held),
            _remembered(self._optimizer),
            torch.get_rng_state(),
            self.steps,
        )

    def restore(self, state: State) -> None:
        """Back to where a snapshot was taken."""
        self._write(state.tensors)
        _remind(self._optimizer, state.optimizer)
        torch.set_rng_state(state.random)
        self.steps = state.steps

    @torch.no_grad()
    def _write(self, tensors: tuple[Tensor, ...]) -> None:
        for one, value in zip(self._held, tensors, strict=True):
            one.data.copy_(value)


def _remembered(optimizer: torch.optim.Optimizer | Twin) -> Any:
    """What an optimizer knows of each parameter, and the settings of its groups, copied."""
    held = {
        parameter: {
            key: one.detach().clone() if isinstance(one, Tensor) else copy.deepcopy(one)
            for key, one in state.items()
        }
        for parameter, state in optimizer.state.items()
    }
    return held, [_settings(group) for group in optimizer.param_groups]


@torch.no_grad()
def _remind(optimizer: torch.optim.Optimizer | Twin, remembered: Any) -> None:
    held, settings = remembered
    for parameter in [one for one in optimizer.state if one not in held]:
        del optimizer.state[parameter]
    for parameter, known in held.items():
        state = optimizer.state[parameter]
        for key in [key for key in state if key not in known]:
            del state[key]
        for key, one in known.items():
            now = state.get(key)
            if isinstance(one, Tensor) and isinstance(now, Tensor) and now.shape == one.shape:
                now.copy_(one)
            else:
                state[key] = one.clone() if isinstance(one, Tensor) else copy.deepcopy(one)
    for group, known in zip(optimizer.param_groups, settings, strict=True):
        group.update(copy.deepcopy(known))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(one) for key, one in group.items() if key != "params"}
