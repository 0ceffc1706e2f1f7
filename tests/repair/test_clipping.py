from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ranum
from ranum.analysis import analyze
from ranum.errors import ArgumentError
from ranum.repair._clamps import GRADIENT_HEADROOM
from ranum.repair.clipping import smallest_clip

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
X = torch.rand(5, 6)
LABELS = F.one_hot(torch.tensor([0, 1, 2, 3, 0]), 4).float()


def log_of_softmax(x: Tensor) -> Tensor:
    return -(LABELS * torch.log(torch.softmax(MODEL(x), -1))).sum(-1).mean()


def exponential(x: Tensor) -> Tensor:
    return torch.exp(MODEL(x)).sum()


def inverse_norm(x: Tensor) -> Tensor:
    return (x / x.norm(dim=-1, keepdim=True)).sum()


def root(x: Tensor) -> Tensor:
    return torch.sqrt((MODEL(x) ** 2).sum(-1)).sum()


def power(x: Tensor) -> Tensor:
    return (MODEL(x) ** 0.5).sum()


def difference(x: Tensor) -> Tensor:
    return (1 / MODEL(x)).sum()


CLIPPED = {
    "log": (log_of_softmax, "torch.softmax(MODEL(x), -1).clamp(min=", "lower"),
    "exp": (exponential, "MODEL(x).clamp(max=", "upper"),
    "norm": (inverse_norm, "x.norm(dim=-1, keepdim=True).clamp(min=", "lower"),
    "sqrt at 0": (root, "(MODEL(x) ** 2).sum(-1).clamp(min=", "lower"),
    "fractional power": (power, "MODEL(x).clamp(min=", "lower"),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_a_clip_removes_the_defect_on_the_bounds_and_in_the_code(name):
    step, expected, side = CLIPPED[name]
    analysis = analyze(step, X)
    assert len(analysis.defects) == 1
    (clip,) = ranum.fix(analysis, rewrite=False)
    assert clip.reason == ""
    assert getattr(clip, side) is not None
    diff = ranum.fix(analysis, rewrite=False).diff()
    assert any(expected in line for line in diff.splitlines() if line.startswith("+"))
    with ranum.fix(analysis, rewrite=False).apply():
        patched = analyze(step, X)
    assert patched.defects == ()
    assert [defect.code for defect in analyze(step, X).defects] == [analysis.defects[0].code]


@pytest.mark.parametrize("name", CLIPPED)
def test_the_witness_stays_finite_behind_the_clip(name):
    step, _, _ = CLIPPED[name]
    state = {key: value.clone() for key, value in MODEL.state_dict().items()}
    (defect,) = analyze(step, X).defects
    witness = ranum.confirm(defect, seconds=20)
    assert witness is not None
    (clip,) = [smallest_clip(defect)]
    try:
        with torch.no_grad():
            for key, tensor in witness.weights.items():
                MODEL.get_parameter(key).copy_(tensor)
        x = witness.inputs.get("x", X).clone().requires_grad_()
        with clip.edit.apply():
            loss = step(x)
            loss.backward()
        assert bool(loss.isfinite())
        assert all(bool(p.grad.isfinite().all()) for p in MODEL.parameters() if p.grad is not None)
        assert bool(x.grad.isfinite().all())
    finally:
        MODEL.load_state_dict(state)
        MODEL.zero_grad()


def test_ordinary_batches_are_not_changed_at_all():
    analysis = analyze(log_of_softmax, X)
    plain = log_of_softmax(X)
    with ranum.fix(analysis, rewrite=False).apply():
        assert torch.equal(plain, log_of_softmax(X))


def test_the_clip_is_the_smallest_that_bears_the_gradient():
    (clip,) = ranum.fix(analyze(log_of_softmax, X), rewrite=False)
    largest = torch.finfo(torch.float32).max
    assert GRADIENT_HEADROOM / clip.lower < largest
    assert GRADIENT_HEADROOM / (clip.lower / 4) > largest


def test_a_denominator_of_both_signs_keeps_its_sign():
    (clip,) = ranum.fix(analyze(difference, X), rewrite=False)
    assert clip.is_found
    assert clip.lower is None
    assert "away from 0, on its own side" in str(clip)
    found = ranum.fix(analyze(difference, X), rewrite=False)
    assert "+    return (1 / torch.where((divisor := MODEL(x)) < 0, " in found.diff()
    assert found.verify().remaining == ()
    assert found.verify().change == 0.0


def test_a_guarded_denominator_has_finite_quotients_and_gradients():
    def step(x, gain):
        return (x / gain).sum()

    ones, gain = torch.ones(4), torch.tensor([-2.0, -1e-30, 0.0, 3.0], requires_grad=True)
    ranges = {"x": (0, 1), "gain": (-4, 4)}
    found = ranum.fix(analyze(step, ones, gain, inputs=ranges))
    assert "torch.where(gain < 0, gain.clamp(max=-" in found.diff()
    assert not bool(step(ones, gain).isfinite())
    with found.apply():
        loss = step(ones, gain)
        loss.backward()
        assert analyze(step, ones, gain, inputs=ranges).defects == ()
    assert bool(loss.isfinite())
    assert bool(gain.grad.isfinite().all())
    distance = found.clips[0].distance
    assert 1e-20 < distance < 1e-12  # its square must not underflow, nor the quotient overflow


def test_a_sum_that_overflows_has_no_clip_and_says_so():
    analysis = analyze(lambda x: MODEL(x).clamp(-87, 87).exp().sum(), X, weights="anything")
    found = ranum.fix(analysis, rewrite=False)
    (clip,) = found
    assert not clip.is_found
    assert "no clamp of the operand" in clip.reason
    assert found.diff() == ""
    assert "no clip for RN107" in str(clip)


def test_without_source_the_bounds_are_found_and_the_edit_is_refused():
    space = {"torch": torch}
    exec("def step(x):\n    return torch.log(x).mean()\n", space)
    (clip,) = ranum.fix(analyze(space["step"], X, inputs={"x": (0.0, 1.0)}), rewrite=False)
    assert clip.is_found
    assert clip.edit is None
    assert clip.reason


def test_the_diff_applies(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(
        "import torch\n\n\ndef step(x):\n"
        "    # keep this comment\n"
        "    return -torch.log(torch.sigmoid(100 * x)).mean()  # and this\n"
    )
    space: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    clips = ranum.fix(analyze(space["step"], X, inputs={"x": (-9.0, 9.0)}), rewrite=False)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    diff = clips.edits[0].diff(root=tmp_path)
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=tmp_path, check=True)
    text = path.read_text()
    assert "torch.log(torch.sigmoid(100 * x).clamp(min=" in text
    assert "# keep this comment" in text
    assert "# and this" in text


def test_results_and_bad_arguments():
    analysis = analyze(log_of_softmax, X)
    (clip,) = ranum.fix(analysis, rewrite=False)
    assert clip.to_dict()["lower"] == clip.lower
    assert str(clip).startswith("clamp(min=")
    assert Path(__file__).name in str(clip)
    with pytest.raises(ArgumentError, match=r"where must be 'operators'.*got 'decoder'"):
        ranum.fix(analysis, where="decoder")
