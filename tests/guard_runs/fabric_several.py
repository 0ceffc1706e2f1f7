"""One of two processes of a Fabric loop; the second has nothing or a bad batch in a step.

Each argument is a run: "absent", "bad", or "by hand": what the others have to end with.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch
from guard_runs.several import digest
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from ranum.callbacks.fabric import FabricGuard
from ranum.guards import Skip

AT = 4


def train(fabric: Any, name: str) -> dict[str, Any]:
    """A run, and what it ends with in this process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 3))
    model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=0.01))
    generator = torch.Generator().manual_seed(fabric.global_rank)
    batches = [(torch.randn(4, 4, generator=generator), torch.arange(4) % 3) for _ in range(8)]
    is_second = fabric.global_rank == 1
    if name == "bad" and is_second:
        batches[AT][0][1, 2] = torch.nan

    def loss(x: Tensor, y: Tensor, factor: float) -> Tensor:
        return nn.functional.cross_entropy(model(x), y) * factor

    folder = f"{sys.argv[1]}/{name}"
    options = {"remedies": [Skip()], "uneven": name != "by_hand", "strict": True}
    with FabricGuard(fabric, model, optimizer, log_dir=folder, verbose=False, **options) as guard:
        for number, (x, y) in enumerate(batches):
            is_now = number == AT
            with guard.step((x, y)) as step:
                if name == "absent" and is_now and is_second:
                    continue
                share = (0.0 if is_second else 2.0) if name == "by_hand" and is_now else 1.0
                step.backward(loss, x, y, share)
        incidents = guard.history.incidents
    return {"weights": digest(net.parameters()), "incidents": [i.action for i in incidents]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    runs = {name: train(fabric, name) for name in sys.argv[2:]}
    with open(f"{sys.argv[1]}/{distributed.get_rank()}.json", "w") as file:
        json.dump(runs, file)
    distributed.destroy_process_group()
