"""The command line: what it prints, and the exit code a CI job would see."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from ranum import __version__, cli, pages

MODELS = """
import torch
from torch import nn

class Healthy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))

class HandWritten(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        x = 20 * x  # far enough apart for a softmax to underflow
        return -torch.log(torch.softmax(self.layer(x), -1)).mean()

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, tokens):
        return self.table(tokens).mean()

ready = Healthy()

class Grown(nn.Module):
    def __init__(self):
        super().__init__()
        self.size, self.other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.exp(self.size * x).mean() * self.other.tanh()

def with_loader():
    data = torch.utils.data.TensorDataset(torch.tensor([[1.0], [2.0], [60.0], [4.0]]))
    return Grown(), torch.utils.data.DataLoader(data, 2)

def with_inputs():
    return HandWritten(), torch.randn(2, 4)

def needs_an_argument(size):
    return nn.Linear(size, size)

def raises():
    raise RuntimeError("no weights here")

number = 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "models.py"
    file.write_text(MODELS)
    yield file
    for name in ("models", "models_analyzed"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("Healthy", ["--input", "2,4"], cli.OK),
        ("Healthy", ["--input", "2,4", "--forward-only"], cli.OK),
        ("ready", ["--input", "2,4"], cli.OK),
        ("Tokens", ["--input", "2,5:10"], cli.OK),
        ("HandWritten", ["--input", "2,4"], cli.FOUND),
        ("HandWritten", ["--input", "2,4", "--no-confirm"], cli.OK),
        ("with_inputs", [], cli.FOUND),
    ],
)
def test_analyze(models, capsys, name, options, code):
    assert cli.main(["analyze", f"{models}:{name}", *options]) == code
    output = capsys.readouterr().out
    if name in ("HandWritten", "with_inputs"):
        assert "torch.log(torch.softmax(self.layer(x), -1))" in output
        assert ("certain" in output) == (code == cli.FOUND)


def test_analyze_saves(models, capsys, tmp_path):
    report = tmp_path / "report.json"
    cli.main(["analyze", f"{models}:with_inputs", "--no-confirm", "--save", str(report)])
    assert json.loads(report.read_text())["defects"]
    assert str(report) in capsys.readouterr().out


def test_same_seed_same_answer(models, capsys):
    outputs = []
    for _ in range(2):
        cli.main(["analyze", f"{models}:HandWritten", "--input", "2,4", "--seed", "7"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}", "must look like model.py:Net"),
        ("{file}:", "must look like model.py:Net"),
        ("{file}:Helthy", "has no 'Helthy'; it defines Grown, HandWritten, Healthy, Tokens"),
        ("{file}x.py:Net", "there is no file"),
        ("{file}:number", "must be a module, a class or a function; got int"),
        ("{file}:needs_an_argument", "missing 1 required positional argument"),
        ("{file}:raises", "RuntimeError: no weights here"),
        ("no_such_package:Net", "No module named 'no_such_package'"),
        ("{file}:Healthy --save report.pdf --input 2,4", "must end in .html or .json"),
        ("{file}:Healthy --input 2,5", "shapes cannot be multiplied"),
    ],
)
def test_bad_target_says_what_is_wrong(models, capsys, spec, message):
    assert cli.main(["analyze", *spec.format(file=models).split()]) == cli.FAILED
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("ranum: ")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("shape", ["2,x", "2,4:", "0,4", "2:-1", "2;4"])
def test_bad_shape_is_a_usage_error(capsys, shape):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["analyze", "model.py:Net", "--input", shape])
    assert stopped.value.code == cli.FAILED
    assert repr(shape) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("2,3", (2, 3), torch.float32),
        ("8:10", (8,), torch.int64),
        ("2,5:1000", (2, 5), torch.int64),
    ],
)
def test_example_inputs(text, shape, dtype):
    tensor = cli._example(text)()
    assert tensor.shape == shape
    assert tensor.dtype == dtype


def test_explain_lists_every_rule(capsys):
    assert cli.main(["explain"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [code, rule.__name__] for code, rule in pages.rules().items()
    ]


@pytest.mark.parametrize("code", pages.rules())
def test_every_rule_has_a_page(code, capsys):
    rule = pages.rules()[code]
    assert cli.main(["explain", code.lower()]) == cli.OK
    page = capsys.readouterr().out
    assert page.startswith(f"{code} {rule.__name__}\n")
    assert pages.summary(rule) in page
    assert pages.explain(rule.__name__) == page


def test_explain_unknown_code_lists_known_ones(capsys):
    assert cli.main(["explain", "RN000"]) == cli.FAILED
    message = capsys.readouterr().err
    assert "got 'RN000'" in message
    assert all(code in message for code in pages.rules())


def test_page_of_a_dataclass_shows_defaults():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class TooLarge:
        """Finds large numbers.

        Attributes:
            limit: What is large.
        """

        limit: float = 1e15
        mode: str = "max"

    page = pages._page("RN999", TooLarge)
    assert page.endswith("Defaults:\n    limit = 1e+15\n    mode = 'max'\n")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"ranum {__version__}\n"


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "ranum.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "analyze" in done.stdout
    assert "explain" in done.stdout


# --- ranges --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "finds"),
    [
        ([], False),
        (["--weights", "anything"], True),
        (["--weights", "60"], True),
        (["--weights", "size=-1:1", "--weights", "anything"], False),
        (["--weights", "size=initial", "--weights", "anything"], False),
        (["--weights", "other=initial", "--weights", "anything"], True),
        (["--range", "x=0:50"], True),
    ],
)
def test_ranges_of_weights_and_inputs(options, finds, models, capsys):
    usual = [] if "--range" in options else ["--range", "x=0:2"]
    arguments = ["analyze", f"{models}:Grown", "--input", "2,1", "--no-confirm", *usual]
    assert cli.main([*arguments, *options]) == cli.OK
    assert ("RN104" in capsys.readouterr().out) == finds


def test_a_function_may_bring_a_loader(models, capsys):
    assert cli.main(["analyze", f"{models}:with_loader", "--no-confirm"]) == cli.OK
    out = capsys.readouterr().out
    assert "RN104" in out
    assert "2 batches of data" in out


@pytest.mark.parametrize(
    "option",
    [["--range", "x"], ["--range", "x=1"], ["--weights", "big"], ["--weights", "a=b:c"]],
)
def test_ranges_that_cannot_be_read(option, models, capsys):
    with pytest.raises(SystemExit):
        cli.main(["analyze", f"{models}:Grown", *option])
    assert "must look like" in capsys.readouterr().err


def test_a_range_upside_down_and_a_file_that_is_not_trusted(models, capsys):
    arguments = ["analyze", f"{models}:Grown", "--input", "2,1"]
    assert cli.main([*arguments, "--range", "x=2:1"]) == cli.FAILED
    assert "must have lower <= upper" in capsys.readouterr().err
    assert cli.main(["analyze", "model.pt2"]) == cli.FAILED
    assert "pass trust=True" in capsys.readouterr().err
    assert cli.main(["analyze", "model.pt2", "--trust"]) == cli.FAILED
    assert "could not be read as an exported program" in capsys.readouterr().err
    assert cli.main([*arguments, "--step", "validation"]) == cli.FAILED
    assert "is for a LightningModule" in capsys.readouterr().err
