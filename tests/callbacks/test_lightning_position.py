"""A Lightning run with a fault ends like one without: weights, counters, metrics, data."""

from __future__ import annotations

import importlib
import importlib.util
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ranum.guards import Retry, Rollback

torchmetrics = pytest.importorskip("torchmetrics")

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")
CALLBACKS = {name: f"ranum.callbacks.{name.split('.')[0]}" for name in NAMESPACES}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:.*TensorBoard support for.*"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]


@pytest.fixture(params=NAMESPACES)
def namespace(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


@pytest.fixture
def pl() -> Any:
    found = [name for name in NAMESPACES if importlib.util.find_spec(name.split(".")[0])]
    return pytest.importorskip((*found, NAMESPACES[0])[0])


class Noisy(Dataset):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.rand() + torch.rand(4)
        return index / 40 + 0.1 * noise.float(), torch.tensor(index % 3)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        for index in range(40):
            yield torch.rand(4) + index / 40, torch.tensor(index % 3)


def build(pl: Any, *, fault: str = "", at: int = -1, manual: bool = False) -> Any:
    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
            )
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
            self.automatic_optimization = not manual
            self.calls = self.transferred = 0
            self.validated: list[int] = []

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            if fault == "data" and self.trainer.training:
                self.transferred += 1
                x = x * torch.nan if self.transferred == at + 1 else x
            return x, y

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            self.calls += 1
            logits = self.net(x)
            loss = F.cross_entropy(logits, y)
            self.accuracy(logits.detach(), y)
            self.log("loss", loss, on_step=True, on_epoch=True, batch_size=4)
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True, batch_size=4)
            if manual:
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.on_after_backward()
                self.optimizers().step()
            return loss

        def on_after_backward(self) -> None:
            if fault == "gradient" and self.calls == at + 1 and torch.is_grad_enabled():
                self.net[0].weight.grad[0, 0] = torch.nan
                self.calls += 1000  # once

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.validated.append(self.trainer.global_step)

        def on_train_end(self) -> None:
            self.steps = self.trainer.global_step

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Lit()


def fit(
    pl: Any,
    tmp_path: Any,
    *,
    fault: str = "",
    at: int = -1,
    remedies: Any = None,
    workers: int = 0,
    stream: bool = False,
    manual: bool = False,
    average: str = "",
    also: Any = (),
    **options: Any,
) -> tuple[dict[str, Any], Any]:
    cls = importlib.import_module(CALLBACKS[pl.__name__]).RanumCallback

    class Chosen(cls):
        def _remedies(self, trainer: Any, pl_module: Any) -> Any:
            return list(remedies or [])

    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    module = build(pl, fault=fault, at=at, manual=manual)
    callback = Chosen(analyze="off", verbose=False, strict=True, snapshot_every=4, also=also)
    callbacks = [callback]
    if average:
        ema = pl.callbacks.EMAWeightAveraging(decay=0.9)
        callbacks.insert(0 if average == "first" else 1, ema)
    loader = DataLoader(
        Stream() if stream else Noisy(),
        batch_size=4,
        shuffle=None if stream else True,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=callbacks,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, loader, DataLoader(Noisy(), batch_size=4))
    optimizer = trainer.optimizers[0]
    end = {
        "weights": [t.clone() for t in module.state_dict().values()],
        "moments": [v.clone() for s in optimizer.state.values() for v in s.values()],
        "rate": [group["lr"] for group in optimizer.param_groups],
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "random": [torch.get_rng_state(), random.random(), np.random.rand()],
        "steps": module.steps,
        "batches": [vars(p) for p in (trainer.fit_loop.epoch_loop.batch_progress.total,)],
        "metrics": {name: float(v) for name, v in trainer.callback_metrics.items()},
        "validated": sorted(set(module.validated)),  # once more at a count gone back over
    }
    if average:
        average_of = ema._average_model.state_dict()
        end["average"] = [t.clone() for t in average_of.values()]
        end["averaged"] = int(ema._average_model.n_averaged)
    return end, callback


