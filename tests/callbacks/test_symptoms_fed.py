"""What the adapters feed to symptoms besides gradients: the loss' graph, and validation losses."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

NAMESPACES = {
    "pytorch_lightning": "ranum.callbacks.pytorch_lightning",
    "lightning.pytorch": "ranum.callbacks.lightning",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*"),
    pytest.mark.filterwarnings("ignore:.*Starting from v1.9.0.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]
OPTIONS = {"verbose": False, "strict": True, "analyze": "off"}


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("key", ["val_loss", "something"])
def test_lightning_feeds_the_loss_and_the_validation(name, key, tmp_path):
    pl = pytest.importorskip(name)

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log(key, torch.tensor(0.25))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = importlib.import_module(NAMESPACES[name]).RanumCallback(**OPTIONS)
    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[callback],
    )
    loader = DataLoader(data(), batch_size=8)
    trainer.fit(Lit(), loader, loader)
    readings = callback.history.readings
    seen = [reading.step for reading in readings if reading.validation_loss == 0.25]
    assert seen == ([4] if key == "val_loss" else [])
    assert [finding.code for finding in callback.history.findings] == ["RN303"]
    assert not callback.history.incidents


def test_hugging_face_feeds_the_loss_and_the_evaluation(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from ranum.callbacks.huggingface import RanumCallback

    class Samples(Dataset):
        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            x, y = data()[index]
            return {"x": x, "labels": y}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits.softmax(-1), labels), "logits": logits}

    callback = RanumCallback(**OPTIONS)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        eval_strategy="epoch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=Model(),
        args=arguments,
        train_dataset=Samples(),
        eval_dataset=Samples(),
        callbacks=[callback],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    fed = [r.step for r in callback.history.readings if r.validation_loss is not None]
    assert fed == [4]
    assert [finding.code for finding in callback.history.findings] == ["RN303"]
