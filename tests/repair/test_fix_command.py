from __future__ import annotations

import linecache
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import ranum
from ranum import cli
from ranum.errors import PatchError
from ranum.repair import writing
from ranum.repair.writing import refusal, write_edits

MODEL = """\
# -*- coding: {encoding} -*-
import math
import torch
import torch.nn.functional as F


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return torch.log(torch.softmax(self.layer(x), -1))  # Größe


class Fine(Net):
    def forward(self, x):
        return self.layer(x).mean()


class Both(Net):
    def forward(self, x):
        scores = self.layer(x)
        scores[scores.detach() > 1e3] = -math.inf
        return torch.softmax(scores, -1).pow(2).sum()
"""
X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "net.py"
    file.write_bytes(MODEL.format(encoding="utf-8").encode())
    yield file
    sys.modules.pop("net", None)


def fix(*options):
    return cli.main(["fix", *options, "--input", "6,4", "--no-confirm"])


def test_nothing_is_written_without_being_asked(model, capsys):
    before = model.read_bytes()
    assert fix("net.py:Net") == cli.OK
    assert model.read_bytes() == before
    assert os.listdir(model.parent) in (["net.py"], ["__pycache__", "net.py"])
    output = capsys.readouterr().out
    assert "torch.log_softmax(self.layer(x), -1) instead of torch.log(" in output
    assert "patched program: no defect left" in output
    assert "+        return torch.log_softmax(self.layer(x), -1)  # Größe" in output


def test_diff_alone_goes_to_standard_output(model, capsys):
    assert fix("net.py:Net", "--diff") == cli.OK
    captured = capsys.readouterr()
    assert captured.out.startswith("--- a/net.py\n+++ b/net.py\n")
    assert "no defect left" in captured.err


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-8-sig"])
def test_write_keeps_the_old_file_its_mode_and_encoding(model, capsys, encoding):
    named = encoding if encoding == "latin-1" else "utf-8"
    old = MODEL.format(encoding=named).replace("\n", "\r\n").encode(encoding)
    model.write_bytes(old)
    model.chmod(0o750)
    taken = model.with_name("net.py.orig")
    taken.write_text("mine")
    assert fix("net.py:Net", "--write") == cli.OK
    wanted = old.replace(b"torch.log(torch.softmax(", b"torch.log_softmax(").replace(
        b"-1))", b"-1)"
    )
    assert model.read_bytes() == wanted
    assert model.with_name("net.py.orig1").read_bytes() == old
    assert taken.read_text() == "mine"
    assert model.stat().st_mode & 0o777 == 0o750
    assert "the old text is in" in capsys.readouterr().out
    assert not [name for name in os.listdir(model.parent) if name.startswith(".")]


def test_clips_only_on_request(model, capsys):
    assert fix("net.py:Net", "--diff", "--no-rewrite") == cli.OK
    assert "torch.log(torch.softmax(self.layer(x), -1).clamp(min=" in capsys.readouterr().out


def test_what_cannot_be_cured_is_said(model, capsys):
    before = model.read_bytes()
    assert fix("net.py:Both", "--write") == cli.FOUND
    assert "no clip for RN110" in capsys.readouterr().out
    assert model.read_bytes() == before
    assert fix("net.py:Fine") == cli.OK
    assert "nothing to fix" in capsys.readouterr().out


def edits_of(model):
    space = {"__name__": "net"}
    exec(compile(model.read_text(), str(model), "exec", dont_inherit=True), space)
    return ranum.fix(ranum.analyze(space["Net"](), X, weights="anything")).edits


def test_a_file_that_changed_on_disk_is_refused(model):
    edits = edits_of(model)
    changed = model.read_text() + "\nmore = 1\n"
    model.write_text(changed)
    with pytest.raises(PatchError, match=r"Nothing was written: .*was changed on disk"):
        write_edits(edits)
    assert model.read_text() == changed
    model.unlink()
    assert "is no file" in refusal(edits[0])


def test_code_without_a_file_is_refused(model, capsys):
    place = model.with_name("made.py")
    place.write_text(
        "import torch\nspace = {'torch': torch}\n"
        "exec('def step(x):\\n    return torch.log(x * 0).mean()\\n', space)\n"
        "def make():\n    return space['step'], torch.rand(5, 4)\n"
    )
    try:
        assert fix("made.py:make", "--write") == cli.FOUND
    finally:
        sys.modules.pop("made", None)
    assert "in code made by exec" in capsys.readouterr().out


