"""What a guard needs to know of Lightning's Trainer, in either namespace."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ranum.analysis.capture.lightning import lightning_program
from ranum.analysis.scan import Batches

TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
"""Hooks by which a module or a data module may change a batch."""
SCANNED_BATCHES = 16
SCAN_SECONDS = 1.0


def replay(trainer: Any, module: Any, batch: Any, batch_idx: int) -> Tensor | None:
    """Forward, loss and backward of one batch, without the Trainer noticing.

    It goes through the replica, if there is one. The loss is divided among the batches of a step,
    as Lightning does.
    """
    program = lightning_program(module, batch, batch_idx=batch_idx, precision=precision(trainer))
    wrapper = trainer.strategy.model
    loss: Tensor | None
    if isinstance(wrapper, DistributedDataParallel):
        loss = _through(wrapper, module, partial(program.step, batch))
    else:
        loss = program.step(batch)
    if loss is not None and loss.requires_grad:
        (loss / trainer.accumulate_grad_batches).backward()
    return loss


def _through(wrapper: Any, module: Any, step: Any) -> Any:
    """What `step` gives, called by the wrapper in place of the module's `forward`."""
    own = vars(module).get("forward")

    def put_back() -> None:
        vars(module).pop("forward", None)
        if own is not None:
            module.forward = own

    def forward(_: Tensor) -> Any:
        put_back()  # the step may call it
        return step()

    module.forward = forward
    try:
        # An argument, without which a wrapper on a GPU cannot move its arguments there.
        return wrapper(torch.zeros(()))
    finally:
        put_back()


def unscaled(loss: Tensor, trainer: Any) -> Tensor:
    """The loss without the factor of a gradient scaler; Lightning's hook comes after it."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return loss
    scaled_one: Tensor = scaler.scale(loss.new_ones(()))
    return loss / scaled_one


def gradient_clip(trainer: Any, pl_module: Any) -> float | None:
    """The norm that the Trainer clips gradients to, 0 if it does not; None if it does otherwise."""
    algorithm = getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm)
    is_own = not _is_lightnings(type(pl_module).configure_gradient_clipping)
    if is_own or algorithm not in (None, "norm"):
        return None
    return trainer.gradient_clip_val or 0


def precision(trainer: Any) -> Any:
    """Makes the context in which the Trainer runs a step."""
    return getattr(trainer.precision_plugin, "train_step_context", nullcontext)


def summary_writer(trainer: Any) -> Any:
    """TensorBoard's writer among the loggers; None if there is none."""
    for logger in trainer.loggers:
        experiment = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_custom_scalars") and hasattr(experiment, "add_scalar"):
            return experiment
    return None


def training_loader(trainer: Any) -> Any:
    """The loader of the training data; a list if there are several."""
    loader = trainer.train_dataloader
    return loader[0] if isinstance(loader, (list, tuple)) and len(loader) == 1 else loader


def training_data(trainer: Any, pl_module: Any) -> Batches | None:
    """The training data as `training_step` gets it, to be read with care."""
    owners = [owner for owner in (pl_module, trainer.datamodule) if owner is not None]
    hooks = [getattr(type(owner), name, None) for owner in owners for name in TRANSFER_HOOKS]
    own = [hook for hook in hooks if hook is not None and not _is_lightnings(hook)]
    if own and trainer.datamodule is not None:
        return None  # what such hooks change in a data module could not be put back
    return Batches(
        training_loader(trainer),
        convert=partial(to_device, trainer),
        batches=SCANNED_BATCHES,
        seconds=SCAN_SECONDS,
        is_careful=True,
        model=pl_module if own else None,
    )


def _is_lightnings(hook: Any) -> bool:
    return str(hook.__module__).startswith(("lightning.", "pytorch_lightning."))


def to_device(trainer: Any, batch: Any) -> Any:
    """A batch as a step gets it."""
    batch = trainer.precision_plugin.convert_input(batch)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
