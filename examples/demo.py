"""Ranum's main job, end to end, on real data: `python examples/demo.py`.

1. Trains `digits.LitDigits` as it is and watches it die of NaN.
2. Trains it again with one more line, `callbacks=[RanumCallback()]`.
3. Trains it under a hopeless learning rate: the search finds a configuration that works.

Exits with 1 unless the first run fails and the other two end above 95 % test accuracy.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from digits import LitDigits, digits
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console

from ranum import RanumCallback

EPOCHS = 15
WANTED = 0.95
console = Console(highlight=False)


class Progress(pl.Callback):
    """One line per epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.first_bad: int | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        if self.first_bad is None and not math.isfinite(self.losses[-1]):
            self.first_bad = trainer.global_step

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        taken = [loss for loss in self.losses if math.isfinite(loss)]
        mean = sum(taken) / len(taken) if math.isfinite(self.losses[-1]) else math.nan
        console.print(f"  epoch {trainer.current_epoch + 1:2d}   loss {mean:.4f}", style="dim")
        self.losses.clear()


def train(name: str, directory: Path, learning_rate: float, callbacks: list[Any]) -> Any:
    """Trains a fresh model; its test accuracy and the epoch lines' callback."""
    shutil.rmtree(directory / name, ignore_errors=True)  # of an earlier demo
    pl.seed_everything(0, verbose=False)
    model = LitDigits(learning_rate)
    train_loader, test_loader = digits()
    progress = Progress()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[progress, *callbacks],
        logger=TensorBoardLogger(directory, name=name, version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    trainer.fit(model, train_loader)
    accuracy = trainer.test(model, test_loader, verbose=False)[0]["test_accuracy"]
    return accuracy, progress


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    directory = parser.parse_args().output
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    started = time.perf_counter()

    console.rule("1. LitDigits as it is")
    before, progress = train("without", directory, 0.2, [])
    console.print(f"First NaN in step {progress.first_bad}; test accuracy {before:.1%}.\n")

    console.rule("2. The same, with callbacks=[RanumCallback()]")
    guard = RanumCallback()
    guarded, _ = train("guarded", directory, 0.2, [guard])
    console.print(f"Test accuracy {guarded:.1%}.\n")

    console.rule("3. A hopeless learning rate of 10,000")
    searching = RanumCallback()
    repaired, _ = train("repaired", directory, 1e4, [searching])
    console.print(f"Test accuracy {repaired:.1%}.\n")

    console.rule("What to look at")
    for name in ("guarded", "repaired"):
        console.print(f"  {directory / name / 'ranum_report' / 'report.html'}", soft_wrap=True)
    console.print(f"  tensorboard --logdir {directory}   (Custom Scalars, Scalars, Text)")
    console.print(f"\nDone in {time.perf_counter() - started:.0f} seconds.")
    wanted = progress.first_bad is not None and min(guarded, repaired) > WANTED
    return 0 if wanted else 1


if __name__ == "__main__":
    sys.exit(main())
