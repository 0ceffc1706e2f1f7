"""Models of real size for `analysis_time.py`, with random weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH, TOKENS, IMAGE = 1, 128, 224


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step.

    Attributes:
        model: What is trained.
        loss: Runs forward and loss; returns the loss.
    """

    model: nn.Module
    loss: Callable[[], Tensor]

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def transformers_steps() -> dict[str, Callable[[], Step]]:
    """Stock models by name; empty if transformers is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        return {}
    return {
        "ResNet-50": lambda: _vision("resnet"),
        "MobileNetV2": lambda: _vision("mobilenet"),
        "GPT-2 small": lambda: _language("gpt2"),
        "BERT-base": lambda: _language("bert"),
        "T5-small": lambda: _language("t5"),
    }


def _vision(name: str) -> Step:
    from transformers.models.mobilenet_v2 import (
        MobileNetV2Config,
        MobileNetV2ForImageClassification,
    )
    from transformers.models.resnet import ResNetConfig, ResNetForImageClassification

    make = {
        "resnet": lambda: ResNetForImageClassification(ResNetConfig(num_labels=1000)),
        "mobilenet": lambda: MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1000)),
    }
    model = make[name]().train()
    pixels, labels = torch.randn(BATCH, 3, IMAGE, IMAGE), torch.randint(0, 1000, (BATCH,))
    return Step(model=model, loss=lambda: model(pixel_values=pixels, labels=labels).loss)


def _language(name: str) -> Step:
    from transformers.models.bert import BertConfig, BertForMaskedLM
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from transformers.models.t5 import T5Config, T5ForConditionalGeneration

    small = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    make = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config()),
        "bert": lambda: BertForMaskedLM(BertConfig()),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(**small, decoder_start_token_id=0, pad_token_id=0)
        ),
    }
    model = make[name]().train()
    tokens = torch.randint(0, 1000, (BATCH, TOKENS))
    return Step(model=model, loss=lambda: model(input_ids=tokens, labels=tokens).loss)


class Block(nn.Module):
    """A transformer layer that normalises first; `[N, T, D]` to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then two linear layers, each beside the input."""
        parts = self.mixed(self.before(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key, value = (part.transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.between(x))))


def layered(layers: int, width: int = 64, tokens: int = 32, vocabulary: int = 256) -> Step:
    """A small language model of any depth."""
    model = nn.Sequential(
        nn.Embedding(vocabulary, width),
        *(Block(width, heads=4) for _ in range(layers)),
        nn.LayerNorm(width),
        nn.Linear(width, vocabulary),
    )
    ids = torch.randint(0, vocabulary, (BATCH, tokens))

    def loss() -> Tensor:
        logits = model(ids).flatten(0, 1)
        return nn.functional.cross_entropy(logits, ids.flatten())

    return Step(model=model, loss=loss)
