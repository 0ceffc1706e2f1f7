"""What people's files look like: the cure lands where it must, and changes nothing else."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap

import pytest
import torch

import ranum

X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
RANGES = {"x": (-1000.0, 1000.0)}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes files, imports the last one, and applies diffs to them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: list[str] = []

    def make(newline="\n", **files):
        for name, text in files.items():
            content = textwrap.dedent(text).lstrip("\n").replace("\n", newline)
            (tmp_path / f"{name}.py").write_bytes(content.encode())
            names.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(names[-1])

    yield make
    for name in names:
        sys.modules.pop(name, None)


def cured(module, path):
    """The file's text once the diff for `module.step` was applied to it."""
    target = module.make() if hasattr(module, "make") else module.step
    cures = ranum.fix(ranum.analyze(target, X, weights="anything", inputs=RANGES))
    assert cures.verify().is_clean
    assert cures.verify().remaining == ()
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(
        ["git", "apply", "--whitespace=nowarn", "-"], input=cures.diff().encode(), check=True
    )
    return path.read_bytes().decode()


BODIES = {
    "names from torch": (
        "from torch import log, softmax\ndef step(x): return -log(softmax(x, -1)).mean()\n",
        "def step(x): return -torch.log_softmax(x, -1).mean()\n",
    ),
    "another name": (
        "from torch.nn.functional import softmax as sm\n"
        "def step(x):\n    q = sm(x, dim=-1)\n    return -torch.log(q).mean()\n",
        "def step(x):\n    return -torch.log_softmax(x, -1).mean()\n",
    ),
    "lambda": (
        "step = lambda x: -torch.log(torch.sigmoid(x)).mean()\n",
        "step = lambda x: -F.logsigmoid(x).mean()\n",
    ),
    "comprehension": (
        "def step(x):\n    return sum(torch.log(torch.softmax(r, -1)).mean() for r in x)\n",
        "    return sum(torch.log_softmax(r, -1).mean() for r in x)\n",
    ),
    "walrus": (
        "def step(x):\n    return -torch.log(q := torch.softmax(x, -1)).mean() + q.sum()\n",
        "-torch.log((q := torch.softmax(x, -1)).clamp(min=1.2e-38)).mean() + q.sum()\n",
    ),
    "f-string": (
        "def step(x):\n    n = f\"{'a' * 2}: {x.shape[0]}\"; y = torch.log(torch.sigmoid(x)).mean()"
        "; assert n\n    return y\n",
        "    n = f\"{'a' * 2}: {x.shape[0]}\"; y = F.logsigmoid(x).mean(); assert n\n",
    ),
    "decorator": (
        "import functools\ndef plain(f):\n    @functools.wraps(f)\n    def g(*a): return f(*a)\n"
        "    return g\n@plain\ndef step(x): return -torch.log(torch.sigmoid(x)).mean()\n",
        "@plain\ndef step(x): return -F.logsigmoid(x).mean()\n",
    ),
    "closure": (
        "def outer(scale):\n    def inner(x):\n        p = torch.sigmoid(x * scale)\n"
        "        return -torch.log(p).mean()\n    return inner\nstep = outer(2.0)\n",
        "    def inner(x):\n        return -F.logsigmoid(x * scale).mean()\n    return inner\n",
    ),
    "tabs": (
        "def step(x):\n\tq = torch.softmax(x, -1)\n\treturn -torch.log(q).mean()\n",
        "def step(x):\n\treturn -torch.log_softmax(x, -1).mean()\n",
    ),
    "columns that are not bytes": (
        "def step(x):\n    größe = x; ñ = 'ü€'; assert ñ\n"
        "    return -torch.log(torch.softmax(größe, -1)).mean()  # ∑\n",
        "    return -torch.log_softmax(größe, -1).mean()  # ∑\n",
    ),
    "called twice, once in vain": (
        "def nll(p): return -torch.log(p).mean()\n"
        "def step(x):\n    return nll(torch.softmax(x, -1)) + nll(x ** 2 + 1)\n",
        "def nll(p): return -torch.log(p.clamp(min=1.2e-38)).mean()\n",
    ),
    "comments between": (
        "def step(x):\n    return -torch.log(  # outside\n        torch.softmax(\n"
        "            x,  # inside\n            dim=-1,\n        )\n    ).mean()  # behind\n",
        "    return -torch.log_softmax(\n            x,  # inside\n            dim=-1,\n"
        "        ).mean()  # behind\n",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_diff_keeps_the_writers_style(project, tmp_path, name):
    before, after = BODIES[name]
    module = project(net=HEAD + before)
    assert after in cured(module, tmp_path / "net.py")


def test_line_ends_of_windows_are_kept(project, tmp_path):
    text = HEAD + "def step(x):\n    q = torch.softmax(x, -1)\n    return -torch.log(q).mean()\n"
    after = cured(project(newline="\r\n", net=text), tmp_path / "net.py")
    assert after.endswith("def step(x):\r\n    return -torch.log_softmax(x, -1).mean()\r\n")
    assert after.count("\n") == after.count("\r\n")


def test_a_method_from_another_file_is_cured_there(project, tmp_path):
    base = HEAD + (
        "class Base(nn.Module):\n    def loss(self, z):\n"
        "        return -torch.log(torch.softmax(z, -1)).mean()\n"
    )
    own = HEAD + (
        "from base import Base\nclass Net(Base):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return self.loss(self.layer(x))\n"
        "def make():\n    return Net()\n"
    )
    after = cured(project(base=base, net=own), tmp_path / "base.py")
    assert "        return -torch.log_softmax(z, -1).mean()\n" in after
    assert (tmp_path / "net.py").read_text() == own
