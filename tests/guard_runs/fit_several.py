"""One of the processes of a Lightning run under a guard; see `processes`.

Each argument is a run: the strategy ("ddp" or "fsdp"), the fault, and the remedies; underscores
stand for spaces.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from guard_runs.several import AT, REMEDIES, digest, whole
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from ranum.callbacks.pytorch_lightning import RanumCallback


class Module(pl.LightningModule):
    """A classifier; its second process may meet one bad batch."""

    def __init__(self, way: str, fault: str) -> None:
        super().__init__()
        self.way, self.fault = way, fault
        self.attempts = 0
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.1), nn.Linear(9, 3)
        )

    def configure_model(self) -> None:
        if self.way == "fsdp":
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.net[0], mesh=mesh)
            fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        if self.fault == "broken off" and batch_idx == AT:
            raise KeyError("stands for SIGKILL")
        is_here = self.global_rank == 1 or self.fault == "both by hand"
        absent = ("None", "None and bad", "by hand", "both by hand")
        if self.fault in absent and batch_idx == AT and is_here:
            if self.fault.startswith("None"):
                self.net(x)  # of which no trace may stay
                return None
            return sum(p.flatten()[:0].sum() for p in self.parameters())
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        others = {"by hand": AT, "both by hand": AT + 1}
        return loss * 2 if batch_idx == others.get(self.fault) else loss

    def on_after_backward(self) -> None:
        self.attempts += 1
        gradient = self.net[0].weight.grad
        if self.attempts != AT + 1 or self.fault not in ("gradient", "shard"):
            return
        if self.fault == "gradient":
            gradient[0, 0] = torch.nan
        elif self.global_rank == 1:
            gradient.to_local()[0, 0] = torch.nan

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def train(way: str, fault: str, remedies: str, path: str | None = None) -> dict[str, Any]:
    """A run, and what it ends with in this process."""
    folder = f"{sys.argv[1]}/{way}"
    if fault == "resumed":
        with suppress(KeyError):
            train(way, "broken off", remedies)
        return train(way, "none", remedies, f"{folder}/step=6.ckpt")

    class Callback(RanumCallback):
        def _remedies(self, trainer: Any, pl_module: Any) -> list[Any]:
            return REMEDIES.get(remedies, list)()

    uneven = fault in ("None", "None and bad", "share")
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(96, 4, generator=generator)
    rows = torch.arange(96).reshape(12, 2, 4)  # step, process, sample
    y = torch.arange(96) % 3
    if fault in ("data", "share", "part"):
        x[rows[AT, 1, 1], 2] = torch.nan
    if fault == "None and bad":  # what is left are the second batches of both
        x[rows[AT, 0, 1], 2] = torch.nan
    if fault == "left":
        rows = torch.cat((rows[:AT], rows[AT + 1 :]))
    order = rows[:, int(os.environ["RANK"])].flatten()
    module = Module(way, fault)
    callback = Callback("off", verbose=False, snapshot_every=5, strict=True, uneven=uneven)
    files = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[callback, files] if fault == "broken off" else [callback],
        strategy="ddp" if way == "ddp" else ModelParallelStrategy(2, 1),
        accelerator="cpu",
        devices=2,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=fault == "broken off",
        accumulate_grad_batches=2 if fault in ("part", "both by hand", "None and bad") else 1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=sys.argv[1],
    )
    torch.manual_seed((9 if path else 5) + trainer.global_rank)
    data = TensorDataset(x[order], y[order])
    is_shuffled = fault == "broken off" or remedies == "shuffled" or bool(path)
    trainer.fit(module, DataLoader(data, batch_size=4, shuffle=is_shuffled), ckpt_path=path)
    (optimizer,) = trainer.optimizers
    state = [*module.state_dict().values(), torch.get_rng_state()]
    state += [value for entries in optimizer.state.values() for value in entries.values()]
    history = callback.history
    return {
        "all": digest(state),
        "weights": digest([whole(p) for p in module.parameters()]),
        "rates": [group["lr"] for group in optimizer.param_groups],
        "norms": [repr(reading.grad_norm) for reading in history.readings],
        "incidents": [
            [i.action, i.step, i.back_to, i.detail, str(i.culprit)] for i in history.incidents
        ],
        "steps": trainer.global_step,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    runs = {
        name: train(*(word.replace("_", " ") for word in name.split())) for name in sys.argv[2:]
    }
    with open(f"{sys.argv[1]}/{distributed.get_rank()}.json", "w") as file:
        json.dump(runs, file)
    distributed.destroy_process_group()
