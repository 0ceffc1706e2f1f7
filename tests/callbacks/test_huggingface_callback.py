"""The adapter's contract for the Hugging Face Trainer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards import Retry, Rollback

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from ranum.callbacks.huggingface import RanumCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]


class Samples(Dataset):
    def __init__(self, poison: int = -1) -> None:
        self._poison = poison

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(6, generator=generator)
        if index == self._poison:
            x = x * torch.nan
        return {"x": x, "labels": torch.tensor(index % 3)}


class Classifier(nn.Module):
    """Returns a loss of its own, as the Trainer expects of models."""

    def __init__(self, hand_written: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
        )
        self.hand_written = hand_written

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        if self.hand_written:
            picked = torch.log(torch.softmax(logits, -1))[torch.arange(len(labels)), labels]
            return {"loss": -picked.mean(), "logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(
    tmp_path: Any,
    *,
    fault_at: int | None = None,
    poison: int = -1,
    model: nn.Module | None = None,
    callback: Any = None,
    remedies: Any = None,
    **options: Any,
) -> tuple[dict[str, Any], Any]:
    """Trains two epochs of 8 batches; one gradient of a backward pass is NaN, once."""
    torch.manual_seed(0)
    model = model or Classifier()
    calls = [0]

    def poisoned(gradient: Tensor) -> Tensor | None:
        calls[0] += 1
        return gradient * torch.nan if calls[0] - 1 == fault_at else None

    model.net[0].weight.register_hook(poisoned)
    defaults = {"verbose": False, "strict": True, "snapshot_every": 3, "analyze": "off"}
    # Of a model that has come with hooks there is no copy.
    average = torch.optim.swa_utils.AveragedModel(Classifier())
    callback = callback or RanumCallback(**defaults, also=[average])
    if remedies is not None:
        make = callback._make_guard

        def make_guard(kwargs: Any) -> None:
            make(kwargs)
            callback._guard._ladder._active = list(remedies)

        callback._make_guard = make_guard
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.02,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=Samples(poison), callbacks=[callback]
    )
    trainer.remove_callback(transformers.PrinterCallback)
    optimizer = trainer.create_optimizer()
    optimizer.register_step_post_hook(lambda *_: average.update_parameters(model))
    trainer.train()
    end = {
        "weights": [t.clone() for t in model.state_dict().values()],
        "moments": [v.clone() for s in optimizer.state.values() for v in s.values()],
        "rate": [group["lr"] for group in optimizer.param_groups],
        "schedule": trainer.lr_scheduler.state_dict()["last_epoch"],
        "random": torch.get_rng_state(),
        "steps": trainer.state.global_step,
        "average": [t.clone() for t in average.state_dict().values()],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    return end, callback


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, list):
            return len(x) == len(y) and all(map(same, x, y))
        return torch.equal(x, y) if isinstance(x, Tensor) else bool(x == y)

    return [name for name in a if not same(a[name], b[name])]


@pytest.mark.parametrize("remedy", [Retry, lambda: Rollback(1.0)], ids=["retry", "rollback"])
@pytest.mark.parametrize(
    "case",
    [
        {"fault_at": 0},
        {"fault_at": 5, "gradient_accumulation_steps": 2},
        {"fault_at": 5, "max_grad_norm": 0.1},
        *(
            pytest.param(case, marks=pytest.mark.slow)  # 1 s each
            for case in (
                {"fault_at": 8},
                {"fault_at": 15},
                {"fault_at": 7, "gradient_accumulation_steps": 3},
                {"fault_at": 5, "bf16": True},
            )
        ),
    ],
    ids=str,
)
def test_a_fault_that_does_not_come_again_leaves_no_trace(tmp_path, case, remedy):
    plain = {name: value for name, value in case.items() if name != "fault_at"}
    reference, _ = train(tmp_path, **plain)
    end, callback = train(tmp_path, remedies=[remedy()], **case)
    (incident,) = callback.history.incidents
    assert incident.action in ("retry", "rollback")
    assert difference(end, reference) == []


def test_the_comparison_can_fail(tmp_path):
    reference, _ = train(tmp_path)
    end, _ = train(tmp_path, poison=3, remedies=[])
    assert {"weights", "steps"} <= set(difference(end, reference))


def test_a_bad_batch_is_named_left_out_and_not_counted(tmp_path):
    end, callback = train(tmp_path, poison=3)
    incidents = callback.history.incidents
    assert [incident.action for incident in incidents] == ["skip", "skip"]  # in either epoch
    assert incidents[0].culprit.cause == "data"
    assert incidents[0].culprit.name == "batch['x']"
    assert end["steps"] == end["schedule"] == int(end["average"][0]) == 14
    assert all(bool(tensor.isfinite().all()) for tensor in end["weights"])


def test_of_accumulated_batches_only_the_bad_one_is_left_out(tmp_path):
    end, callback = train(tmp_path, poison=3, gradient_accumulation_steps=4)
    assert [incident.action for incident in callback.history.incidents] == ["skip part"] * 2
    assert end["steps"] == end["schedule"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in end["weights"])


def test_gradients_are_read_before_they_are_clipped(tmp_path):
    _, callback = train(tmp_path, max_grad_norm=1e-3)
    norms = [reading.grad_norm for reading in callback.history.readings]
    assert min(norms) > 1e-2


def test_losses_are_those_of_the_trainer(tmp_path):
    end, callback = train(tmp_path)
    seen = [reading.loss for reading in callback.history.readings]
    assert seen == pytest.approx(end["losses"], rel=1e-4)


def test_the_step_is_analysed_and_reported(tmp_path):
    callback = RanumCallback(verbose=False, strict=True, confirm_seconds=1.0)
    train(tmp_path, model=Classifier(hand_written=True), callback=callback)
    (defect, *_) = callback.analysis.defects
    assert (defect.code, defect.severity) == ("RN101", "certain")
    assert "log(torch.softmax(logits, -1))" in str(defect)
    report = (tmp_path / "ranum_report" / "report.html").read_text()
    assert "RN101" in report


def test_an_incident_is_written_down(tmp_path):
    train(tmp_path, fault_at=5)
    lines = (tmp_path / "ranum_report" / "incidents.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["action"] == "retry"


def test_when_nothing_is_left_training_stops(tmp_path):
    end, callback = train(tmp_path, poison=3, remedies=[])
    assert callback.history.incidents[-1].action == "stop"
    assert end["steps"] < 16
    assert all(bool(tensor.isfinite().all()) for tensor in end["weights"])


def test_training_is_the_same_with_and_without(tmp_path):
    def plain() -> dict[str, Any]:
        class Nothing(transformers.TrainerCallback):
            pass

        return train(tmp_path, callback=Nothing())[0]

    for analyze in ("off", "step"):
        callback = RanumCallback(analyze, verbose=False, strict=True, confirm_seconds=0.2)
        assert difference(train(tmp_path, callback=callback)[0], plain()) == []
        assert not callback._model._forward_hooks
        assert not callback._model._forward_pre_hooks


def test_a_run_that_was_broken_off_leaves_no_hooks_to_the_next(tmp_path):
    class Breaks(Classifier):
        is_broken = True

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            if self.is_broken:
                raise KeyError("user")
            return super().forward(x, labels)

    model = Breaks()
    callback = RanumCallback("off", verbose=False, strict=True)
    with pytest.raises(KeyError, match="user"):
        train(tmp_path, model=model, callback=callback)
    model.is_broken = False
    train(tmp_path, model=model, callback=callback)
    assert len(callback.history.readings) == 16
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_a_loss_computed_outside_is_guarded_by_gradients(tmp_path):
    class Plain(Classifier):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(outputs["logits"], labels)

    callback = RanumCallback("off", verbose=False, strict=True, snapshot_every=3)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=4,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model = Plain()
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Samples(3),
        compute_loss_func=loss,
        callbacks=[callback],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    (incident,) = callback.history.incidents
    assert incident.culprit.name == "batch['x']"
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def test_a_fault_inside_ranum_is_reported_once_and_training_goes_on(tmp_path, monkeypatch):
    reference, _ = train(tmp_path)
    callback = RanumCallback("off", verbose=False)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr("ranum.callbacks._huggingface.Guard.begin", fails)
    with pytest.warns(RanumWarning, match="the guard failed"):
        end, _ = train(tmp_path, callback=callback)
    assert difference(end, reference) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"analyze": "yes"}, "analyze must be 'step' or 'off'; got 'yes'"),
        ({"on_fault": "skip"}, "on_fault must be a sequence of names out of retry"),
        ({"snapshot_every": 0}, "snapshot_every must be a whole number of at least 1; got 0"),
        ({"symptoms": ["spike"]}, "symptoms must be a sequence of symptoms or None"),
        ({"also": [3]}, "also must be a sequence of modules, or of what has state_dict"),
        ({"log_dir": 3}, "log_dir must be a path or None; got 3"),
        ({"confirm_seconds": -1}, "confirm_seconds must be 0 or more seconds; got -1"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ArgumentError, match=message):
        RanumCallback(**options)


# --- resuming -----------------------------------------------------------------------------------


class BrokenOff(transformers.TrainerCallback):
    """Ends a run between two steps, as SIGKILL would; see `benchmarks.faults.killed`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            raise KeyError("broken off")


def resumable(folder: Any, *, seed: int = 0, at: int = -1, resume: bool = False) -> Any:
    torch.manual_seed(seed)
    model = Classifier()
    callback = RanumCallback("off", verbose=False, strict=True, snapshot_every=3)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=0.02,
        lr_scheduler_type="cosine",
        logging_strategy="no",
        save_steps=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Samples(),
        callbacks=[callback, BrokenOff(at)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    state = trainer.optimizer.state.values()
    end = [t.clone() for t in model.state_dict().values()]
    end += [v.clone() for s in state for v in s.values()]
    return {"all": [*end, torch.get_rng_state()]}, callback


@pytest.mark.parametrize("at", [5, 11])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(tmp_path, at):
    reference, _ = resumable(tmp_path / "reference")
    with pytest.raises(KeyError, match="broken off"):
        resumable(tmp_path / "run", at=at)
    end, callback = resumable(tmp_path / "run", seed=7, resume=True)
    assert difference(end, reference) == []
    # The guard goes on too: it does not begin with step 0 again.
    assert callback.history.readings[0].step == at - at % 3
