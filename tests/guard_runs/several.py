"""One of the processes that train a model together, under a guard; see `processes`.

Each argument is a run: the way the model is spread ("ddp", "fsdp", or "late": ddp whose steps are
left out on the device), the fault, the remedies, and "full" if the second process has no memory
for batches.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ranum import Guard
from ranum.guards import Retry, Rollback, Skip

AT = 8
"""The step of the fault."""

REMEDIES: dict[str, Any] = {
    "retry": lambda: [Retry()],
    "rollback": lambda: [Rollback(1.0)],
    "ladder": lambda: [Retry(), Skip(), Rollback(1.0)],
}


def spread(way: str) -> tuple[nn.Module, nn.Module]:
    """The model, and what is called in a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Dropout(0.1), nn.Linear(9, 3))
    if way in ("ddp", "late"):
        return model, DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, model


def train(way: str, fault: str, remedies: str, memory: str = "") -> dict[str, Any]:
    """A run, and what it ends with in this process."""
    rank = distributed.get_rank()
    model, called = spread(way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=way == "late")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(96, 4, generator=generator), torch.arange(96) % 3)
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
    guard = Guard(
        model,
        optimizer,
        schedulers=[scheduler],
        snapshot_every=5,
        strict=True,
        remedies=REMEDIES[remedies](),
        incident_dir=f"{sys.argv[1]}/{way} {fault}",
        late=way == "late",
    )
    if memory == "full" and rank == 1:
        guard._position._log.memory = 0
    torch.manual_seed(rank)  # dropout differs, as it does in real runs
    steps = 0

    def loss_of(x: Tensor, y: Tensor, factor: float) -> Tensor:
        out = called(x)
        if factor != 1.0:
            out = out + torch.log(out.sum().relu() * 0).clamp(min=-1e30) * 1e30
        return nn.functional.cross_entropy(out, y)

    for number, batch in enumerate(guard.batches(loader)):
        if fault == "left" and number == AT:
            continue
        is_now = steps == AT and rank == 1
        x, y = batch
        if is_now and fault == "data":
            x = x.clone()
            x[1, 2] = torch.nan
        with guard.step((x, y)) as step:
            factor = 0.0 if is_now and fault == "operator" else 1.0
            step.backward(loss_of, x, y, factor)
            if steps == AT and fault == "gradient":
                model[0].weight.grad[0, 0] = torch.nan
            if is_now and fault == "shard":
                own = next(p for p in model.parameters() if p.grad is not None and part(p).numel())
                part(own.grad).view(-1)[0] = torch.nan
        steps += 1
        if step.decision is not None and (step.decision.proceed or guard.is_rewound):
            scheduler.step()
    state = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    state += [value for entries in optimizer.state.values() for value in entries.values()]
    return {
        "all": digest(state),
        "weights": digest([whole(p) for p in model.parameters()]),
        "rates": [group["lr"] for group in optimizer.param_groups],
        "norms": [repr(reading.grad_norm) for reading in guard.history.readings],
        "incidents": [
            [i.action, i.step, i.back_to, i.detail, str(i.culprit)] for i in guard.history.incidents
        ],
        "steps": steps,
    }


def part(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found.detach()


def whole(tensor: Any) -> Tensor:
    """All of a tensor that may be spread over processes."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def digest(tensors: Any) -> str:
    """Of the bits that this process holds."""
    data = b"".join(part(tensor).numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    runs = {name: train(*name.split()) for name in sys.argv[2:]}
    with open(f"{sys.argv[1]}/{distributed.get_rank()}.json", "w") as file:
        json.dump(runs, file)
    distributed.destroy_process_group()
