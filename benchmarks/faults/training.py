"""One small training, in a plain loop, under Lightning and under Hugging Face's Trainer."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ranum import Guard
from ranum.guards import Retry, Rollback, Skip

Batch = dict[str, Tensor]
Poison = Callable[[int, nn.Module, Any], None]
"""Called after the step of a number, when weights and moments have been written."""

STEPS = 40
SNAPSHOT_EVERY = 8


class Net(nn.Module):
    """A classifier with BatchNorm and dropout, which returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(16, 4),
        )
        self.bad_loss = False

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss, by the name under which Hugging Face's Trainer looks for it."""
        loss = nn.functional.cross_entropy(self.net(x), labels)
        if self.bad_loss:
            self.bad_loss = False
            loss = loss * torch.nan
        return {"loss": loss}


def batches() -> list[Batch]:
    """What every run trains on."""
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "x": torch.randn(8, 8, generator=generator),
            "labels": torch.randint(0, 4, (8,), generator=generator),
        }
        for _ in range(STEPS)
    ]


class Listed(Dataset[Batch]):
    """Batches by number; each is counted when it is fetched."""

    def __init__(self, listed: Sequence[Batch]) -> None:
        self._listed = listed

    def __len__(self) -> int:
        return len(self._listed)

    def __getitem__(self, index: int) -> Batch:
        return self._listed[index]


class Fault:
    """What is put into a run, once.

    Args:
        kind: "data", "loss", "gradient", "weight", "buffer" or "moment".
        value: NaN or an infinity.
        step: Before which optimizer step, counting those that are taken.
    """

    def __init__(self, kind: str, value: float, step: int) -> None:
        self.kind, self.value, self.step = kind, value, step
        self._is_done = False
        self._count = 0

    def before(self, model: Net, optimizer: Any) -> None:
        """Called before each forward pass."""
        count, self._count = self._count, self._count + 1
        if self._is_done or count < self.step or self.kind == "data":
            return
        if self.kind == "moment" and not optimizer.state:
            return
        self._is_done = True
        with torch.no_grad():
            if self.kind == "loss":
                model.bad_loss = True
            elif self.kind == "gradient":
                weight = model.net[0].weight
                handle = weight.register_hook(lambda gradient: self._spoiled(gradient, handle))
            elif self.kind == "weight":
                model.net[0].weight[1, 2] = self.value
            elif self.kind == "buffer":
                model.net[1].running_mean[3] = self.value
            elif self.kind == "moment":
                optimizer.state[model.net[4].weight]["exp_avg"][1, 2] = self.value

    def _spoiled(self, gradient: Tensor, handle: Any) -> Tensor:
        handle.remove()
        gradient = gradient.clone()
        gradient[1, 2] = self.value
        return gradient


def remedies() -> list[Any]:
    """The usual ladder, with learning rates left alone, so that runs can be compared."""
    return [Retry(), Skip(), Rollback(1.0)]


def optimizer_of(model: nn.Module, **options: Any) -> Any:
    """Adam, whose moments can go bad too."""
    return torch.optim.AdamW(model.parameters(), lr=0.01, **options)


def plain(
    listed: Sequence[Batch], fault: Fault | None, *, is_late: bool = False
) -> tuple[list[Tensor], Any]:
    """A loop with a guard; with `is_late`, one whose steps the device leaves out."""
    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model, fused=is_late)
    guard = Guard(
        model, optimizer, snapshot_every=SNAPSHOT_EVERY, remedies=remedies(), late=is_late
    )
    for batch in guard.batches(listed):
        if fault is not None:
            fault.before(model, optimizer)
        with guard.step(batch) as step:
            step.backward(lambda batch=batch: model(**batch)["loss"])
    return _state(model, optimizer), guard.history


def lightning(listed: Sequence[Batch], fault: Fault | None) -> tuple[list[Tensor], Any]:
    """Lightning's Trainer with the callback."""
    import pytorch_lightning as pl

    from ranum.callbacks.pytorch_lightning import RanumCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if fault is not None:
                fault.before(self.model, self.trainer.optimizers[0])

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return optimizer_of(self.model)

    class Callback(RanumCallback):
        def _remedies(self, trainer: Any, pl_module: Any) -> list[Any]:
            return remedies()

    torch.manual_seed(0)
    module = Module()
    callback = Callback("off", verbose=False, snapshot_every=SNAPSHOT_EVERY)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[callback],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            devices=1,
        )
        trainer.fit(module, DataLoader(Listed(listed), batch_size=None))
    return _state(module.model, trainer.optimizers[0]), callback.history


def huggingface(listed: Sequence[Batch], fault: Fault | None) -> tuple[list[Tensor], Any]:
    """Hugging Face's Trainer with the callback."""
    import transformers

    from ranum.callbacks.huggingface import RanumCallback

    class Injecting(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if fault is not None:
                fault.before(kwargs["model"], kwargs["optimizer"].optimizer)

    class Callback(RanumCallback):
        def _make_guard(self, kwargs: Any) -> None:
            super()._make_guard(kwargs)
            assert self._guard is not None
            self._guard._ladder._active = remedies()

    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model)
    callback = Callback("off", verbose=False, snapshot_every=SNAPSHOT_EVERY)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=1,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=Listed(listed),
            data_collator=_only,
            optimizers=(optimizer, None),
            callbacks=[callback, Injecting()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return _state(model, optimizer), callback.history


def _only(batch: list[Batch]) -> Batch:
    (one,) = batch
    return one


def _state(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """All that a run ends with: weights, buffers, moments, random numbers."""
    state = [tensor.detach().clone() for tensor in model.state_dict().values()]
    state += [v.clone() for entries in optimizer.state.values() for v in entries.values()]
    return [*state, torch.get_rng_state()]


ADAPTERS: dict[str, Callable[[Sequence[Batch], Fault | None], tuple[list[Tensor], Any]]] = {
    "plain": plain,
    "late": partial(plain, is_late=True),
    "lightning": lightning,
    "huggingface": huggingface,
}
