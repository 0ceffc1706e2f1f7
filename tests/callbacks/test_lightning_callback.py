"""The adapter's contract, for both Lightning namespaces."""

from __future__ import annotations

import importlib
import json
import math
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ranum.errors import ArgumentError, RanumWarning

NAMESPACES = ("pytorch_lightning", "lightning.pytorch")
CALLBACKS = {
    "pytorch_lightning": "ranum.callbacks.pytorch_lightning",
    "lightning.pytorch": "ranum.callbacks.lightning",
}

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*",
    "ignore:.*`isinstance\\(treespec, LeafSpec\\)`.*",
    "ignore:.*Checkpoint directory.*",
    "ignore:.*Starting from v1.9.0.*",
    "ignore:.*TensorBoard support for.*",
    "ignore:.*ended before the epoch ended.*",
    "ignore:.*no.*val_dataloader.*|.*validation_step.*",
    "ignore:Trying to infer the `batch_size`.*",
    "ignore:.*barrier.*",
)


@pytest.fixture(params=NAMESPACES)
def pl(request: pytest.FixtureRequest) -> ModuleType:
    return pytest.importorskip(request.param)


def callback(pl: ModuleType, **options: Any) -> Any:
    cls = importlib.import_module(CALLBACKS[pl.__name__]).RanumCallback
    defaults = {"verbose": False, "strict": True, "confirm_seconds": 0.5}
    return cls(**(defaults | options))


def module(pl: ModuleType, step: Any = None, optimizer: Any = None) -> Any:
    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            self.seen = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen += 1
            if step is not None:
                return step(self, batch)
            x, y = batch
            loss = F.cross_entropy(self.net(x), y)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", F.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            if optimizer is not None:
                return optimizer(self)
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Lit()


def loader(batches: int = 8, size: int = 4, poison: int | None = None) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batches * size, 4, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    if poison is not None:
        x[poison * size] = math.nan
    return DataLoader(TensorDataset(x, y), batch_size=size)


def trainer(pl: ModuleType, tmp_path: Any, *callbacks: Any, **options: Any) -> Any:
    defaults = {
        "max_epochs": 2,
        "logger": False,
        "accelerator": "cpu",
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**(defaults | options))


def finite(lit: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in lit.state_dict().values())


# --- the list in the house rules ------------------------------------------------------------


def test_build_and_repr(pl):
    text = repr(callback(pl, sample_every=7))
    assert text.startswith("RanumCallback(")
    assert "sample_every=7" in text
    assert isinstance(callback(pl), pl.Callback)


def test_state_goes_through_json(pl, tmp_path):
    guard = callback(pl)
    trainer(pl, tmp_path, guard).fit(module(pl), loader())
    state = json.loads(json.dumps(guard.state()))
    again = callback(pl)
    again.load_state(state)
    trainer(pl, tmp_path, again).fit(module(pl), loader())
    assert again.analysis is None  # it had been analysed already


def test_fit_twice(pl, tmp_path):
    guard = callback(pl)
    for _ in range(2):
        trainer(pl, tmp_path, guard).fit(module(pl), loader())
        assert len(guard.history.readings) == 16


def test_the_same_run_with_and_without(pl, tmp_path):
    plain, guarded = module(pl), module(pl)
    trainer(pl, tmp_path).fit(plain, loader())
    trainer(pl, tmp_path, callback(pl)).fit(guarded, loader())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, guarded.state_dict()[name])
    assert guarded.seen == 16


def test_stop_and_resume(pl, tmp_path):
    guard = callback(pl)
    first = trainer(pl, tmp_path, guard, max_epochs=1)
    lit = module(pl)
    first.fit(lit, loader())
    path = tmp_path / "last.ckpt"
    first.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)["ranum"]
    assert saved["guard"]["step"] == 8
    second = callback(pl)
    trainer(pl, tmp_path, second, max_epochs=3).fit(lit, loader(), ckpt_path=path)
    assert len(second.history.readings) == 16
    assert second.history.readings[-1].step == 23
    assert second.analysis is None


def test_two_instances(pl, tmp_path):
    first, second = callback(pl), callback(pl)
    with pytest.warns(RanumWarning, match="this one stands by"):
        trainer(pl, tmp_path, first, second).fit(module(pl), loader())
    assert len(first.history.readings) == 16
    assert len(second.history.readings) == 0


def test_the_default_class_fits_both_namespaces():
    from ranum import RanumCallback

    for name in NAMESPACES:
        assert issubclass(RanumCallback, pytest.importorskip(name).Callback)


