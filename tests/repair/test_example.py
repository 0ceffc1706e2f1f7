"""The example is what it says: it fails as written, and trains once it is cured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "fix.py"


def test_the_example_is_cured_and_not_touched(monkeypatch, capsys):
    before = EXAMPLE.read_bytes()
    spec = importlib.util.spec_from_file_location("example_fix", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "example_fix", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["fix.py"])
    assert module.main() == 0
    output = capsys.readouterr().out
    assert "as written: loss 7.00 -> nan; lost in step 12" in output
    assert "+        return -(y * torch.log_softmax(self.net(x), dim=-1)).sum(-1).mean()" in output
    assert "patched program: no defect left" in output
    assert "as cured: loss 7.00 -> 0.00\n" in output
    assert EXAMPLE.read_bytes() == before
    monkeypatch.setattr(module, "STEPS", 1)  # too few to lose the loss
    assert module.main() == 1
