"""What the callback reads of the data before training, and that nobody notices."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

pl = pytest.importorskip("lightning.pytorch")

from ranum.callbacks.lightning import RanumCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        ".*does not have many workers.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*number of training batches.*",
        ".*Starting from v1.9.0.*",
    )
]


class Augmented(Dataset):
    """Row i holds about i; every access draws from all generators there are."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(0)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = float(torch.rand(())) + random.random() + np.random.rand() + self.own.random()
        return torch.full((4,), index + noise / 8), index % 3


class Lit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3))
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(lit: Any, loader: Any, tmp_path: Any, *callbacks: Any) -> Any:
    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    trainer.fit(lit, loader)
    return lit


def callback(**options: Any) -> Any:
    return RanumCallback(verbose=False, confirm_seconds=0.0, strict=True, **options)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # 5 s
@pytest.mark.parametrize("own", [False, True])
def test_a_run_is_the_same_to_the_bit(workers, own, tmp_path):
    def loader() -> DataLoader:
        generator = torch.Generator().manual_seed(1) if own else None
        return DataLoader(Augmented(), 4, shuffle=True, num_workers=workers, generator=generator)

    plain = fit(Lit(), loader(), tmp_path)
    guard = callback()
    guarded = fit(Lit(), loader(), tmp_path, guard)
    assert guarded.losses == plain.losses
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, guarded.state_dict()[name])
    first = guard.analysis.ranges["batch[0]"]
    assert first.low < 1.6  # six batches of four: a scan sees them all
    assert first.high > 23
    assert any("6 batches of data" in note for note in guard.analysis.notes)


def test_hooks_of_the_module_apply_to_what_is_read(tmp_path):
    class Scaled(Lit):
        def __init__(self) -> None:
            super().__init__()
            self.seen = [0]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.seen[0] += 1
            return batch[0] * 100, batch[1]

    guard = callback(symptoms=())  # inputs as large as these may blow up; then batches come again
    lit = fit(Scaled(), DataLoader(Augmented(), 4), tmp_path, guard)
    assert guard.analysis.ranges["batch[0]"].high > 2300
    assert lit.seen == [12]


def test_streams_and_broken_data_cost_the_scan_only(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            self.reads = getattr(self, "reads", 0) + 1
            return iter([(torch.ones(4) * i, i % 3) for i in range(8)])

    stream = Stream()
    guard = callback()
    fit(Lit(), DataLoader(stream, 4), tmp_path, guard)
    assert stream.reads == 2
    assert any("could not be read without a trace" in note for note in guard.analysis.notes)

    class Late(Augmented):
        calls = 0

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if self.is_scan():
                raise OSError("only one reader")
            return super().__getitem__(index)

        def is_scan(self) -> bool:
            import sys

            frame = sys._getframe()
            while frame is not None:
                if frame.f_code.co_name == "_fetched":
                    return True
                frame = frame.f_back
            return False

    guard = callback()
    fit(Lit(), DataLoader(Late(), 4), tmp_path, guard)
    assert guard.analysis is not None
    assert any("could not be read" in note for note in guard.analysis.notes)
