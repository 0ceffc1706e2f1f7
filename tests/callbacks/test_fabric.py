"""A guard in a loop on Lightning Fabric: precision, scaler, accumulation, loggers, processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning_fabric")

from lightning_fabric import Fabric
from lightning_fabric.loggers import CSVLogger
from lightning_fabric.plugins import MixedPrecision

from ranum.callbacks.fabric import FabricGuard
from ranum.errors import ArgumentError
from ranum.guards import Retry, Rollback, Skip, TrainingStopped

EXAMPLE = Path(__file__).parents[2] / "examples" / "fabric_loop.py"
STEPS = 12


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, 4, generator=generator), torch.arange(6) % 3) for _ in range(STEPS)]


class Loop:
    """A run on Fabric; with a guard, or by hand."""

    def __init__(self, tmp_path: Path, *, precision: Any = None, **options: Any) -> None:
        plugins = [precision] if isinstance(precision, MixedPrecision) else []
        self.fabric = Fabric(
            accelerator="cpu",
            devices=1,
            precision=precision if isinstance(precision, str) else None,
            plugins=plugins,
            loggers=options.pop("loggers", None),
        )
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
        self.model, self.optimizer = self.fabric.setup(net, optimizer)
        options = {
            "remedies": [Retry(), Skip(), Rollback(1.0)],
            "snapshot_every": 5,
            "log_dir": str(tmp_path),
            "verbose": False,
            "strict": True,
            **options,
        }
        self.guard = FabricGuard(self.fabric, self.model, self.optimizer, **options)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(x), y)

    def guarded(self, data: Any, *, fault_at: int = -1) -> Loop:
        """Trains; the gradient is NaN once, in the step of that number."""
        for number, (x, y) in enumerate(self.guard.batches(data)):
            with self.guard.step((x, y)) as step:
                step.backward(self.loss, x, y)
                if number == fault_at:
                    next(self.model.parameters()).grad[0, 0] = torch.nan
        return self

    def by_hand(self, data: Any) -> Loop:
        """The same without a guard."""
        for x, y in data:
            self.optimizer.zero_grad()
            self.fabric.backward(self.loss(x, y))
            self.optimizer.step()
        return self

    @property
    def state(self) -> list[Tensor]:
        values = [*self.model.state_dict().values(), torch.get_rng_state()]
        return values + [v for s in self.optimizer.state.values() for v in s.values()]


def same(first: Loop, second: Loop) -> bool:
    return all(map(torch.equal, first.state, second.state))


def scaled() -> MixedPrecision:
    """float16 with a scaler; on a CPU, where only the plugin itself can be asked for it."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))


PRECISIONS = {"full": lambda: "32-true", "bfloat16": lambda: "bf16-mixed", "float16": scaled}


@pytest.fixture(params=PRECISIONS.values(), ids=PRECISIONS)
def precision(request):
    return request.param


def test_without_a_fault_it_changes_nothing(tmp_path, precision):
    guarded = Loop(tmp_path, precision=precision()).guarded(batches())
    assert same(guarded, Loop(tmp_path, precision=precision()).by_hand(batches()))
    assert guarded.guard.history.incidents == []


def test_a_bad_batch_leaves_no_trace(tmp_path, precision):
    data = batches()
    data[4][0][1, 2] = torch.nan
    guarded = Loop(tmp_path, precision=precision()).guarded(data)
    assert same(guarded, Loop(tmp_path, precision=precision()).by_hand(data[:4] + data[5:]))
    assert [i.action for i in guarded.guard.history.incidents] == ["skip"]


# Not float16: what a scaler finds while the loss is finite, it skips itself.
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("make", [Retry, lambda: Rollback(1.0)])
def test_going_back_gives_the_bits_of_a_run_without(tmp_path, precision, make):
    remedy = make()
    guarded = Loop(tmp_path, precision=precision, remedies=[remedy])
    guarded.guarded(batches(), fault_at=7)
    assert same(guarded, Loop(tmp_path, precision=precision).by_hand(batches()))
    assert [i.action for i in guarded.guard.history.incidents] == [remedy.name]


def test_the_loss_is_scaled_once(tmp_path):
    loop = Loop(tmp_path, precision=scaled())
    x, y = batches()[0]
    with loop.guard.step((x, y)) as step:
        step.backward(loop.loss, x, y)
    (reading,) = loop.guard.history.readings
    torch.manual_seed(0)
    plain = Loop(tmp_path).guarded(batches()[:1]).guard.history.readings[0]
    assert reading.grad_norm == pytest.approx(plain.grad_norm, rel=0.05)


