"""A training process that is killed (SIGKILL) at a random step, in any phase, and started again.

    python -m benchmarks.faults.killed --runs 40

Plain loops are saved and resumed as docs/resuming.md says, every `SAVE_EVERY` steps; Lightning by
its own `ModelCheckpoint` and Hugging Face's Trainer by its own checkpoints, from the last one. A
NaN gradient comes before some of the kills. What counts: the bits at the end are those of a run
that nobody has killed. "worker": a worker process of the loader is killed instead, and nothing is
started again.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.faults.tally import Result, tell
from benchmarks.faults.training import (
    SNAPSHOT_EVERY,
    STEPS,
    Batch,
    Fault,
    Listed,
    Net,
    _only,
    batches,
    optimizer_of,
    remedies,
)
from benchmarks.faults.training import _state as state_of
from ranum import Guard
from ranum.guards._memory import Memory

SAVE_EVERY = 5
PHASES = ("between steps", "forward", "backward", "optimizer", "snapshot", "saving")
LAST = "last.pt"


class Killer:
    """Kills this process in a phase of a step.

    Args:
        phase: One of `PHASES`; "" for never.
        step: The first in which the phase counts.
    """

    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step = phase, step
        self.now = -1

    def at(self, phase: str) -> None:
        """Called in each phase of a step."""
        if phase == self.phase and self.now >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def save(folder: Path, killer: Killer, **state: Any) -> None:
    """Writes a checkpoint: the last one is there until the new one is whole."""
    new = folder / (LAST + ".new")
    torch.save(state, new)
    if killer.phase == "saving" and killer.now >= killer.step:
        new.write_bytes(new.read_bytes()[: new.stat().st_size // 2])  # killed half-way
        killer.at("saving")
    os.replace(new, folder / LAST)


def plain(folder: Path, killer: Killer, fault: Fault | None) -> list[Tensor]:
    """A loop that is saved every few steps, and goes on from what it finds in the folder."""
    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model)
    guard = Guard(model, optimizer, snapshot_every=SNAPSHOT_EVERY, remedies=remedies())
    loader = DataLoader(Listed(batches()), batch_size=None, shuffle=True)
    first, start = 0, torch.get_rng_state()  # from which the loader draws its order
    if (folder / LAST).exists():
        saved = torch.load(folder / LAST, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        guard.load_state_dict(saved["guard"])
        first, start = saved["batches"], saved["start"]
        torch.set_rng_state(start)
    following = iter(loader)
    for _ in range(first):
        next(following)
    if first:
        torch.set_rng_state(saved["random"])
    optimizer.register_step_post_hook(lambda *_: killer.at("optimizer"))
    model.net[2].register_full_backward_hook(lambda *_: killer.at("backward"))
    done = first
    for batch in guard.batches(following):
        killer.now = done
        killer.at("between steps")
        if fault is not None:
            fault.before(model, optimizer)
        with guard.step(batch) as step:
            killer.at("forward")
            step.backward(lambda batch=batch: model(**batch)["loss"])
        if guard.is_rewound:
            continue  # batches come again: what is saved now would not know of it
        done = first + guard.batches_done
        if done % SAVE_EVERY == 0:
            save(
                folder,
                killer,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                guard=guard.state_dict(),
                random=torch.get_rng_state(),
                start=start,
                batches=done,
            )
    return state_of(model, optimizer)


def lightning(folder: Path, killer: Killer, fault: Fault | None) -> list[Tensor]:
    """Lightning's Trainer, with its own checkpoints."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    from ranum.callbacks.pytorch_lightning import RanumCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            killer.now = self.trainer.global_step
            killer.at("between steps")
            if fault is not None:
                fault.before(self.model, self.trainer.optimizers[0])

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            killer.at("forward")
            loss: Tensor = self.model(**batch)["loss"]
            return loss

        def on_after_backward(self) -> None:
            killer.at("backward")

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_of(self.model)
            optimizer.register_step_post_hook(lambda *_: killer.at("optimizer"))
            return optimizer

    class Callback(RanumCallback):
        def _remedies(self, trainer: Any, pl_module: Any) -> list[Any]:
            return remedies()

    torch.manual_seed(0)
    module = Module()
    files = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=SAVE_EVERY, save_top_k=-1
    )
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[Callback("off", verbose=False, snapshot_every=SNAPSHOT_EVERY), files],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        devices=1,
    )
    saved = sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
    last = saved[-1] if saved else None
    loader = DataLoader(Listed(batches()), batch_size=None, shuffle=True)
    trainer.fit(module, loader, ckpt_path=last)
    return state_of(module.model, trainer.optimizers[0])


