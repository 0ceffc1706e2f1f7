"""Faults in one of two processes that train a model together: replicated (DDP) and sharded (FSDP2).

    python -m benchmarks.faults.processes --runs 48

A NaN or an infinity is put into one process's data, loss, gradient (before the exchange, or in
what it holds after it), weight or moment, at a random step. What counts: both decide the same, and
both end with the bits of the same training without the fault, or without the bad batch. Two
processes on this machine talk over gloo; one that waits for the other for too long is lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.faults.tally import Result, tell
from benchmarks.faults.training import SNAPSHOT_EVERY, STEPS, Net, optimizer_of, remedies

WAYS = ("DDP", "FSDP2")
KINDS = ("data", "loss", "gradient before", "gradient after", "weight", "moment")
VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SECONDS = 120
"""After which a run that has not ended counts as lost."""


# --- one process -------------------------------------------------------------------------------


def train(way: str, kind: str, value: str, step: int, rank_hit: int) -> dict[str, Any]:
    """A run of this process; `kind` "none" has no fault, "left" leaves the batch `step` out."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from ranum import Guard

    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = Net()
    called: nn.Module = model
    if way == "DDP":
        called = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        fully_shard(model.net[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = optimizer_of(model)
    # After the exchange replicas differ without knowing; only a vote in each step tells.
    vote = way == "DDP" and kind == "gradient after"
    guard = Guard(
        model, optimizer, snapshot_every=SNAPSHOT_EVERY, remedies=remedies(), strict=True, vote=vote
    )
    generator = torch.Generator().manual_seed(7 + rank)
    listed = [
        (torch.randn(8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator))
        for _ in range(STEPS)
    ]
    if kind == "data" and rank == rank_hit:
        listed[step][0][2, 3] = VALUES[value]
    if kind == "left":
        del listed[step]
    torch.manual_seed(rank)
    is_done = rank != rank_hit or kind in ("none", "left", "data")
    for x, y in guard.batches(listed):
        now = not is_done and guard.current_step >= step
        is_done = is_done or now
        if now:
            _spoil_at_rest(kind, VALUES[value], model, optimizer)
        with guard.step((x, y)) as one:
            bad_loss = [now and kind == "loss"]

            def loss_of(x: Tensor, y: Tensor, bad_loss: list[bool] = bad_loss) -> Tensor:
                loss: Tensor = called(x, y)["loss"]
                return loss * torch.nan if bad_loss and bad_loss.pop() else loss

            if now and kind == "gradient before":
                _spoil_before(model, way, VALUES[value])
            one.backward(loss_of, x, y)
            if now and kind == "gradient after":
                _spoil_after(model, VALUES[value])
    state = [*model.parameters(), *model.buffers(), torch.get_rng_state()]
    state += [v for entries in optimizer.state.values() for v in entries.values()]
    parts = [_part(tensor) for tensor in state]
    incidents = guard.history.incidents
    return {
        "digest": hashlib.sha256(b"".join(p.numpy().tobytes() for p in parts)).hexdigest(),
        "finite": all(bool(p.isfinite().all()) for p in parts if p.is_floating_point()),
        "incidents": [[i.action, i.step, i.back_to, i.detail] for i in incidents],
    }


def _part(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found.detach()


def _spoil_at_rest(kind: str, value: float, model: Net, optimizer: Any) -> None:
    weight = model.net[4].weight
    with torch.no_grad():
        if kind == "weight":
            _part(weight).view(-1)[3] = value
        elif kind == "moment":
            _part(optimizer.state[weight]["exp_avg"]).view(-1)[3] = value


def _spoil_before(model: Net, way: str, value: float) -> None:
    """In the output of a layer's backward pass: what is exchanged is bad then."""

    def spoil(module: nn.Module, given: Any, got: Any) -> Any:
        handle.remove()
        spoiled = given[0].clone()
        spoiled[0, 0] = value
        return (spoiled,)

    handle = model.net[2].register_full_backward_hook(spoil)


def _spoil_after(model: Net, value: float) -> None:
    with torch.no_grad():
        _part(model.net[4].weight.grad).view(-1)[3] = value


def child(folder: str, runs: list[str]) -> None:
    """Trains all runs, and writes after each what has become of it."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    path = Path(folder) / f"{distributed.get_rank()}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for name in runs:
            way, kind, value, step, hit = name.split(":")
            found = train(way, kind, value, int(step), int(hit))
            file.write(json.dumps(found) + "\n")
            file.flush()
    distributed.destroy_process_group()


# --- the other end -----------------------------------------------------------------------------


def both(runs: list[str], seconds: float) -> list[tuple[Any, Any] | None]:
    """What both processes say of each run; None of one that did not end in both."""
    found: list[tuple[Any, Any] | None] = []
    while len(found) < len(runs):
        with tempfile.TemporaryDirectory() as folder:
            _launch(folder, runs[len(found) :], seconds)
            lines = [
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for path in (Path(folder) / f"{rank}.jsonl" for rank in (0, 1))
            ]
            found += list(zip(*lines, strict=False))
        if len(found) < len(runs):
            found.append(None)
    return found


def _launch(folder: str, runs: list[str], seconds: float) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-m", "benchmarks.faults.processes", "--child", folder, *runs]
    for rank in (0, 1):
        (Path(folder) / f"{rank}.jsonl").touch()
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
        return 0
    name = "python -m benchmarks.faults.processes"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("--runs", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    wanted, references = [], []
    for number in range(arguments.runs):
        way = WAYS[number % 2]
        kind = KINDS[number // 2 % len(KINDS)]
        step = draw.randrange(1, STEPS - 1)
        wanted.append(f"{way}:{kind}:{draw.choice(list(VALUES))}:{step}:{draw.randrange(2)}")
        references.append(f"{way}:left:nan:{step}:0" if kind == "data" else f"{way}:none:nan:0:0")
    needed = list(dict.fromkeys(references))
    found = both([*needed, *wanted], SECONDS + 8.0 * (len(wanted) + len(needed)))
    known = dict(zip(needed, found, strict=False))
    results = [
        _result(run, ends, known[reference])
        for run, ends, reference in zip(wanted, found[len(needed) :], references, strict=True)
    ]
    return 0 if tell(results) else 1


def _result(run: str, ends: tuple[Any, Any] | None, reference: tuple[Any, Any] | None) -> Result:
    way, kind, _, step, _ = run.split(":")
    name = f"{way}, {kind}"
    if ends is None or reference is None:
        return Result(
            kind=name, seen=False, at_once=False, same=False, lost=True, note=f"{run} did not end"
        )
    first, second = ends
    is_agreed = first["incidents"] == second["incidents"]
    actions = [incident[0] for incident in first["incidents"]]
    return Result(
        kind=name,
        seen=bool(actions),
        at_once=bool(actions) and first["incidents"][0][1] == int(step),
        same=is_agreed
        and all(a["digest"] == b["digest"] for a, b in zip(ends, reference, strict=True)),
        lost=not (first["finite"] and second["finite"]),
        done=" ".join(actions) + ("" if is_agreed else " (not the same in both)"),
        note="" if is_agreed else f"{run}: {first['incidents']} and {second['incidents']}",
    )


if __name__ == "__main__":
    sys.exit(main())
