"""Programs from a LightningModule's `training_step`, without a Trainer and without logging.

Lightning itself is not imported: the module is recognised by what it can do.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from ranum.analysis.capture.program import Program
from ranum.analysis.capture.torch import _as_loss


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
) -> Program:
    """A program that calls `module.training_step(batch, batch_idx)`.

    Logging, optimizers and progress are stubbed while it runs, so nothing reaches the
    Trainer. A module with manual optimization runs its own backward passes; its optimizer
    steps are left out.

    Args:
        module: The LightningModule, attached to a Trainer or not.
        batch: One batch, on the module's device.
        batch_idx: Passed on if the step takes it.
        backward: Whether the backward pass belongs to the step.
        precision: Makes the context in which the Trainer runs its forward pass (autocast).
    """
    training_step: Callable[..., Any] = getattr(module, "training_step")  # noqa: B009 - for mypy
    takes_index = len(inspect.signature(training_step).parameters) > 1

    def step(batch: Any) -> Tensor | None:
        with detached(module), precision():
            output = training_step(batch, batch_idx) if takes_index else training_step(batch)
        if not getattr(module, "automatic_optimization", True):
            return None
        return _as_loss(output)

    return Program(
        step=step,
        arguments=(batch,),
        argument_names=("batch",),
        model=module,
        parameters={name: p for name, p in module.named_parameters() if p.requires_grad},
        backward=backward,
        description=f"{type(module).__name__}.training_step",
    )


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