def huggingface(folder: Path, killer: Killer, fault: Fault | None) -> list[Tensor]:
    """Hugging Face's Trainer, with its own checkpoints."""
    import transformers

    from ranum.callbacks.huggingface import RanumCallback

    class Killing(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            killer.now = state.global_step
            killer.at("between steps")
            if fault is not None:
                fault.before(kwargs["model"], kwargs["optimizer"].optimizer)

    class Callback(RanumCallback):
        def _make_guard(self, kwargs: Any) -> None:
            super()._make_guard(kwargs)
            assert self._guard is not None
            self._guard._ladder._active = remedies()

    torch.manual_seed(0)
    model = Net()
    model.net[0].register_forward_pre_hook(lambda *_: killer.at("forward"))
    model.net[2].register_full_backward_hook(lambda *_: killer.at("backward"))
    optimizer = optimizer_of(model)
    optimizer.register_step_post_hook(lambda *_: killer.at("optimizer"))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_strategy="no",
        save_steps=SAVE_EVERY,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Listed(batches()),
        data_collator=_only,
        optimizers=(optimizer, None),
        callbacks=[Callback("off", verbose=False, snapshot_every=SNAPSHOT_EVERY), Killing()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    return state_of(model, optimizer)


WAYS: dict[str, Callable[[Path, Killer, Fault | None], list[Tensor]]] = {
    "plain": plain,
    "lightning": lightning,
    "huggingface": huggingface,
}


# --- workers -----------------------------------------------------------------------------------


class Fatal(Listed):
    """Batches by number; the worker that comes to one of them dies, once."""

    def __init__(self, listed: list[Batch], fatal: int, folder: Path) -> None:
        super().__init__(listed)
        self._fatal, self._sign = fatal, folder / "died"

    def __getitem__(self, index: int) -> Batch:
        if index == self._fatal and not self._sign.exists():
            self._sign.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def with_workers(folder: Path, fatal: int) -> list[Tensor]:
    """A loop whose loader has two workers, one of which dies at a batch; never if negative."""
    torch.manual_seed(0)
    model = Net()
    optimizer = optimizer_of(model)
    guard = Guard(model, optimizer, snapshot_every=SNAPSHOT_EVERY, remedies=remedies())
    loader = DataLoader(
        Fatal(batches(), fatal, folder), batch_size=None, shuffle=True, num_workers=2
    )
    for batch in guard.batches(loader):
        with guard.step(batch) as step:
            step.backward(lambda batch=batch: model(**batch)["loss"])
    return state_of(model, optimizer)


# --- the other end -----------------------------------------------------------------------------


def in_child(work: Callable[[], list[Tensor]], folder: Path) -> int:
    """Runs in a process of its own, which writes what it ends with; its wait status."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    try:
        torch.save(work(), folder / "end.pt")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def killed(
    way: str, phase: str, step: int, fault_at: int | None, reference: list[Tensor]
) -> Result:
    """A run that is killed and started again until it ends."""
    kind = f"{way}, {phase}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        killer = Killer(phase, step)
        if phase == "snapshot":
            killer = _killing_snapshots(killer)
        fault = None if fault_at is None else Fault("gradient", math.nan, fault_at)
        status = in_child(lambda: WAYS[way](folder, killer, fault), folder)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        Memory.flush = _FLUSH  # type: ignore[method-assign]
        again = in_child(lambda: WAYS[way](folder, Killer("", 0), None), folder)
        if again or not was_killed:
            what = "was not killed" if not was_killed else "did not end when started again"
            note = f"{kind} at {step} {what}"
            return Result(
                kind=kind, seen=was_killed, at_once=False, same=False, lost=bool(again), note=note
            )
        return _ended(kind, folder, reference, "resumed")


_FLUSH = Memory.flush


def _killing_snapshots(killer: Killer) -> Killer:
    def flush(self: Memory) -> None:
        killer.at("snapshot")
        _FLUSH(self)

    Memory.flush = flush  # type: ignore[method-assign]
    return killer


def worker_killed(fatal: int, reference: list[Tensor]) -> Result:
    """A run one of whose workers is killed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        status = in_child(lambda: with_workers(folder, fatal), folder)
        if status:
            return Result(kind="plain, worker", seen=False, at_once=False, same=False, lost=True)
        return _ended("plain, worker", folder, reference, "loader started again")


def _ended(kind: str, folder: Path, reference: list[Tensor], done: str) -> Result:
    state = torch.load(folder / "end.pt", weights_only=True)
    is_finite = all(bool(t.isfinite().all()) for t in state if t.is_floating_point())
    is_same = len(state) == len(reference) and all(map(torch.equal, state, reference))
    return Result(kind=kind, seen=True, at_once=True, same=is_same, lost=not is_finite, done=done)


def _reference(work: Callable[[Path], list[Tensor]]) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if in_child(lambda: work(folder), folder):
            raise SystemExit("the reference run has failed")
        found: list[Tensor] = torch.load(folder / "end.pt", weights_only=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.killed", description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--way", choices=(*WAYS, "worker"), help="only this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    draw = random.Random(arguments.seed)
    ways = [arguments.way] if arguments.way else [*WAYS, "worker"]
    if "lightning" in ways:
        importlib.import_module("ranum.callbacks.pytorch_lightning")  # not in every process
    if "huggingface" in ways:
        importlib.import_module("ranum.callbacks.huggingface")
    references = {
        "plain": lambda: _reference(lambda folder: plain(folder, Killer("", 0), None)),
        "lightning": lambda: _reference(lambda folder: lightning(folder, Killer("", 0), None)),
        "huggingface": lambda: _reference(lambda folder: huggingface(folder, Killer("", 0), None)),
        "worker": lambda: _reference(lambda folder: with_workers(folder, -1)),
    }
    known = {way: references[way]() for way in ways}
    results = []
    for number in range(arguments.runs):
        way = ways[number % len(ways)]
        step = draw.randrange(1, STEPS - SNAPSHOT_EVERY - 1)
        if way == "worker":
            results.append(worker_killed(draw.randrange(STEPS), known[way]))
            continue
        phases = PHASES if way == "plain" else PHASES[:4]
        phase = phases[number // len(ways) % len(phases)]
        fault_at = draw.choice((None, draw.randrange(step) if step > 1 else None))
        results.append(killed(way, phase, step, fault_at, known[way]))
    return 0 if tell(results) else 1


if __name__ == "__main__":
    sys.exit(main())
