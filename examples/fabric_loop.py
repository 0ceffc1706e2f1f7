"""A loop on Lightning Fabric under guard: bfloat16, accumulated gradients, a broken record.

    pip install '.[lightning]'
    python examples/fabric_loop.py
    python examples/fabric_loop.py --devices 2    # two processes, which decide alike

A small network learns to tell two spirals apart, two micro-batches a step. One record is NaN: the
batch with it is left out, by all processes, and leaves no trace. Without the guard (`--without`)
it ends the training for good.
"""

from __future__ import annotations

import argparse
import math

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ranum.callbacks.fabric import FabricGuard

RECORDS, BATCH, MICRO = 2048, 64, 2


def spirals() -> TensorDataset:
    """Points on two spirals, `[N, 2]`, and which of them each is on; record 777 is broken."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(RECORDS) % 2
    turn = 3 * torch.rand(RECORDS, generator=generator).sqrt()
    angle = math.pi * (turn + label)
    x = torch.stack((turn * angle.cos(), turn * angle.sin()), 1)
    x += 0.05 * torch.randn(x.shape, generator=generator)
    x[777, 0] = torch.nan
    return TensorDataset(x, label)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(),
        nn.Linear(64, 2),
    )  # fmt: skip


def accuracy(fabric: Fabric, model: nn.Module) -> float:
    """Share of the finite records that are told right."""
    x, label = spirals().tensors
    is_finite = x.isfinite().all(1)
    model.eval()
    with torch.no_grad():
        told = model(fabric.to_device(x[is_finite])).argmax(1).cpu()
    return float((told == label[is_finite]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--without", action="store_true", help="train without the guard")
    parser.add_argument("--output", default="runs/fabric", help="where the report goes")
    arguments = parser.parse_args()

    fabric = Fabric(accelerator="cpu", devices=arguments.devices, precision="bf16-mixed")
    fabric.launch()
    net = build()
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=0.01))
    loader = fabric.setup_dataloaders(DataLoader(spirals(), BATCH * MICRO, shuffle=True))

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y) / MICRO

    if arguments.without:
        for _ in range(arguments.epochs):
            for x, y in loader:
                optimizer.zero_grad()
                for part in zip(x.chunk(MICRO), y.chunk(MICRO), strict=True):
                    fabric.backward(loss_of(*part))
                optimizer.step()
    else:
        with FabricGuard(fabric, model, optimizer, log_dir=arguments.output) as guard:
            for epoch in range(arguments.epochs):
                for x, y in guard.batches(loader):
                    with guard.step((x, y), epoch=epoch) as step:
                        parts = list(zip(x.chunk(MICRO), y.chunk(MICRO), strict=True))
                        for number, part in enumerate(parts):
                            is_last = number == len(parts) - 1
                            with fabric.no_backward_sync(model, enabled=not is_last):
                                step.backward(loss_of, *part)
    fabric.print(f"accuracy {accuracy(fabric, model):.3f} after {arguments.epochs} epochs")


if __name__ == "__main__":
    main()
