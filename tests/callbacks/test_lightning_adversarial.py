"""Models and loops that are not as the adapter would like them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch")

from ranum.callbacks.lightning import RanumCallback  # noqa: E402
from ranum.guards import default_symptoms  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*Starting from v1.9.0.*",
        ".*number of training batches.*",
        ".*no.*val_dataloader.*|.*validation_step.*",
        ".*could not be recorded.*",
        ".*the culprit search failed.*",
        ".*Lazy modules are a new feature.*",
    )
]


class Base(pl.LightningModule):
    """A small classifier; `lr` from the class."""

    lr = 0.1

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def loader(batches: int = 12, size: int = 4, poison: int | None = None) -> DataLoader:
    x = torch.randn(batches * size, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    if poison is not None:
        x[poison * size] = math.nan
    return DataLoader(TensorDataset(x, y), batch_size=size)


def callback(**options: Any) -> Any:
    return RanumCallback(**({"verbose": False, "confirm_seconds": 0.0} | options))


def fit(lit: Any, tmp_path: Any, *callbacks: Any, data: Any = None, val: Any = None) -> Any:
    trainer = pl.Trainer(
        max_epochs=3,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )
    torch.manual_seed(7)
    trainer.fit(lit, data or loader(), val)
    return trainer


def is_finite(lit: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in lit.state_dict().values())


class Pending(pl.LightningModule):
    """The second backward pass runs on a graph from before the first optimizer step."""

    def __init__(self, bad: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)
        self.bad = bad

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.critic, self.generator)
        ]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        fake = self.generator(batch[0])
        judged = F.softplus(self.critic(fake.detach()) ** 2).mean()
        loss = F.softplus(-(self.critic(fake) ** 2)).mean()
        loss = loss * (math.nan if batch_idx == self.bad else 1.0)
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        first.zero_grad()
        self.manual_backward(judged)
        first.step()


def test_a_rollback_between_two_optimizers(tmp_path):
    guard, lit = callback(on_fault=("rollback",)), Pending(bad=5)
    fit(lit, tmp_path, guard)
    assert is_finite(lit)
    # Once in every epoch, and once more after the first way back, which leads to the same batch.
    assert [incident.action for incident in guard.history.incidents] == ["rollback"] * 4


def test_losses_that_alternate_are_not_a_run_that_diverged(tmp_path):
    class Rising(Pending):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer, level in zip(self.optimizers(), (0.1, self.global_step), strict=True):
                loss = self.critic(self.generator(batch[0])).square().mean() * 0.01 + level
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    strict, guard = callback(analyze="off", symptoms=default_symptoms()), callback(analyze="off")
    for one in (strict, guard):
        fit(Rising(), tmp_path, one, data=loader(batches=100))
    assert strict.history.incidents != []
    assert guard.history.incidents == []


def test_lazy_layers(tmp_path):
    class Lazy(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))

    guard, lit = callback(), Lazy()
    fit(lit, tmp_path, guard, data=loader(poison=3))
    assert is_finite(lit)
    assert {incident.action for incident in guard.history.incidents} == {"skip"}


class Hoarder(Base):
    """A step that leaves traces wherever a Python object can keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.net).requires_grad_(False)
        self.hidden = [copy.deepcopy(self.net)]
        self.copies = [p.detach().clone() for p in self.net.parameters()]
        self.counts = {"steps": {"seen": 0}}
        self.random = torch.Generator().manual_seed(0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            own = list(self.net.parameters())
            for kept in (self.average.parameters(), self.hidden[0].parameters(), self.copies):
                for old, new in zip(kept, own, strict=True):
                    old.mul_(0.5).add_(new, alpha=0.5).add_(1.0)
            own[0].clamp_(-0.1, 0.1)
        self.counts["steps"]["seen"] += 1
        noise = torch.randn(batch[0].shape, generator=self.random)
        return F.cross_entropy(self.net(batch[0] + noise), batch[1])


def test_a_step_with_side_effects_runs_once_per_batch(tmp_path):
    plain, guarded, guard = Hoarder(), Hoarder(), callback()
    fit(plain, tmp_path)
    fit(guarded, tmp_path, guard)
    assert guard.analysis is not None
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, guarded.state_dict()[name]), name
    hidden = zip(plain.hidden[0].parameters(), guarded.hidden[0].parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in hidden)
    assert all(map(torch.equal, plain.copies, guarded.copies))
    assert guarded.counts == {"steps": {"seen": 36}}


def test_the_replay_leaves_no_trace(tmp_path):
    lit, guard = Hoarder(), callback(analyze="off")
    fit(lit, tmp_path, guard, data=loader(poison=3))
    assert len(guard.history.incidents) == 3
    assert lit.counts == {"steps": {"seen": 36}}


class Doomed(Base):
    """Dies of its learning rate; asks for its schedule in every step."""

    lr = 1e6

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("rate", self.lr_schedulers().get_last_lr()[0])
        probabilities = torch.softmax(self.net(batch[0]), -1)
        return -(F.one_hot(batch[1], 3) * torch.log(probabilities)).sum(-1).mean()

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=36)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def test_schedules_and_monitors_outlive_a_restart(tmp_path):
    pytest.importorskip("optuna")
    guard, lit = callback(on_fault=("repair",), search_budget=4), Doomed()
    stopper = pl.callbacks.EarlyStopping("val", patience=9, check_finite=False)
    trainer = fit(lit, tmp_path, stopper, guard, val=loader(2))
    assert guard.repair is not None
    assert guard.repair.is_repaired
    assert is_finite(lit)
    assert trainer.current_epoch == 3
    assert trainer.val_check_batch == 12
    rate = guard.repair.configuration["learning_rate"]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)
    assert trainer.callback_metrics["rate"] == pytest.approx(rate)
