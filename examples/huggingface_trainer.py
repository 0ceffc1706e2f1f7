"""A Hugging Face Trainer under guard: one line more, and a bad record does no harm.

    pip install '.[huggingface]'
    python examples/huggingface_trainer.py

A small transformer learns which of four waves a noisy series holds. One record is broken: its
sensor wrote NaN. Without the callback (`--without`) the first batch with it ends the training for
good, while the Trainer goes on logging losses that look healthy.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from ranum.callbacks.huggingface import RanumCallback

LENGTH, PATCH, CLASSES, BROKEN = 32, 4, 4, 123


class Waves(Dataset[dict[str, Tensor]]):
    """Sine waves of four frequencies under noise; the record number BROKEN is not finite."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        label = index % CLASSES
        time = torch.linspace(0, 2 * math.pi, LENGTH)
        phase = torch.rand((), generator=generator) * 6
        series = torch.sin((label + 1) * time + phase)
        series = series + 0.3 * torch.randn(LENGTH, generator=generator)
        if index == BROKEN:
            series[7] = torch.nan
        return {"series": series, "labels": torch.tensor(label)}


class Classifier(nn.Module):
    """A two-layer BERT over patches of a series."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=LENGTH // PATCH,
        )
        self.embed = nn.Linear(PATCH, config.hidden_size)
        self.encoder = BertModel(config)
        self.head = nn.Linear(config.hidden_size, CLASSES)

    def forward(self, series: Tensor, labels: Tensor) -> dict[str, Tensor]:
        patches = self.embed(series.unflatten(1, (-1, PATCH)))
        hidden = self.encoder(inputs_embeds=patches).pooler_output
        logits = self.head(hidden)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", action="store_true", help="train without the guard")
    parser.add_argument("--output", default="runs/huggingface", help="where reports go")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = Classifier()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=arguments.output,
            num_train_epochs=6,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Waves(),
        callbacks=[] if arguments.without else [RanumCallback()],
    )
    trainer.train()
    is_finite = all(bool(weight.isfinite().all()) for weight in model.parameters())
    print(f"weights are {'finite' if is_finite else 'NaN'} after {trainer.state.global_step} steps")


if __name__ == "__main__":
    main()
