from __future__ import annotations

import math
import subprocess

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ranum
from ranum.analysis import analyze
from ranum.repair.clipping import Clip, Clips, Rewrite

MODEL = torch.nn.Linear(4, 3)
X = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))
W = torch.full((4, 1), 0.5)
MASK = (X > 0.5).float()
FIRST = torch.zeros(5, 1, dtype=torch.long)


def log_of_softmax(x: Tensor) -> Tensor:
    return torch.log(F.softmax(MODEL(x), dim=1)).sum()


def log_of_named(x: Tensor) -> Tensor:
    probs = x.softmax(-1)
    return probs.log().sum()


def log_of_gathered(x: Tensor) -> Tensor:
    return torch.log(F.softmax(MODEL(x), -1).gather(1, FIRST)).sum()


def log_of_indexed(x: Tensor) -> Tensor:
    probs = torch.softmax(x, -1)
    return torch.log(probs[torch.arange(5), 0]).sum()


def cross_entropy_by_hand(x: Tensor, w: Tensor) -> Tensor:
    p = torch.sigmoid(x @ w)
    return -(torch.log(p) + torch.log(1 - p)).mean()


def softplus_by_hand(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(MODEL(x))).sum()


def log1p_of_exp(x: Tensor) -> Tensor:
    return torch.log1p(x.exp()).sum()


def two_sums(x: Tensor) -> Tensor:
    both = torch.log(torch.exp(x[:, 0]) + torch.exp(x[:, 1])).sum()
    return both + torch.log(torch.exp(x).sum(-1)).sum()


def distance(x: Tensor) -> Tensor:
    return torch.sqrt(((MODEL(x) - x[:, :3]) ** 2).sum(-1)).sum()


def power(x: Tensor) -> Tensor:
    return (((MODEL(x) - x[:, :3]) ** 2).sum(-1) ** 0.5).sum()


def unit(x: Tensor) -> Tensor:
    return (x / x.norm(dim=-1, keepdim=True)).sum()


def unit_by_hand(x: Tensor) -> Tensor:
    return (x / torch.sqrt((x**2).sum(-1, keepdim=True))).sum()


def shares(x: Tensor) -> Tensor:
    return (torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)).sum()


def shares_named(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return (e / e.sum(dim=1, keepdim=True)).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask).sum() / mask.sum()


def shares_of_rows(x: Tensor) -> Tensor:
    total = torch.exp(x).sum(1)
    return (torch.exp(x) / total.unsqueeze(1)).sum()


def shares_by_index(x: Tensor) -> Tensor:
    return (torch.exp(x) / torch.exp(x).sum(1)[:, None]).sum()


def log_of_shares(x: Tensor) -> Tensor:
    e = torch.exp(x)
    p = e / e.sum(1, keepdim=True)
    return -torch.log(p).mean()


def divergence(x: Tensor) -> Tensor:
    p, q = x.softmax(-1), torch.softmax(2 * x, dim=-1)
    return (p * torch.log(torch.softmax(3 * x, -1) / torch.softmax(x, -1))).sum() + q.sum()


def whole_sum(x: Tensor) -> Tensor:
    return torch.log(torch.exp(x).sum())


def log_of_mean(x: Tensor) -> Tensor:
    return torch.log(torch.mean(torch.exp(x), 1)).mean()


def unit_by_order(x: Tensor) -> Tensor:
    return (x / x.norm(2, -1, True)).sum()


def unit_of_rows(x: Tensor) -> Tensor:
    return (x / torch.norm(x, dim=1).unsqueeze(1)).sum()


