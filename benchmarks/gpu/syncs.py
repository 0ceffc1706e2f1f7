"""How often a guarded step waits for the GPU, and what a step costs there.

    python -m benchmarks.gpu.syncs

Counts the synchronisations that CUDA's debug mode reports in each step of a plain loop and of
guarded ones, then times them: with a guard that reads each step before its update, with one that
is `late`, and with a CUDA graph of the whole step, alone and with `hold` in it. A late guard is to
wait for nothing between snapshots. Last, a NaN is put into a batch of a late loop and of a graph;
weights must stay finite, and the incident be named. Without a GPU it says so and ends with code 2;
with code 1 if a late guard waits or a NaN gets through.
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
KINDS = ("plain", "guard", "late", "graph", "graph, late")


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


class Run:
    """A training run whose steps are taken one by one.

    Args:
        kind: "plain", "guard", "late", "graph" or "graph, late".
        width: Of the transformer.
        layers: Of the transformer.
    """

    def __init__(self, kind: str, width: int, layers: int) -> None:
        self.model, self.optimizer = build(width, layers)
        self.x = torch.randn(8, 256, width, device="cuda")
        self.y = torch.randint(0, 256, (8, 256), device="cuda")
        self.clean = self.x.clone()
        self.guard: Guard | None = None
        if kind in ("guard", "late", "graph, late"):
            # Snapshots wait by design, and are timed elsewhere.
            self.guard = Guard(
                self.model, self.optimizer, late=kind.endswith("late"), snapshot_every=10**6
            )
        self.graph: Any = None
        if kind.startswith("graph"):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.eager()
            torch.cuda.current_stream().wait_stream(side)
            self.optimizer.zero_grad(set_to_none=True)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.loss = self.loss_of()
                self.loss.backward()
                if self.guard is not None:
                    self.guard.hold(self.loss)
                self.optimizer.step()

    def loss_of(self) -> Tensor:
        """Of the batch in `x` and `y`."""
        return nn.functional.cross_entropy(self.model(self.x).flatten(0, 1), self.y.flatten())

    def eager(self) -> None:
        """One step without a graph."""
        if self.guard is None:
            self.optimizer.zero_grad()
            self.loss_of().backward()
            self.optimizer.step()
            return
        with self.guard.step((self.x, self.y)) as step:
            step.backward(self.loss_of)

    def take(self) -> None:
        """One step."""
        if self.graph is None:
            self.eager()
        elif self.guard is None:
            self.graph.replay()
        else:
            batch = (self.x, self.y)
            with self.guard.replayed(batch, loss=self.loss, again=self.loss_of):
                self.graph.replay()


def survives(kind: str) -> bool:
    """True if a batch with a NaN changes no weight, and is named."""
    run = Run(kind, 256, 2)
    for _ in range(WARM_UP):
        run.take()
    run.x[3, 5, 7] = torch.nan
    run.take()
    run.x.copy_(run.clean)
    for _ in range(5):
        run.take()
    assert run.guard is not None
    run.guard.settle()
    is_finite = all(bool(p.isfinite().all()) for p in run.model.parameters())
    return is_finite and len(run.guard.history.incidents) == 1


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
        runs = {kind: Run(kind, width, layers) for kind in KINDS}
        for run in runs.values():
            for _ in range(WARM_UP):
                run.take()
        counts = {
            kind: statistics.mean(waits(run.take, arguments.steps)) for kind, run in runs.items()
        }
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(arguments.rounds):
            for kind, run in runs.items():
                times[kind].append(milliseconds(run.take, arguments.steps))
        for kind in KINDS:
            base = times["graph" if kind.startswith("graph") else "plain"]
            pairs = zip(times[kind], base, strict=True)
            ratio = statistics.median(after / before for after, before in pairs)
            milli = statistics.median(times[kind])
            cells = (f"{milli:.2f}", f"{ratio:.3f}", f"{counts[kind]:.2f}")
            rows.append([f"{layers} layers of {width}", kind, *cells])
        is_free = is_free and counts["late"] <= counts["plain"]
        is_free = is_free and counts["graph, late"] <= counts["graph"]
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}.\n")
    columns = ("transformer", "step", "ms", "ratio", "waits per step")
    print(table(columns, rows))
    for kind in ("late", "graph, late"):
        is_saved = survives(kind)
        is_free = is_free and is_saved
        print(f"A NaN in a batch, {kind}: {'left out' if is_saved else 'NOT left out'}.")
    return 0 if is_free else 1


if __name__ == "__main__":
    sys.exit(main())
