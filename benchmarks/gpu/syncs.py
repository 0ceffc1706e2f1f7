"""How often a guarded step waits for the GPU, and what a step costs there.

    python -m benchmarks.gpu.syncs

Counts the synchronisations that CUDA's debug mode reports in each step of a plain loop and of a
guarded one, then times both. A guard reads one tensor a step today, which is one wait; the aim is
none (`torch.cuda.set_sync_debug_mode("error")`). Without a GPU it says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import table
from ranum import Guard

WARM_UP = 20


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, T, C]` to the same."""
        normed = self.before(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        mixed: Tensor = x + self.mlp(self.between(x))
        return mixed


def build(width: int, layers: int) -> tuple[nn.Module, Any]:
    """A transformer without embeddings, and a fused optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(width) for _ in range(layers)), nn.Linear(width, 256)).cuda()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def steps(width: int, layers: int, guarded: bool) -> Callable[[], None]:
    """Something that takes one training step when it is called."""
    model, optimizer = build(width, layers)
    x = torch.randn(8, 256, width, device="cuda")
    y = torch.randint(0, 256, (8, 256), device="cuda")
    guard = Guard(model, optimizer) if guarded else None

    def loss_of() -> Tensor:
        return nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def take() -> None:
        if guard is None:
            optimizer.zero_grad()
            loss_of().backward()
            optimizer.step()
            return
        with guard.step((x, y)) as step:
            step.backward(loss_of)

    return take


def waits(take: Callable[[], None], count: int) -> list[int]:
    """Synchronisations of each of so many steps."""
    found = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for _ in range(count):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                take()
            found.append(sum("synchronizing" in str(one.message) for one in told))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return found


def milliseconds(take: Callable[[], None], count: int) -> float:
    """Of one step, wall clock, over so many without a wait between them."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        take()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.syncs", description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured.")
        return 2
    rows, is_free = [], True
    for width, layers in ((256, 4), (1024, 12)):
        plain, guarded = (steps(width, layers, is_guarded) for is_guarded in (False, True))
        for take in (plain, guarded):
            for _ in range(WARM_UP):
                take()
        counts = [statistics.mean(waits(take, arguments.steps)) for take in (plain, guarded)]
        pairs = [
            (milliseconds(plain, arguments.steps), milliseconds(guarded, arguments.steps))
            for _ in range(arguments.rounds)
        ]
        ratio = statistics.median(after / before for before, after in pairs)
        base = statistics.median(before for before, _ in pairs)
        is_free = is_free and counts[1] <= counts[0]
        cells = (f"{base:.2f}", f"{ratio:.3f}", *(f"{one:.2f}" for one in counts))
        rows.append([f"{layers} layers of {width}", *cells])
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}.\n")
    columns = ("transformer", "ms per step", "ratio with guard", "waits without", "waits with")
    print(table(columns, rows))
    return 0 if is_free else 1


if __name__ == "__main__":
    sys.exit(main())
