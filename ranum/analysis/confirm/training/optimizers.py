"""The user's optimizer, made anew: its kind and its settings, never its state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.lightning import is_lightning_module
from ranum.analysis.capture.program import Program
from ranum.analysis.confirm.training.twins import Twin, is_keras_optimizer, twin
from ranum.errors import ArgumentError

Factory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the run's optimizer is made.

    Attributes:
        make: From the program's parameters by name to a fresh optimizer over those it trains.
        words: "SGD(lr=0.1)".
        original: The Keras optimizer, if it is one.
        normalises: A step depends on the signs of the gradients more than on their size.
    """

    make: Callable[[Mapping[str, Tensor]], torch.optim.Optimizer | Twin]
    words: str
    original: Any
    normalises: bool


def recipe(optimizer: Any, program: Program) -> Recipe:
    """How an optimizer is made again for a run of its own.

    Args:
        optimizer: A torch or Keras optimizer, a function from parameters to a torch optimizer,
            or None: what the LightningModule configures, or the Keras model was compiled with.
        program: What is trained.

    Raises:
        ArgumentError: If there is none, or it trains none of the program's parameters.
    """
    if not program.parameters:
        return Recipe(lambda named: _Still(named.values()), "no optimizer", None, False)
    given = _configured(program) if optimizer is None else optimizer
    if program.origin is not None and not is_keras_optimizer(given):
        raise ArgumentError(
            "optimizer must be a Keras optimizer, for that is what trains a TensorFlow program; "
            f"got {type(given).__name__}."
        )
    if isinstance(given, torch.optim.Optimizer):
        return _from_instance(given, program)
    if is_keras_optimizer(given):
        make, words = twin(given)
        return Recipe(
            lambda named: make(list(named.values())), words, given, not words.startswith("SGD(")
        )
    if not callable(given):
        raise ArgumentError(
            "optimizer must be an optimizer, or a function from parameters to one; "
            f"got {type(given).__name__}."
        )
    try:
        made = given(list(program.parameters.values()))
    except Exception as error:
        raise ArgumentError(
            "optimizer must return a torch optimizer when it is called with parameters; it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ArgumentError(
            "optimizer must return a torch optimizer when it is called with parameters; it "
            f"returned {type(made).__name__}."
        )
    normalises = not isinstance(made, torch.optim.SGD)
    return Recipe(lambda named: given(list(named.values())), described(made), None, normalises)


def described(optimizer: torch.optim.Optimizer) -> str:
    """Kind and settings, those that a user writes: "Adam(lr=0.001, betas=(0.9, 0.999))"."""
    group = optimizer.param_groups[0]
    shown = {key: value for key, value in group.items() if key not in _UNSAID and value}
    settings = ", ".join(f"{key}={value!r}" for key, value in shown.items())
    return f"{type(optimizer).__name__}({settings})"


def hyperparameters(kind: type, group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group that its optimizer's constructor takes."""
    return {
        key: value
        for key, value in _accepted(kind, group).items()
        if key != "params" and isinstance(value, (int, float, bool, tuple, type(None)))
    }


_UNSAID = frozenset(
    {"params", "foreach", "maximize", "capturable", "differentiable", "fused", "initial_lr",
     "decoupled_weight_decay"}
)  # fmt: skip


def _configured(program: Program) -> Any:
    target = program.target
    if is_lightning_module(target):
        return _lightnings(target)
    compiled = getattr(target, "optimizer", None)
    if is_keras_optimizer(compiled):
        return compiled
    raise ArgumentError(
        "optimizer must be given: the optimizer you train with, or a function from parameters to "
        "one, say lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
    )


def _lightnings(module: Any) -> Any:
    try:
        made = module.configure_optimizers()
    except Exception as error:
        raise ArgumentError(
            f"optimizer must be given: {type(module).__name__}.configure_optimizers raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], (list, tuple)):
        made = made[0]  # optimizers, schedulers
    if isinstance(made, (list, tuple)) and len(made) == 1:
        made = made[0]
    if isinstance(made, dict):
        made = made.get("optimizer")
    if not isinstance(made, torch.optim.Optimizer):
        raise ArgumentError(
            "optimizer must be given: one optimizer is followed, and "
            f"{type(module).__name__}.configure_optimizers returned {type(made).__name__}."
        )
    return made


def _from_instance(optimizer: torch.optim.Optimizer, program: Program) -> Recipe:
    names = {id(tensor): name for name, tensor in program.parameters.items()}
    groups = [
        (
            [names[id(p)] for p in group["params"] if id(p) in names],
            {key: value for key, value in group.items() if key != "params"},
        )
        for group in optimizer.param_groups
    ]
    groups = [(chosen, options) for chosen, options in groups if chosen]
    if not groups:
        raise ArgumentError(
            f"optimizer must train parameters of {program.description}; it holds none of them."
        )
    kind, defaults = type(optimizer), dict(optimizer.defaults)

    def make(named: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        found: list[dict[str, Any]] = [
            {"params": [named[name] for name in chosen], **options} for chosen, options in groups
        ]
        return kind(found, **_accepted(kind, defaults))

    try:
        make(program.parameters)
    except Exception as error:
        raise ArgumentError(
            "optimizer must be one that can be made again from its defaults; "
            f"{kind.__name__} raised {type(error).__name__}: {error}. Pass a function from "
            "parameters to an optimizer."
        ) from error
    normalises = not isinstance(optimizer, torch.optim.SGD)
    return Recipe(make, described(optimizer), None, normalises)


def _accepted(kind: type, defaults: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        return dict(defaults)
    names = {one.name for one in parameters}
    return {key: value for key, value in defaults.items() if key in names}


class _Still(Twin):
    """For a program without weights: there is nothing to train."""