def test_micro_batches(tmp_path):
    loop = Loop(tmp_path)
    data = batches()
    data[2][0][0, 0] = torch.nan
    for first, second in zip(data[::2], data[1::2], strict=True):
        with loop.guard.step((first, second)) as step:
            for number, part in enumerate((first, second)):
                with loop.fabric.no_backward_sync(loop.model, enabled=number == 0):
                    step.backward(lambda x, y: loop.loss(x, y) / 2, *part)
    ((action, detail),) = [(i.action, i.detail) for i in loop.guard.history.incidents]
    assert action == "skip part"
    assert "micro-batch 0" in detail
    assert all(bool(value.isfinite().all()) for value in loop.state)


def test_report_incidents_and_loggers(tmp_path):
    logger = CSVLogger(tmp_path / "logs", flush_logs_every_n_steps=1)
    data = batches()
    data[4][0][1, 2] = torch.nan
    loop = Loop(tmp_path / "ranum", loggers=logger, sample_every=4)
    with loop.guard:
        loop.guarded(data)
    lines = (tmp_path / "ranum" / "incidents.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["skip"]
    assert "training finished" in (tmp_path / "ranum" / "report.html").read_text()
    assert (tmp_path / "ranum" / "incidents" / "step-4.pt").exists()
    written = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "ranum/grad_norm" in written
    assert loop.guard.snapshots.steps == ()


def test_a_stop_is_in_the_report(tmp_path):
    loop = Loop(tmp_path, remedies=["stop"])
    data = batches()
    data[4][0][1, 2] = torch.nan
    with pytest.raises(TrainingStopped), loop.guard:
        loop.guarded(data)
    assert "training was stopped" in (tmp_path / "report.html").read_text()


def test_its_state_is_saved_and_loaded_by_fabric(tmp_path):
    data = batches()
    data[4][0][1, 2] = torch.nan
    first = Loop(tmp_path).guarded(data)
    path = str(tmp_path / "state.ckpt")
    first.fabric.save(path, {"model": first.model, "guard": first.guard})
    second = Loop(tmp_path)
    second.fabric.load(path, {"model": second.model, "guard": second.guard})
    assert second.guard.current_step == first.guard.current_step
    assert [i.action for i in second.guard.history.incidents] == ["skip"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fabric": object()}, "fabric must be a lightning Fabric; got <object"),
        ({"model": nn.Linear(1, 1)}, "model must be what fabric.setup has returned; got Linear"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)], lr=1.0)},
            "optimizer must be what fabric.setup has returned; got SGD",
        ),
        ({"log_dir": 3}, "log_dir must be a path or None; got 3"),
        ({"snapshot_every": 0}, "snapshot_every must be a positive integer or 'auto'; got 0"),
    ],
)
def test_bad_input(tmp_path, change, message):
    loop = Loop(tmp_path)
    arguments = {"fabric": loop.fabric, "model": loop.model, "optimizer": loop.optimizer, **change}
    with pytest.raises(ArgumentError, match=re.escape(message)):
        FabricGuard(**arguments)


def test_an_unknown_strategy_is_refused(tmp_path):
    loop = Loop(tmp_path)

    class DeepSpeedStrategy(type(loop.fabric.strategy)):
        pass

    loop.fabric.strategy.__class__ = DeepSpeedStrategy
    with pytest.raises(ArgumentError, match=r"strategy must be one of .*; got DeepSpeedStrategy"):
        FabricGuard(loop.fabric, loop.model, loop.optimizer)


# --- the example --------------------------------------------------------------------------------


def run_example(tmp_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--output", str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback interface")
def test_the_example_learns_on_two_processes(tmp_path):
    told = run_example(tmp_path, "--devices", "2", "--epochs", "12")
    assert float(re.search(r"accuracy ([\d.]+)", told)[1]) > 0.8
    lines = (tmp_path / "incidents.jsonl").read_text().splitlines()
    incidents = [json.loads(line) for line in lines]
    assert {incident["action"] for incident in incidents} == {"skip"}
    assert len(incidents) == 12
    without = run_example(tmp_path, "--devices", "2", "--epochs", "2", "--without")
    assert float(re.search(r"accuracy ([\d.]+)", without)[1]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_the_example_learns_alone(tmp_path):
    told = run_example(tmp_path, "--epochs", "10")
    assert float(re.search(r"accuracy ([\d.]+)", told)[1]) > 0.8
    assert "Skipped a micro-batch" in told