def test_a_foreign_namespace_is_lightnings_to_refuse(tmp_path):
    ours, foreign = (pytest.importorskip(name) for name in NAMESPACES)
    assert not isinstance(callback(ours), foreign.Callback)


def test_fast_dev_run_writes_nothing(pl, tmp_path):
    guard = callback(pl)
    trainer(pl, tmp_path, guard, fast_dev_run=True).fit(module(pl), loader(), loader())
    assert guard.analysis is not None
    assert not (tmp_path / "ranum_report").exists()


def test_sanity_check_and_validation(pl, tmp_path):
    guard = callback(pl)
    trainer(pl, tmp_path, guard, num_sanity_val_steps=2).fit(module(pl), loader(), loader())
    assert len(guard.history.readings) == 16


def test_no_logger_still_writes_the_report(pl, tmp_path):
    trainer(pl, tmp_path, callback(pl)).fit(module(pl), loader())
    assert "</html>" in (tmp_path / "ranum_report" / "report.html").read_text()


def test_the_loggers_writer_is_used(pl, tmp_path):
    pytest.importorskip("tensorboard")
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="run", version="")
    trainer(pl, tmp_path, callback(pl), logger=logger, log_every_n_steps=1).fit(
        module(pl), loader()
    )
    assert (tmp_path / "run" / "ranum_report" / "report.html").exists()
    assert list((tmp_path / "run").glob("events*"))
    assert not list((tmp_path / "run" / "ranum_report").glob("events*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"analyze": "always"}, "analyze must be 'step' or 'off'; got 'always'"),
        ({"on_fault": ("restart",)}, "on_fault must be a sequence of names out of retry, skip"),
        ({"on_fault": "skip"}, "on_fault must be a sequence of names"),
        ({"sample_every": 0}, "sample_every must be a whole number of at least 1; got 0"),
        ({"snapshot_every": 2.5}, "snapshot_every must be a whole number"),
        ({"snapshot_to": "moon"}, "snapshot_to must be one of .* or a folder that exists"),
        ({"also": [3]}, "also must be a sequence of modules, or of what has state_dict"),
        ({"search": {"learning_rate": 1}}, "search must be a SearchSpace or None"),
        ({"symptoms": ["NaN"]}, "symptoms must be a sequence of symptoms or None"),
        ({"confirm_seconds": -1}, "confirm_seconds must be 0 or more seconds; got -1"),
        ({"training_seconds": -1}, "training_seconds must be 0 or more seconds; got -1"),
        ({"log_dir": 3}, "log_dir must be a path or None; got 3"),
    ],
)
def test_wrong_arguments(pl, options, message):
    with pytest.raises(ArgumentError, match=message):
        callback(pl, **options)


# --- what it does ---------------------------------------------------------------------------


def test_a_training_run_into_a_defect_is_found_and_leaves_no_trace(pl, tmp_path):
    def step(lit, batch):
        p = torch.softmax(20 * lit.net(batch[0]), 1)
        return -torch.log(p).gather(1, batch[1][:, None]).mean()

    def optimizer(lit):
        return torch.optim.SGD(lit.parameters(), lr=0.5)

    plain, guarded = module(pl, step, optimizer), module(pl, step, optimizer)
    trainer(pl, tmp_path, max_steps=1).fit(plain, loader())
    guard = callback(pl, confirm_seconds=5.0, training_seconds=30.0)
    trainer(pl, tmp_path, guard, max_steps=1).fit(guarded, loader())
    defect = next(each for each in guard.analysis.defects if each.op == "log")
    assert defect.proof == "certain in training"
    assert defect.training is None or "SGD(lr=0.5)" in defect.training.optimizer
    assert "your next run" in defect.prospect
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, guarded.state_dict()[name])


