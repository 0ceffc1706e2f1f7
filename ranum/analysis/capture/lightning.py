"""Programs from a LightningModule's `training_step`, without a Trainer and without logging.

Lightning itself is not imported: the module is recognised by what it can do.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.torch import as_loss
from ranum.errors import ArgumentError

Step = Literal["training", "validation"]


def is_lightning_module(target: Any) -> bool:
    """True for a module with a `training_step` of its own."""
    return isinstance(target, nn.Module) and callable(getattr(target, "training_step", None))


def lightning_program(
    module: nn.Module,
    batch: Any,
    *,
    batch_idx: int = 0,
    backward: bool = True,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    kind: Step = "training",
) -> Program:
    """A program that calls `module.training_step(batch, batch_idx)`, or `validation_step`.

    Logging, optimizers and progress are stubbed while it runs, so nothing reaches the
    Trainer. A module with manual optimization runs its own backward passes; its optimizer
    steps are left out.

    Args:
        module: The LightningModule, attached to a Trainer or not.
        batch: One batch, on the module's device.
        batch_idx: Passed on if the step takes it.
        backward: Whether the backward pass belongs to the step.
        precision: Makes the context in which the Trainer runs its forward pass (autocast).
        kind: "validation" runs in evaluation mode and has no backward pass.

    Raises:
        ArgumentError: If the module has no such step, or one of another shape.
    """
    name = f"{kind}_step"
    own_step: Any = getattr(module, name, None)
    if own_step is None or _is_lightnings(type(module), name):
        raise ArgumentError(f"{type(module).__name__} must have a {name}; it has none.")
    takes_index = len(inspect.signature(own_step).parameters) > 1
    is_training = kind == "training"

    def step(batch: Any) -> Tensor | None:
        with detached(module), precision(), _mode(module, is_training):
            output = own_step(batch, batch_idx) if takes_index else own_step(batch)
        if is_training and not getattr(module, "automatic_optimization", True):
            return None
        return as_loss(output)

    return Program(
        step=step,
        arguments=(batch,),
        argument_names=("batch",),
        model=module,
        parameters={name: p for name, p in module.named_parameters() if p.requires_grad},
        backward=backward and is_training,
        description=f"{type(module).__name__}.{name}",
    )


@contextmanager
def _mode(module: nn.Module, is_training: bool) -> Iterator[None]:
    """Evaluation mode without gradients, for a step that is not training."""
    if is_training:
        yield
        return
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for each, mode in modes:
            each.training = mode


def _is_lightnings(kind: type, name: str) -> bool:
    """True for a hook that Lightning's own class defines, as a placeholder."""
    hook = getattr(kind, name, None)
    return str(getattr(hook, "__module__", "")).startswith(("lightning.", "pytorch_lightning."))


class _StillOptimizer:
    """Stands for an optimizer: runs the closure and clears gradients, but moves no weight."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.param_groups: list[dict[str, Any]] = [{"params": list(module.parameters()), "lr": 0.0}]
        self.state: dict[Any, Any] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return closure() if closure is not None else None

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._module.zero_grad(set_to_none=set_to_none)

    def toggle_model(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        return nullcontext()


class _StillScheduler:
    """Stands for a learning rate scheduler that never steps."""

    def step(self, *args: Any, **kwargs: Any) -> None:
        return None

    def get_last_lr(self) -> list[float]:
        return [0.0]


def _one_or_list(things: list[Any]) -> Any:
    return things[0] if len(things) == 1 else things


def _optimizer_count(module: nn.Module) -> int:
    """How many optimizers the module's Trainer has, or its configuration makes."""
    trainer = getattr(module, "_trainer", None)
    if trainer is not None and trainer.optimizers:
        return len(trainer.optimizers)
    configure: Any = getattr(module, "configure_optimizers", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, where nothing is configured
        configured = configure() if callable(configure) else None
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
        configured = configured[0]  # optimizers and schedulers
    return len(configured) if isinstance(configured, (list, tuple)) and configured else 1


@contextmanager
def detached(module: nn.Module) -> Iterator[None]:
    """Cuts a LightningModule off from its Trainer: logging and optimizer steps do nothing."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    def manual_backward(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)

    stubs: dict[str, Any] = {
        "log": nothing,
        "log_dict": nothing,
        "print": nothing,
        "optimizers": lambda *args, **kwargs: _one_or_list(
            [_StillOptimizer(module) for _ in range(_optimizer_count(module))]
        ),
        "lr_schedulers": lambda: _one_or_list(
            [_StillScheduler() for _ in range(_optimizer_count(module))]
        ),
        "manual_backward": manual_backward,
        "toggle_optimizer": nothing,
        "untoggle_optimizer": nothing,
        "clip_gradients": nothing,
    }
    own = vars(module)
    hidden = {name: own[name] for name in stubs if name in own}
    own.update({name: stub for name, stub in stubs.items() if hasattr(type(module), name)})
    try:
        yield
    finally:
        for name in stubs:
            own.pop(name, None)
        own.update(hidden)