def test_an_archive_is_refused(model, capsys, monkeypatch):
    archive = model.with_name("models.zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(model, "zipped_net.py")
    before = archive.read_bytes()
    monkeypatch.setattr(sys, "path", [str(archive), *sys.path])
    try:
        assert fix("zipped_net:Net", "--write") == cli.FOUND
    finally:
        sys.modules.pop("zipped_net", None)
    assert "lies in an archive" in capsys.readouterr().out
    assert archive.read_bytes() == before


def test_an_installed_package_is_shown_but_not_written(model, monkeypatch):
    edits = edits_of(model)
    before = model.read_bytes()
    monkeypatch.setattr(writing, "is_installed", lambda file: file == str(model))
    with pytest.raises(PatchError, match="belongs to an installed package"):
        write_edits(edits)
    assert model.read_bytes() == before


def test_a_read_only_file_is_left_alone(model):
    edits = edits_of(model)
    before = model.read_bytes()
    model.chmod(0o444)
    with pytest.raises(PatchError, match=r"Nothing was written: .*is read-only"):
        write_edits(edits)
    assert model.read_bytes() == before
    assert "log_softmax" in edits[0].diff()


def test_an_interrupt_between_two_files_puts_the_first_one_back(model, monkeypatch):
    other = model.with_name("other.py")
    other.write_bytes(model.read_bytes())
    edits = [*edits_of(model), *edits_of(other)]
    before, replaced = model.read_bytes(), os.replace

    def interrupted(source, target):
        if str(target) == str(other):
            raise KeyboardInterrupt
        replaced(source, target)

    monkeypatch.setattr(writing.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_edits(edits)
    assert model.read_bytes() == other.read_bytes() == before
    assert sorted(os.listdir(model.parent)) == ["net.py", "other.py"]


CRASH = """
import os, sys
import torch, ranum
from ranum.repair import writing
sys.path.insert(0, os.getcwd())
import net, other
edits = [
    edit
    for module in (net, other)
    for edit in ranum.fix(ranum.analyze(module.Net(), torch.rand(5, 4), weights="anything")).edits
]
replaced = writing.os.replace

def crash(source, target):
    if str(target).endswith(sys.argv[1]):
        os._exit(9)
    replaced(source, target)

writing.os.replace = crash
writing.write_edits(edits)
"""


@pytest.mark.slow  # about 10 s: a process each that dies
@pytest.mark.parametrize("at", ["net.py", "other.py"])
def test_a_crash_leaves_each_file_whole_and_the_old_one_kept(model, at):
    other = model.with_name("other.py")
    other.write_bytes(model.read_bytes())
    before = model.read_bytes()
    environment = {**os.environ, "PYTHONPATH": str(Path(ranum.__file__).parents[1])}
    died = subprocess.run(
        [sys.executable, "-c", CRASH, at], cwd=model.parent, env=environment, check=False
    )
    assert died.returncode == 9
    after = model.read_bytes()
    assert (after == before) is (at == "net.py")
    assert b"log_softmax" in after or after == before
    assert model.with_name("net.py.orig").read_bytes() == before
    assert other.read_bytes() == before


def test_all_files_or_none(model, monkeypatch):
    other = model.with_name("other.py")
    other.write_bytes(model.read_bytes())
    edits = [*edits_of(model), *edits_of(other)]
    before, replaced = model.read_bytes(), os.replace

    def broken(source, target):
        if str(target) == str(other):
            raise OSError("disk full")
        replaced(source, target)

    monkeypatch.setattr(writing.os, "replace", broken)
    with pytest.raises(PatchError, match="Nothing was written: disk full"):
        write_edits(edits)
    assert model.read_bytes() == other.read_bytes() == before
    assert sorted(os.listdir(model.parent)) == ["net.py", "other.py"]


def test_ranges_of_weights_are_written_as_lines(model, capsys):
    wide = ("--weights", "60", "--range", "x=0:1")
    assert fix("net.py:Net", "--where", "weights", "--write", *wide) == cli.OK
    output = capsys.readouterr().out
    assert "weight layer.weight kept in [" in output
    assert "patched program: no defect left" in output
    assert "self.layer.weight.data.clamp_(min=" in model.read_text(encoding="utf-8")
    sys.modules.pop("net", None)
    assert cli.main(["analyze", "net.py:Net", "--input", "6,4", "--no-confirm", *wide]) == cli.OK
    assert "0 possible numerical defects" in capsys.readouterr().out


def test_what_no_input_range_removes_is_said(model, capsys):
    before = model.read_bytes()
    assert fix("net.py:Net", "--where", "inputs", "--weights", "600", "--write") == cli.FOUND
    assert "it fails, whatever the chosen ones hold" in capsys.readouterr().out
    assert model.read_bytes() == before
    assert fix("net.py:Net", "--where", "decoder") == cli.FAILED
    assert "Known: layer.weight, layer.bias, x" in capsys.readouterr().err


def test_a_notebook_cell_is_cured_live_and_shown(model):
    name, text = "<ipython-input-7>", MODEL.format(encoding="utf-8")
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    space = {"__name__": "__main__"}
    try:
        exec(compile(text, name, "exec", dont_inherit=True), space)
        net = space["Net"]()
        (cure,) = cures = ranum.fix(ranum.analyze(net, X, weights="anything"))
        assert "+        return torch.log_softmax(self.layer(x), -1)  # Größe" in cures.diff()
        with torch.no_grad():
            net.layer.bias.copy_(torch.tensor([500.0, 0.0, 0.0]))
        with cures.apply():
            assert bool(net(X).isfinite().all())
        assert not bool(net(X).isfinite().all())
        assert "is a notebook cell" in refusal(cure.edit)
        with pytest.raises(PatchError, match=r"Nothing was written: .*notebook cell"):
            write_edits(cures.edits)
    finally:
        del linecache.cache[name]


def test_a_file_changed_since_its_import_has_no_edit_and_says_so(model):
    space = {"__name__": "net"}
    exec(compile(model.read_text(), str(model), "exec", dont_inherit=True), space)
    net = space["Net"]()
    model.write_text(model.read_text().replace("torch.log(torch", "1 + torch.log(torch"))
    (cure,) = cures = ranum.fix(ranum.analyze(net, X, weights="anything"))
    assert cure.edit is None
    assert "was changed after it was imported" in cure.reason
    assert cures.diff() == ""


def test_code_that_is_no_python_is_refused(model):
    (cure,) = ranum.fix(ranum.analyze(torch.logdet, torch.eye(3)[None].repeat(2, 1, 1)[0]))
    assert cure.edit is None
    assert cure.reason