def entropy_of_labels(x: Tensor, mask: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    return -(mask * torch.log(p) + (1 - mask) * torch.log(1 - p)).mean()


def entropy_added_up(x: Tensor, mask: Tensor) -> Tensor:
    p = x.sigmoid()
    each = -mask * p.log() - (1 - mask) * (1 - p).log()
    return each.sum()


def entropy_of_each(x: Tensor, mask: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    each = -((1.0 - mask) * torch.log(1.0 - p) + torch.log(p) * mask)
    return (each * 2).mean()


def lost_guard(x: Tensor) -> Tensor:
    return -torch.log(1e-10 + 1 - torch.sigmoid(x)).mean()


def small_guard(x: Tensor) -> Tensor:
    return -torch.log(torch.softmax(x, -1) + 1e-46).mean()


def tanh_by_hand(x: Tensor) -> Tensor:
    h = MODEL(x)
    return ((torch.exp(h) - torch.exp(-h)) / (torch.exp(h) + torch.exp(-h))).mean()


def sigmoid_by_hand(x: Tensor) -> Tensor:
    h = MODEL(x)
    return (1 / (1 + torch.exp(-h))).mean()


def squashed(x: Tensor) -> Tensor:
    u = MODEL(x)
    a = torch.tanh(u)
    return torch.log(1 - a.pow(2)).mean()


def branches(x: Tensor) -> Tensor:
    h = MODEL(x)
    return torch.where(h != 0, 1 / h, torch.zeros_like(h)).mean()


def branch_of_root(x: Tensor) -> Tensor:
    h = MODEL(x)
    return torch.where(h <= 0, 0.0, h.sqrt()).mean()


def mask_beside(x: Tensor) -> Tensor:
    bias = torch.zeros_like(x).masked_fill(x < 0.5, -math.inf)
    return torch.softmax(2 * x + bias, -1).pow(2).sum()


def mask_by_where(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, x, float("-inf")).softmax(-1).pow(2).sum()


def loss_of_chosen(x: Tensor) -> Tensor:
    return F.mse_loss(x[x > 0.5], 2 * x[x > 0.5])


def mean_of_chosen(x: Tensor) -> Tensor:
    return x[x > 0.5].mean()


def attention(x: Tensor) -> Tensor:
    scores = x.masked_fill(x < 0.5, float("-inf"))
    return torch.softmax(scores, -1).sum()


BETTER = {
    "log_softmax": (log_of_softmax, (), "F.log_softmax(MODEL(x), dim=1)"),
    "named": (log_of_named, (), "x.log_softmax(-1)"),
    "gathered": (log_of_gathered, (), "F.log_softmax(MODEL(x), -1).gather(1, FIRST)"),
    "indexed": (log_of_indexed, (), "torch.log_softmax(x, -1)[torch.arange(5), 0]"),
    "logsigmoid": (cross_entropy_by_hand, (W,), "-(F.logsigmoid(x @ w) + F.logsigmoid(-(x @ w)))"),
    "softplus": (softplus_by_hand, (), "F.softplus(MODEL(x))"),
    "log1p": (log1p_of_exp, (), "F.softplus(x)"),
    "logaddexp": (two_sums, (), "torch.logaddexp(x[:, 0], x[:, 1]).sum()"),
    "logsumexp": (two_sums, (), "both + torch.logsumexp(x, -1).sum()"),
    "sqrt": (distance, (), ".sum(-1) + 1e-12).sum()"),
    "power": (power, (), "((((MODEL(x) - x[:, :3]) ** 2).sum(-1) + 1e-12) ** 0.5)"),
    "normalize": (unit, (), "F.normalize(x, dim=-1)"),
    "root": (unit_by_hand, (), "F.normalize(x, dim=-1)"),
    "softmax": (shares, (), "torch.softmax(x, -1)"),
    "count": (masked_mean, (MASK,), "mask.sum().clamp(min=1.0)"),
    "mean": (mean_of_chosen, (), "x[x > 0.5].sum() / (x > 0.5).sum().clamp(min=1)"),
    "attention": (attention, (), "x.masked_fill(x < 0.5, torch.finfo(x.dtype).min)"),
    "shares of rows": (shares_of_rows, (), "    return torch.softmax(x, 1).sum()"),
    "shares by index": (shares_by_index, (), "    return torch.softmax(x, 1).sum()"),
    "log of shares": (log_of_shares, (), "-torch.log_softmax(x, 1).mean()"),
    "divergence": (divergence, (), "(torch.log_softmax(3 * x, -1) - torch.log_softmax(x, -1))"),
    "whole sum": (whole_sum, (), "torch.logsumexp(x.flatten(), 0)"),
    "log of mean": (log_of_mean, (), "(torch.logsumexp(x, 1) - math.log(x.shape[1])).mean()"),
    "unit by order": (unit_by_order, (), "F.normalize(x, dim=-1).sum()"),
    "unit of rows": (unit_of_rows, (), "F.normalize(x, dim=1).sum()"),
    "labels": (entropy_of_labels, (MASK,), "F.binary_cross_entropy_with_logits(x, mask)"),
    "labels, sum": (entropy_added_up, (MASK,), 'with_logits(x, mask, reduction="sum")'),
    "labels, each": (entropy_of_each, (MASK,), 'with_logits(x, mask, reduction="none")'),
    "lost guard": (lost_guard, (), "-F.logsigmoid(-x).mean()"),
    "small guard": (small_guard, (), "-torch.log_softmax(x, -1).mean()"),
    "tanh": (tanh_by_hand, (), "torch.tanh(h).mean()"),
    "sigmoid": (sigmoid_by_hand, (), "torch.sigmoid(h).mean()"),
    "squashed": (squashed, (), "(2 * (math.log(2) - u - F.softplus(-2 * u)))"),
    "branches": (branches, (), "torch.where(h != 0, 1 / torch.where(h != 0, h, 1.0), torch"),
    "branch of root": (branch_of_root, (), "0.0, torch.where(h <= 0, 1.0, h).sqrt())"),
    "mask beside": (mask_beside, (), ".masked_fill(x < 0.5, torch.finfo(torch.float32).min)"),
    "mask by where": (mask_by_where, (), "x, torch.finfo(torch.float32).min).softmax(-1)"),
    "loss of chosen": (loss_of_chosen, (), ', reduction="sum") / (x > 0.5).sum().clamp(min=1)'),
}


def analysed(step, more, **options):
    return analyze(step, X, *more, weights="anything", inputs={"x": (-1000.0, 1000.0)}, **options)


QUICK = {
    *("gathered", "logsigmoid", "softplus", "logsumexp", "sqrt", "normalize", "softmax", "count"),
    *("attention", "log of shares", "labels", "labels, each", "lost guard", "tanh", "squashed"),
    *("branches", "mask beside", "loss of chosen"),
}
"""One of each family; the others take half a minute together."""


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BETTER],
)
def test_the_developers_spelling_is_offered_first_and_cures(name):
    step, more, expected = BETTER[name]
    analysis = analysed(step, more)
    assert analysis.defects
    cures = ranum.fix(analysis)
    assert all(isinstance(one, Rewrite) for one in cures)
    added = [line for line in cures.diff().splitlines() if line.startswith("+")]
    assert any(expected in line for line in added), cures.diff()
    with cures.apply():
        assert analysed(step, more).defects == ()


