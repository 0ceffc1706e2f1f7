"""A fit that was broken off and goes on from its own checkpoint ends with the same bits."""

from __future__ import annotations

import importlib
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ranum.errors import RanumWarning
from ranum.guards import Rollback

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:.*TensorBoard support for.*"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:.*callback states.*"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]


@pytest.fixture(params=[NAMESPACES[0], pytest.param(NAMESPACES[1], marks=pytest.mark.slow)])
def pl(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


class BrokenOff(Exception):
    """Stands for SIGKILL, which `benchmarks.faults.killed` sends."""


class Noisy(Dataset):
    """Samples that draw from all generators there are."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.rand() + torch.rand(4)
        return index / 40 + 0.1 * noise.float(), torch.tensor(index % 3)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        for index in range(40):
            yield torch.rand(4) + index / 40, torch.tensor(index % 3)


def build(pl: Any, *, broken_off: int, fault: int) -> Any:
    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
            )
            self.calls = 0
            self.is_spoiled = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.calls += 1
            if self.calls == broken_off + 1:
                raise BrokenOff
            x, y = batch
            loss = F.cross_entropy(self.net(x), y)
            if self.calls == fault + 1 and not self.is_spoiled:
                self.is_spoiled = True
                loss = loss * torch.nan
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(3)  # as a model that samples does

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Lit()


def fit(
    pl: Any,
    folder: Any,
    *,
    seed: int = 0,
    broken_off: int = -1,
    fault: int = -1,
    path: Any = None,
    workers: int = 0,
    stream: bool = False,
    saving: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """What a run ends with; files go to the folder."""
    cls = importlib.import_module(f"ranum.callbacks.{pl.__name__.split('.')[0]}").RanumCallback

    class Chosen(cls):
        def _remedies(self, trainer: Any, pl_module: Any) -> Any:
            return [Rollback(1.0)]

    for function in (torch.manual_seed, random.seed, np.random.seed):
        function(seed)
    module = build(pl, broken_off=broken_off, fault=fault)
    files = importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(
        folder, filename="{step}", save_top_k=-1, **(saving or {"every_n_train_steps": 3})
    )
    trainer = pl.Trainer(
        max_epochs=3,
        callbacks=[Chosen("off", verbose=False, strict=True, snapshot_every=4), files],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=0,
        **options,
    )
    loader = DataLoader(
        Stream() if stream else Noisy(),
        batch_size=4,
        shuffle=None if stream else True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    trainer.fit(module, loader, DataLoader(Noisy(), batch_size=8), ckpt_path=path)
    (optimizer,) = trainer.optimizers
    return {
        "weights": list(module.state_dict().values()),
        "moments": [v for entries in optimizer.state.values() for v in entries.values()],
        "rates": [group["lr"] for group in optimizer.param_groups],
        "random": [torch.get_rng_state(), random.random(), np.random.rand()],
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
    }


def newest(folder: Any) -> Any:
    """The last file that was written."""
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def difference(a: Any, b: Any) -> list[str]:
    return [name for name in a if not _same(a[name], b[name])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)


CASES = [
    {"broken_off": 5},
    {"broken_off": 14},  # in the second epoch
    {"broken_off": 14, "fault": 7},
    {"broken_off": 25, "workers": 2},
    {"broken_off": 14, "stream": True},
    {"broken_off": 13, "val_check_interval": 3},  # a file is written before each validation
    {"broken_off": 14, "saving": {"every_n_epochs": 1}},
    {"broken_off": 19, "saving": {"every_n_train_steps": 2}, "accumulate_grad_batches": 2},
    # With an epoch's last batch; Lightning leaves the validation out then.
    {"broken_off": 14, "saving": {"every_n_train_steps": 5}, "limit_val_batches": 0},
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (
            {"broken_off": 13, "val_check_interval": 4},
            {"broken_off": 14, "saving": {"every_n_epochs": 1, "save_on_train_epoch_end": True}},
            {"broken_off": 14, "saving": {"every_n_epochs": 1}, "workers": 2},
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_fit_that_goes_on_ends_with_the_same_bits(pl, tmp_path, case):
    plain = {name: case[name] for name in case if name not in ("broken_off", "fault")}
    reference = fit(pl, tmp_path / "reference", **plain)
    with pytest.raises(BrokenOff):
        fit(pl, tmp_path / "run", **case)
    # Seeds of another run: all that comes has to come out of the file.
    found = fit(pl, tmp_path / "run", seed=7, path=newest(tmp_path / "run"), **plain)
    assert difference(found, reference) == []


def test_the_comparison_can_fail(pl, tmp_path):
    """What Lightning alone goes on with."""
    reference = fit(pl, tmp_path / "reference")
    with pytest.raises(BrokenOff):
        fit(pl, tmp_path / "run", broken_off=14)
    path = newest(tmp_path / "run")
    saved = torch.load(path, weights_only=True)  # nothing in it has to be unpickled
    del saved["ranum_resumption"]
    torch.save(saved, path)
    found = fit(pl, tmp_path / "run", seed=7, path=path)
    assert {"weights", "random"} <= set(difference(found, reference))
    assert "steps" not in difference(found, reference)


def test_a_run_that_goes_on_can_be_broken_off_again(pl, tmp_path):
    reference = fit(pl, tmp_path / "reference")
    with pytest.raises(BrokenOff):
        fit(pl, tmp_path / "run", broken_off=14)
    with pytest.raises(BrokenOff):
        fit(pl, tmp_path / "run", seed=7, broken_off=5, path=newest(tmp_path / "run"))
    found = fit(pl, tmp_path / "run", seed=8, path=newest(tmp_path / "run"))
    assert difference(found, reference) == []


def test_a_file_of_other_processes_costs_a_warning(pl, tmp_path):
    with pytest.raises(BrokenOff):
        fit(pl, tmp_path, broken_off=14)
    path = newest(tmp_path)
    saved = torch.load(path, weights_only=True)
    saved["ranum_resumption"] *= 2
    torch.save(saved, path)
    with pytest.warns(RanumWarning, match="checkpoint is of 2 processes, this run has 1"):
        assert fit(pl, tmp_path, path=path)["epochs"] == 3


def test_the_loop_is_left_as_it_was(pl, tmp_path):
    cls = importlib.import_module(f"ranum.callbacks.{pl.__name__.split('.')[0]}").RanumCallback
    trainer = pl.Trainer(
        max_steps=3,
        callbacks=[cls("off", verbose=False, strict=True)],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    data = DataLoader(Noisy(), batch_size=4)
    trainer.fit(build(pl, broken_off=-1, fault=-1), data, data)
    assert "setup_data" not in vars(trainer.fit_loop)