def test_a_bad_batch_is_skipped_and_named(pl, tmp_path):
    guard, lit = callback(pl), module(pl)
    trainer(pl, tmp_path, guard, max_epochs=1).fit(lit, loader(poison=3))
    assert finite(lit)
    (incident,) = guard.history.incidents
    assert incident.action == "skip"
    assert incident.culprit.cause == "data"
    lines = (tmp_path / "ranum_report" / "incidents.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["action"] == "skip"


def log_of_softmax(lit: Any, batch: Any) -> Tensor:
    x, y = batch
    return -(F.one_hot(y, 3) * torch.log(torch.softmax(lit.net(x) * lit.scale, -1))).sum(-1).mean()


def scaled(pl: ModuleType, at: int) -> Any:
    """A module whose logits jump in one step: softmax underflows there."""

    def step(lit: Any, batch: Any) -> Tensor:
        lit.scale = 1e4 if lit.seen == at else 1.0
        return log_of_softmax(lit, batch)

    return module(pl, step)


def test_the_culprit_is_named_and_clipped_live(pl, tmp_path):
    guard, lit = callback(pl), module(pl, log_of_softmax)
    lit.scale = 1.0

    class Jump(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step >= 5:
                lit.scale = 1e4

    code = log_of_softmax.__code__
    trainer(pl, tmp_path, Jump(), guard).fit(lit, loader())
    assert finite(lit)
    incident = guard.history.incidents[0]
    assert incident.action == "clip"
    assert incident.culprit.op == "log"
    assert incident.culprit.source.expression.startswith("torch.log(torch.softmax(")
    assert "torch.log_softmax(lit.net(x) * lit.scale, -1)" in incident.patch
    assert "wrote torch.log_softmax" in incident.detail
    actions = [one.action for one in guard.history.incidents]
    assert actions.count("clip") == 1  # the patch held; the loss of such logits is large
    assert log_of_softmax.__code__ is code  # and was taken out again


def test_a_patch_that_does_not_help_is_taken_out_again(pl, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from ranum.callbacks._session import Session
    from ranum.repair.patch import rewrite_edit

    def useless(self: Any, culprit: Any) -> Any:
        return SimpleNamespace(
            edit=rewrite_edit(culprit.source, f"({culprit.source.expression} + 0)")
        )

    monkeypatch.setattr(Session, "cure_for", useless)
    guard, lit = callback(pl, on_fault=("clip",), confirm_seconds=0), module(pl, log_of_softmax)
    lit.scale = 1.0

    class Jump(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step >= 5:
                lit.scale = 1e4

    code = log_of_softmax.__code__
    trainer(pl, tmp_path, Jump(), guard).fit(lit, loader())
    actions = [incident.action for incident in guard.history.incidents]
    assert actions == ["clip", "undo", "stop"]
    assert "took the live patch out again" in guard.history.incidents[1].detail
    assert guard.history.incidents[1].back_to is not None
    assert log_of_softmax.__code__ is code
    assert finite(lit)


def exponential(lit: Any, batch: Any) -> Tensor:
    return torch.exp((lit.net(batch[0]) * lit.scale).square()).mean()


def test_where_there_is_no_better_spelling_a_clip_is_inserted(pl, tmp_path):
    guard, lit = callback(pl), module(pl, exponential)
    lit.scale = 1.0

    class Jump(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step >= 5:
                lit.scale = 1e4

    trainer(pl, tmp_path, Jump(), guard).fit(lit, loader())
    assert finite(lit)
    incident = guard.history.incidents[0]
    assert incident.action == "clip"
    assert ".clamp(max=" in incident.patch


def test_a_patch_is_undone_if_anything_after_it_fails(pl, tmp_path, monkeypatch):
    from ranum.callbacks import _remedies

    def broken(*args: Any) -> None:
        raise RuntimeError("no way back")

    monkeypatch.setattr(_remedies, "scale_learning_rates", broken)
    guard, lit = callback(pl, strict=False), module(pl, log_of_softmax)
    lit.scale = 1.0
    seen: list[bool] = []

    class Jump(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step >= 5:
                lit.scale = 1e4
            seen.append(log_of_softmax.__code__ is code)

    code = log_of_softmax.__code__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(pl, tmp_path, Jump(), guard).fit(lit, loader())
    assert len(seen) > 6
    assert all(seen)


def test_a_search_may_find_that_clipping_is_enough(pl, tmp_path):
    pytest.importorskip("optuna")
    from ranum import SearchSpace

    def steep(lit: Any, batch: Any) -> Any:
        return lit.net(batch[0]).square().square().mean() + 1e3 * lit.net(batch[0]).abs().mean()

    only_clip = SearchSpace(
        learning_rate=None,
        optimizer=None,
        batch_size=None,
        initialization=None,
        activation=None,
        normalization=None,
        gradient_clip=(0, 1e-3, 1.0),
    )
    guard = callback(pl, search=only_clip, search_budget=4, on_fault=("repair",))
    lit = module(pl, steep, lambda lit: torch.optim.SGD(lit.parameters(), lr=0.5))
    run = trainer(pl, tmp_path, guard, max_epochs=2)
    assert not run.gradient_clip_val
    run.fit(lit, loader(batches=20, size=8))
    assert guard.repair.is_repaired
    assert set(guard.repair.patch) == {"gradient_clip"}
    assert run.gradient_clip_val == guard.repair.configuration["gradient_clip"] > 0
    assert finite(lit)


def test_a_run_that_learns_nothing_is_repaired_where_that_is_asked_for(pl, tmp_path):
    pytest.importorskip("optuna")
    from ranum.guards.symptoms import SlowConvergence

    def tiny(lit: Any) -> Any:
        return torch.optim.Adam(lit.parameters(), lr=1e-9)

    def run(**options: Any) -> tuple[Any, Any]:
        rule = SlowConvergence(patience=60, progress=0.9, improvement=0.9)
        guard = callback(pl, symptoms=[rule], search_budget=4, analyze="off", **options)
        lit = module(pl, lambda lit, batch: (lit.net(batch[0]) - 3).square().mean(), tiny)
        trainer(pl, tmp_path, guard, max_epochs=3).fit(lit, loader(batches=40, size=16))
        return guard, lit

    told, _ = run()
    assert [finding.code for finding in told.history.findings] == ["RN206"]
    assert told.repair is None
    guard, lit = run(act_on=["SlowConvergence"])
    assert guard.history.incidents[0].finding.code == "RN206"
    assert guard.history.incidents[0].action == "repair"
    assert guard.repair.is_repaired
    assert finite(lit)
    assert guard.history.readings[-1].learning_rate > 1e-9
    last = guard.history.incidents[-1].step
    assert len(guard.history.readings) >= last + 3 * 40


def test_a_hopeless_configuration_is_searched_and_training_restarts(pl, tmp_path):
    pytest.importorskip("optuna")

    def huge(lit: Any) -> Any:
        return torch.optim.SGD(lit.parameters(), lr=1e6)

    guard = callback(pl, search_budget=8, on_fault=("clip", "repair"))
    lit = module(pl, log_of_softmax, huge)
    lit.scale = 1.0
    trainer(pl, tmp_path, guard, max_epochs=6).fit(lit, loader(batches=30, size=16))
    assert guard.repair is not None
    assert guard.repair.is_repaired
    assert [incident.action for incident in guard.history.incidents][-1] == "repair"
    assert finite(lit)
    last = guard.history.incidents[-1].step
    assert len(guard.history.readings) >= last + 6 * 30  # all epochs once more
    x, y = loader(batches=30, size=16).dataset.tensors
    assert F.cross_entropy(lit.net(x), y) < 0.6


def test_when_nothing_is_left_training_stops(pl, tmp_path):
    def dead(lit: Any, batch: Any) -> Tensor:
        return (lit.net(batch[0]) * math.inf).sum()

    guard, lit = callback(pl, on_fault=()), module(pl, dead)
    run = trainer(pl, tmp_path, guard, max_epochs=5)
    run.fit(lit, loader())
    assert finite(lit)
    assert run.global_step < 40
    assert guard.history.incidents[-1].action == "stop"


# --- bad input ------------------------------------------------------------------------------


def test_a_model_that_raises_is_not_hidden(pl, tmp_path):
    def broken(lit: Any, batch: Any) -> Tensor:
        raise KeyError("mine")

    guard = callback(pl, strict=False)
    with (
        pytest.warns(RanumWarning, match="could not be recorded: it raised KeyError"),
        pytest.raises(KeyError, match="mine"),
    ):
        trainer(pl, tmp_path, guard).fit(module(pl, broken), loader())
    assert (tmp_path / "ranum_report" / "report.html").exists()


def test_one_batch(pl, tmp_path):
    guard = callback(pl)
    trainer(pl, tmp_path, guard).fit(module(pl), loader(batches=1))
    assert len(guard.history.readings) == 2


def test_a_batch_that_is_no_tensor(pl, tmp_path):
    def step(lit: Any, batch: Any) -> Tensor:
        return lit.net(torch.tensor([[float(len(batch[0]))] * 4])).sum() ** 2

    words = DataLoader(["a", "bb", "ccc"], batch_size=1)
    guard = callback(pl)
    trainer(pl, tmp_path, guard).fit(module(pl, step), words)
    assert len(guard.history.readings) == 6


def test_a_loss_in_a_dict(pl, tmp_path):
    def step(lit: Any, batch: Any) -> dict:
        return {"loss": F.cross_entropy(lit.net(batch[0]), batch[1]), "other": 3}

    guard = callback(pl)
    trainer(pl, tmp_path, guard).fit(module(pl, step), loader())
    assert guard.history.readings[0].loss is not None


def test_a_stream_of_batches(pl, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            for _ in range(5):
                x = torch.randn(4, 4, generator=generator)
                yield x, (x[:, 0] > 0).long()

    guard = callback(pl)
    trainer(pl, tmp_path, guard).fit(module(pl), DataLoader(Stream(), batch_size=None))
    assert len(guard.history.readings) == 10


def test_a_module_without_parameters(pl, tmp_path):
    class Empty(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> None:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(pl, tmp_path, callback(pl, strict=False)).fit(Empty(), loader())


def test_manual_optimization(pl, tmp_path):
    class Manual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = nn.Linear(4, 3)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    guard = callback(pl)
    lit = Manual()
    trainer(pl, tmp_path, guard, max_epochs=1).fit(lit, loader(poison=3))
    assert finite(lit)


def test_gradient_accumulation_and_clipping(pl, tmp_path):
    guard = callback(pl)
    trainer(
        pl, tmp_path, guard, accumulate_grad_batches=2, gradient_clip_val=0.5, max_epochs=1
    ).fit(module(pl), loader())
    assert len(guard.history.readings) == 4
    assert guard.history.readings[0].loss == pytest.approx(1.1, abs=0.6)


def test_tensorboard_not_installed(pl, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    guard = callback(pl)
    trainer(pl, tmp_path, guard).fit(module(pl), loader())
    assert (tmp_path / "ranum_report" / "report.html").exists()
    assert not list((tmp_path / "ranum_report").glob("events*"))


def test_no_source_to_patch(pl, tmp_path):
    space: dict[str, Any] = {"torch": torch, "F": F}
    exec(
        "def step(lit, batch):\n"
        "    x, y = batch\n"
        "    p = torch.softmax(lit.net(x) * lit.scale, -1)\n"
        "    return -(F.one_hot(y, 3) * torch.log(p)).sum(-1).mean()\n",
        space,
    )
    guard, lit = callback(pl, on_fault=("clip", "rollback")), module(pl, space["step"])
    lit.scale = 1e4
    run = trainer(pl, tmp_path, guard, max_epochs=1)
    run.fit(lit, loader())
    assert finite(lit)
    assert {incident.action for incident in guard.history.incidents} <= {"rollback", "stop"}


def test_a_fault_inside_ranum_is_reported_once_and_training_goes_on(pl, tmp_path, monkeypatch):
    from ranum.guards.guard import Guard

    def broken(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Guard, "begin", broken)
    plain, guarded = module(pl), module(pl)
    trainer(pl, tmp_path).fit(plain, loader())
    with pytest.warns(RanumWarning, match="ZeroDivisionError: ours") as caught:
        trainer(pl, tmp_path, callback(pl, strict=False)).fit(guarded, loader())
    assert sum(issubclass(item.category, RanumWarning) for item in caught) == 1
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, guarded.state_dict()[name])
    with pytest.raises(ZeroDivisionError, match="ours"):
        trainer(pl, tmp_path, callback(pl, strict=True)).fit(module(pl), loader())


# --- checkpoints ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_train_steps": 6},
        {"every_n_train_steps": 6, "save_weights_only": True},
        {"save_weights_only": True},
        {"monitor": "val"},
        {"save_last": True},
    ],
)
def test_no_checkpoint_holds_a_weight_that_was_damaged_at_rest(pl, tmp_path, options):
    class Flip(pl.Callback):
        """Damages a weight after the last step before each checkpoint."""

        def on_train_batch_end(self, trainer: Any, lit: Any, *args: Any) -> None:
            if trainer.global_step in (6, 12):
                with torch.no_grad():
                    lit.net[0].weight[0, 0] = torch.nan

    def run(*callbacks: Any) -> list[dict[str, Any]]:
        folder = tmp_path / str(len(callbacks))
        checkpoint = importlib.import_module(f"{pl.__name__}.callbacks").ModelCheckpoint(
            folder, save_top_k=-1, **options
        )
        lit = module(pl)
        options_ = {"enable_checkpointing": True, "limit_val_batches": 2}
        trainer(pl, tmp_path, *callbacks, checkpoint, **options_).fit(
            lit, loader(batches=6), loader(batches=2)
        )
        return [torch.load(one, weights_only=False) for one in sorted(folder.glob("*.ckpt"))]

    def is_finite(saved: dict[str, Any]) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in saved["state_dict"].values())

    assert not all(map(is_finite, run(Flip())))
    guard = callback(pl, analyze="off", snapshot_every=2, snapshot_to="disk")
    saved = run(Flip(), guard)
    assert saved
    assert all(map(is_finite, saved))
    incidents = guard.history.incidents
    assert [incident.action for incident in incidents] == ["rollback"] * 2
    assert incidents[0].culprit.name == "net.0.weight"
    assert incidents[0].detail.endswith("before anything was saved")