@pytest.mark.parametrize("name", ["named", "log1p", "normalize", "count", "attention"])
def test_the_witness_stays_finite_in_the_rewritten_program(name):
    step, more, _ = BETTER[name]
    inputs = {"x": (-100.0, 100.0)} | ({"mask": (0.0, 1.0)} if more else {})
    analysis = analyze(step, X, *more, inputs=inputs, weights="initial")
    proven = [ranum.confirm(defect) for defect in analysis.defects]
    assert all(witness is not None for witness in proven)
    certain = [
        defect.certain(witness) for defect, witness in zip(analysis.defects, proven, strict=True)
    ]
    object.__setattr__(analysis, "defects", tuple(certain))
    cures = ranum.fix(analysis)
    assert all(isinstance(one, Rewrite) for one in cures)
    assert cures.verify().is_finite is True


def reassigned(x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)
    x = x + 1
    return torch.log(p).sum() + x.sum()


def either(x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)
    if x.shape[0] > 100:
        p = x.abs()
    return torch.log(p).sum()


def called(x: Tensor) -> Tensor:
    p = torch.softmax(F.dropout(x, 0.5), -1)
    return torch.log(p).sum() + p.sum()


def probabilities(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def elsewhere(x: Tensor) -> Tensor:
    return torch.log(probabilities(x)).sum()


def read_twice(x: Tensor) -> Tensor:
    p = F.softmax(
        MODEL(x) * 2,  # logits
        dim=-1,
    )
    return torch.log(p).sum() + p[0, 0]


def named_inside(x: Tensor) -> Tensor:
    a = torch.tanh(MODEL(x))
    return torch.log(1 - a.pow(2)).mean()


def global_norm(x: Tensor) -> Tensor:
    return (x / x.norm()).sum()


@pytest.mark.parametrize("step", [reassigned, either, elsewhere, global_norm])
def test_where_the_words_would_mean_something_else_it_is_clipped(step):
    cures = ranum.fix(analysed(step, ()))
    assert {type(one) for one in cures} == {Clip}
    assert "clamp" in cures.diff()


def moved(x: Tensor) -> Tensor:
    p = torch.softmax(F.dropout(x, 0.5), -1)
    return torch.log(p).sum()


def with_comment(x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)  # the shares
    return torch.log(p).sum()


def read_later(x: Tensor) -> Tensor:
    p = torch.softmax(x, -1)

    def inner() -> Tensor:
        return p.sum()

    return torch.log(p).sum() + inner()


def test_a_line_that_nobody_reads_any_more_goes_away():
    lines = ranum.fix(analysed(moved, ())).diff().splitlines()
    assert "-    p = torch.softmax(F.dropout(x, 0.5), -1)" in lines
    assert "+    return torch.log_softmax(F.dropout(x, 0.5), -1).sum()" in lines


def test_what_is_needed_twice_gets_a_name_on_a_line_before():
    cures = ranum.fix(analysed(read_twice, ()))
    added = [line for line in cures.diff().splitlines() if line.startswith("+  ")]
    assert added == [
        "+    p_logits = MODEL(x) * 2",
        "+        p_logits,  # logits",
        "+    return torch.log_softmax(p_logits, -1).sum() + p[0, 0]",
    ]
    with cures.apply():
        assert analysed(read_twice, ()).defects == ()
    assert "+    p_logits = F.dropout(x, 0.5)" in ranum.fix(analysed(called, ())).diff()
    added = [
        line
        for line in ranum.fix(analysed(named_inside, ())).diff().splitlines()
        if line.startswith("+  ")
    ]
    assert added == [
        "+    a_input = MODEL(x)",
        "+    a = torch.tanh(a_input)",
        "+    return (2 * (math.log(2) - a_input - F.softplus(-2 * a_input))).mean()",
    ]


@pytest.mark.parametrize("step", [with_comment, read_later])
def test_a_line_with_a_comment_and_one_that_is_read_elsewhere_stay(step):
    cures = ranum.fix(analysed(step, ()))
    assert [type(one) for one in cures] == [Rewrite]
    assert not [line for line in cures.diff().splitlines() if line.startswith("-    p =")]
    assert "+    return torch.log_softmax(x, -1).sum()" in cures.diff()


def test_a_rewriting_that_changes_results_is_not_offered(monkeypatch):
    from ranum.repair.rewriting import roots

    monkeypatch.setattr(roots, "EPSILONS", (0.5,))
    (cure,) = ranum.fix(analysed(distance, ()))
    assert isinstance(cure, Clip)


def test_a_rewriting_that_leaves_the_defect_is_not_offered(monkeypatch):
    from ranum.repair import clipping
    from ranum.repair.patch import rewrite_edit
    from ranum.repair.rewriting import Proposal

    def useless(defect):
        edit = rewrite_edit(defect.source, "torch.log(F.softmax(MODEL(x), dim=-1))")
        yield Proposal("it looks different", edit, frozenset({defect.node}))

    monkeypatch.setattr(clipping, "proposals", useless)
    (cure,) = ranum.fix(analysed(log_of_softmax, ()))
    assert isinstance(cure, Clip)


def test_the_file_decides_how_functions_are_called(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text(
        "import torch as t\n\n\ndef step(x):\n"
        "    # keep this comment\n"
        "    return -t.log(\n        t.sigmoid(100 * x)  # and this\n    ).mean()\n"
    )
    space: dict = {}
    exec(compile(path.read_text(), str(path), "exec", dont_inherit=True), space)
    cures = ranum.fix(analyze(space["step"], X, inputs={"x": (-9.0, 9.0)}))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    diff = cures.edits[0].diff(root=tmp_path)
    subprocess.run(["git", "apply", "-"], input=diff.encode(), cwd=tmp_path, check=True)
    text = path.read_text()
    assert "return -t.nn.functional.logsigmoid(100 * x).mean()" in text
    assert "# keep this comment" in text


def test_a_step_that_goes_backward_itself_is_verified():
    def step(x: Tensor) -> Tensor:
        loss = torch.log(F.softmax(MODEL(x), dim=1)).sum()
        loss.backward()
        return loss

    try:
        (cure,) = cures = ranum.fix(analysed(step, ()))
        assert isinstance(cure, Rewrite)
        assert cures.verify().is_clean
    finally:
        MODEL.zero_grad()


def test_defects_on_later_lines_are_known_again_when_lines_go_away():
    def step(x: Tensor) -> Tensor:
        first = torch.log(
            torch.sigmoid(
                x,
            )
        )
        return first.sum() + (1 / MODEL(x)).sum()

    analysis = analysed(step, ())
    first = ranum.fix(analysis).clips[0]
    assert isinstance(first, Rewrite)
    found = Clips((first,), analysis).verify()
    assert found.new == ()
    assert [defect.code for defect in found.remaining] == ["RN103"]
    assert found.remaining[0].source.line == analysis.defects[1].source.line


def test_what_is_said(capsys):
    cures = ranum.fix(analysed(log_of_softmax, ()))
    (cure,) = cures
    print(cure)
    assert "F.log_softmax(MODEL(x), dim=1) instead of torch.log(" in capsys.readouterr().out
    plain = cure.to_dict()
    assert plain["code"] == "RN101"
    assert plain["verification"]["remaining"] == []
    assert "no defect left" in str(cures.verify())
    with pytest.raises(ranum.RanumError, match="clips must hold an edit"):
        ranum.fix(analyze(mean_of_chosen_safely, X)).verify()


def mean_of_chosen_safely(x: Tensor) -> Tensor:
    return x.mean()