def difference(a: Any, b: Any) -> list[str]:
    return [name for name in a if not _same(a[name], b[name])]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


CASES = [
    {"at": 0},
    {"at": 6},
    {"at": 9},
    {"at": 10},
    {"at": 15},
    {"at": 15, "workers": 2},
    {"at": 15, "stream": True},
    {"at": 6, "manual": True},
    {"at": 6, "val_check_interval": 2},
    {"at": 7, "accumulate_grad_batches": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("remedy", [Retry, lambda: Rollback(1.0)], ids=["retry", "rollback"])
def test_a_fault_that_does_not_come_again_leaves_no_trace(pl, tmp_path, case, remedy):
    plain = {name: value for name, value in case.items() if name != "at"}
    reference, _ = fit(pl, tmp_path, **plain)
    end, callback = fit(pl, tmp_path, fault="gradient", remedies=[remedy()], **case)
    (incident,) = callback.history.incidents
    assert incident.action in ("retry", "rollback")
    assert difference(end, reference) == []


@pytest.mark.parametrize("manual", [False, True])
def test_a_batch_left_out_is_not_counted(pl, tmp_path, manual):
    end, callback = fit(pl, tmp_path, fault="data", at=5, remedies=["skip"], manual=manual)
    (incident,) = callback.history.incidents
    assert incident.action == "skip"
    assert end["steps"] == 19
    assert end["scheduler"]["last_epoch"] == (0 if manual else 19)  # then it is the module's
    assert np.isfinite(end["metrics"]["loss_epoch"])
    assert all(bool(tensor.isfinite().all()) for tensor in end["weights"])


def test_of_accumulated_batches_only_the_bad_one_is_left_out(pl, tmp_path):
    end, callback = fit(
        pl, tmp_path, fault="data", at=5, remedies=["skip"], accumulate_grad_batches=5
    )
    (incident,) = callback.history.incidents
    assert incident.action == "skip part"
    assert incident.detail == "left micro-batch 0 of the step out; the others weigh more"
    assert end["steps"] == 4  # all of them
    assert all(bool(tensor.isfinite().all()) for tensor in end["weights"])
    norms = [reading.grad_norm for reading in callback.history.readings]
    assert len(norms) == 4


@pytest.mark.parametrize("average", ["first", "last"])
def test_averages_go_back_with_the_weights(pl, tmp_path, average):
    """Of Lightning's own callback, which may stand before ours and after it."""
    reference, _ = fit(pl, tmp_path, average=average)
    for remedy in (Retry(), Rollback(1.0)):
        end, callback = fit(
            pl, tmp_path, fault="gradient", at=15, remedies=[remedy], average=average
        )
        assert [one.action for one in callback.history.incidents] == [remedy.name]
        assert difference(end, reference) == []
    end, _ = fit(pl, tmp_path, fault="data", at=5, remedies=["skip"], average=average)
    assert end["averaged"] == reference["averaged"] - 1


class Counter:
    """Something with a state that is no module: counts its own loads."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def state_dict(self) -> dict[str, int]:
        return {"loads": len(self.loaded)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded.append(state["loads"])


def test_what_else_is_named_goes_back_too(pl, tmp_path):
    counter = Counter()
    fit(pl, tmp_path, also=[counter])
    assert counter.loaded == []
    fit(pl, tmp_path, fault="gradient", at=6, remedies=[Rollback(1.0)], also=[counter])
    assert counter.loaded[0] == 0


def test_either_namespace(namespace, tmp_path):
    reference, _ = fit(namespace, tmp_path)
    for remedy in (Retry(), Rollback(1.0)):
        end, _ = fit(namespace, tmp_path, fault="gradient", at=15, remedies=[remedy])
        assert difference(end, reference) == []


def test_the_comparison_can_fail(pl, tmp_path):
    reference, _ = fit(pl, tmp_path)
    end, _ = fit(pl, tmp_path, fault="gradient", at=6, remedies=["skip"])
    assert {"weights", "moments", "scheduler", "steps"} <= set(difference(end, reference))
