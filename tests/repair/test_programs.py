"""Ten small programs in the style of forum questions: the diff applies, and cures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import ranum
from ranum import cli

PROGRAMS = Path(__file__).with_name("programs")
CURES = {
    "attention": ["torch.finfo(scores.dtype).min", "mask.sum(1).clamp(min=1.0)"],
    "contrastive": ["torch.sqrt(torch.sum((out1 - out2) ** 2, dim=1) + 1e-12)"],
    "ctc": ["torch.logsumexp(scores, 0)", "torch.logsumexp(alpha, 0)"],
    "flow": ["torch.abs(1 + psi @ self.u).clamp(min="],
    "focal": ["torch.log_softmax(logits, dim=1).gather(1, target.unsqueeze(1))"],
    "gan": ["logsigmoid(netD(real))", "logsigmoid(-fake_score)  # minimax loss"],
    "mixture": ["torch.sum(prob * pi, dim=1).clamp(min="],
    "rbm": ["softplus(wx_b).sum(1)"],
    "reinforce": ["probs[range(len(actions)), actions].clamp(min="],
    "vae": ["torch.exp((0.5 * logvar).clamp(max=", "logvar.clamp(max="],
}


def made(path: Path):
    spec = importlib.util.spec_from_file_location(f"{path.stem}_again", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make()


@pytest.mark.parametrize("name", CURES)
def test_the_diff_applies_and_cures(tmp_path, monkeypatch, capsys, name):
    path = tmp_path / f"{name}.py"
    path.write_text((PROGRAMS / path.name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    target, *inputs = made(path)
    assert ranum.analyze(target, *inputs).defects
    try:
        code = cli.main(["fix", f"{path.name}:make", "--diff", "--no-confirm"])
    finally:
        sys.modules.pop(path.stem, None)
    diff = capsys.readouterr().out
    assert code == cli.OK
    for text in CURES[name]:
        assert text in diff
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "apply", "-"], input=diff.encode(), check=True)
    target, *inputs = made(path)
    assert ranum.analyze(target, *inputs).defects == ()
