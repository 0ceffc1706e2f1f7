"""A witness as a test file: it fails on the user's code, and passes once that is repaired."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys

import pytest
import torch

import ranum
from ranum.errors import ArgumentError

PROGRAMS = {
    "module": (
        """
        class Net(nn.Module):
            def __init__(self, width, classes=3):
                super().__init__()
                self.width = width
                self.layer = nn.Linear(width, classes)

            def forward(self, x):
                return torch.log(torch.softmax(self.layer(x), -1)).mean()
        """,
        "Net(4)",
        ("torch.log(torch.softmax(self.layer(x), -1))", "torch.log_softmax(self.layer(x), -1)"),
    ),
    "function": (
        """
        LAYER = nn.Linear(4, 3)

        def step(x):
            return torch.log(torch.sigmoid(LAYER(x))).mean()
        """,
        "step",
        ("torch.log(torch.sigmoid(LAYER(x)))", "nn.functional.logsigmoid(LAYER(x))"),
    ),
    "gradient": (
        """
        class Norm(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(4))

            def forward(self, x):
                return torch.sqrt((self.scale * x).square().sum(-1)).mean()
        """,
        "Norm()",
        ("square().sum(-1)", "square().sum(-1) + 1e-6"),
    ),
    "large": (
        """
        class Wide(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 20_000)

            def forward(self, x):
                return torch.exp(self.layer(x)).mean()
        """,
        "Wide()",
        ("self.layer(x)", "self.layer(x).clamp(max=80)"),
    ),
}


def _written(folder, name, source):
    lines = source.strip("\n").splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line)
    body = "\n".join(line[indent:] for line in lines)
    file = folder / f"{name}.py"
    file.write_text(f"import torch\nfrom torch import nn\n\n{body}\n", encoding="utf-8")
    return file


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Writes a program, imports it, and gives its target."""

    def load(case):
        source, target, repair = PROGRAMS[case]
        name = f"users_{case}_{tmp_path.name[-6:]}"
        file = _written(tmp_path, name, source)
        monkeypatch.syspath_prepend(str(tmp_path))
        module = importlib.import_module(name)
        return eval(target, vars(module)), file, repair

    return load


@pytest.mark.parametrize("case", PROGRAMS)
def test_the_file_fails_until_the_program_is_repaired(case, imported, tmp_path):
    torch.manual_seed(0)
    target, file, (bad, good) = imported(case)
    analysis = ranum.analyze(target, torch.rand(2, 4), inputs={"x": (-1, 1)}, weights=100.0)
    witness = ranum.confirm(analysis.defects[0])
    saved = witness.save_test(tmp_path / "tests" / "test_nan.py")
    assert saved.with_suffix(".pt").exists() == (case == "large")
    assert "ranum" not in saved.read_text(encoding="utf-8")
    with pytest.raises(AssertionError, match=r"gave NaN or Inf|a gradient is not finite"):
        _run(saved, file)
    source = file.read_text(encoding="utf-8")
    assert bad in source
    file.write_text(source.replace(bad, good), encoding="utf-8")
    _run(saved, file)


def _run(path, program):
    """Runs the file's test in this process, on the program as it is on disk now."""
    sys.modules.pop(program.stem, None)
    importlib.invalidate_caches()
    for test in (value for name, value in runpy.run_path(path).items() if name[:5] == "test_"):
        test()


@pytest.mark.slow
def test_pytest_runs_the_file(imported, tmp_path):  # 8 s
    model, file, (bad, good) = imported("module")
    witness = ranum.confirm(ranum.analyze(model, torch.rand(2, 4), weights=100.0).defects[0])
    saved = witness.save_test(tmp_path / "tests" / "test_nan.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(saved)]
    before = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert before.returncode == 1, before.stdout
    assert "1 failed" in before.stdout
    file.write_text(file.read_text(encoding="utf-8").replace(bad, good), encoding="utf-8")
    after = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert after.returncode == 0, after.stdout


def test_what_cannot_be_made_again_needs_a_maker(imported, tmp_path):
    model, file, _ = imported("module")
    del model.width
    witness = ranum.confirm(ranum.analyze(model, torch.rand(2, 4), weights=100.0).defects[0])
    with pytest.raises(ArgumentError, match="make must be given: Net needs 'width'"):
        witness.save_test(tmp_path / "test_nan.py")
    with pytest.raises(ArgumentError, match=r"path must end in \.py"):
        witness.save_test(tmp_path / "test_nan.txt")
    with pytest.raises(ArgumentError, match="make must be 'module:function'; got 'nowhere'"):
        witness.save_test(tmp_path / "test_nan.py", make="nowhere")
    with file.open("a", encoding="utf-8") as source:
        source.write("\n\ndef make():\n    return Net(4)\n")
    sys.modules.pop(file.stem)
    saved = witness.save_test(tmp_path / "test_nan.py", make=f"{file.stem}:make")
    assert saved.exists()


def test_a_closure_needs_a_maker(tmp_path):
    layer = torch.nn.Linear(4, 2)

    def step(x):
        return torch.log(layer(x)).mean()

    witness = ranum.confirm(ranum.analyze(step, torch.rand(2, 4), weights=100.0).defects[0])
    with pytest.raises(ArgumentError, match=r"make must be given: .*step cannot be imported"):
        witness.save_test(tmp_path / "test_nan.py")
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_not_fail_is_not_left_behind(imported, tmp_path):
    model, file, (bad, good) = imported("module")
    witness = ranum.confirm(ranum.analyze(model, torch.rand(2, 4), weights=100.0).defects[0])
    source = file.read_text(encoding="utf-8").replace(bad, good)
    (tmp_path / "repaired.py").write_text(
        f"{source}\n\ndef make():\n    return Net(4)\n", encoding="utf-8"
    )
    with pytest.raises(ArgumentError, match="so that it fails again; the test passed"):
        witness.save_test(tmp_path / "test_nan.py", make="repaired:make")
    assert not (tmp_path / "test_nan.py").exists()
