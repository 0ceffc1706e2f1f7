from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ranum
from ranum.analysis import analyze
from ranum.analysis.confirm import confirm
from ranum.analysis.confirm.replay import Replay
from ranum.errors import ArgumentError

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
X = torch.rand(5, 6)
LABELS = F.one_hot(torch.tensor([0, 1, 2, 3, 0]), 4).float()

PROGRAMS = {
    "log of softmax": (
        lambda x: -(LABELS * torch.log(torch.softmax(MODEL(x), -1))).sum(-1).mean(),
        {},
        "-Inf",
    ),
    "log of sigmoid": (lambda x: torch.log(1 - torch.sigmoid(MODEL(x))).mean(), {}, "-Inf"),
    "exp": (lambda x: torch.exp(MODEL(x)).mean(), {}, "Inf"),
    "sqrt": (lambda x: torch.sqrt(MODEL(x)).mean(), {}, "NaN"),
    "norm": (lambda x: (x / x.norm(dim=-1, keepdim=True)).sum(), {"x": (-1, 1)}, "NaN"),
    "power": (lambda x: (MODEL(x) ** 0.3).sum(), {}, "NaN"),
    "sqrt at 0": (lambda x: torch.sqrt((MODEL(x) ** 2).sum(-1)).sum(), {}, "gradient not finite"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_witness_fails_in_the_users_own_code(name):
    function, ranges, outcome = PROGRAMS[name]
    state = {key: value.clone() for key, value in MODEL.state_dict().items()}

    def step(x: Tensor) -> Tensor:
        return function(x)

    analysis = analyze(step, X, inputs=ranges)
    defect = analysis.defects[0]
    witness = confirm(defect, seconds=20)
    assert witness is not None
    assert witness.outcome == outcome
    for key, tensor in witness.inputs.items():
        assert analysis.ranges[key].contains(tensor)
    for key, tensor in witness.weights.items():
        assert analysis.ranges[key].contains(tensor)
    assert all(torch.equal(state[key], value) for key, value in MODEL.state_dict().items())
    # The proof, without any of our machinery:
    leaves = dict(MODEL.named_parameters(prefix="MODEL")) | dict(MODEL.named_parameters())
    x = witness.inputs.get("x", X).clone().requires_grad_()
    try:
        with torch.no_grad():
            for key, tensor in witness.weights.items():
                leaves[key].copy_(tensor)
        loss = step(x)
        loss.backward()
        gradients = [x.grad, *(p.grad for p in MODEL.parameters() if p.grad is not None)]
        bad = not bool(loss.isfinite()) or any(not bool(g.isfinite().all()) for g in gradients)
        assert bad
    finally:
        MODEL.load_state_dict(state)
        MODEL.zero_grad()


def test_the_same_seed_finds_the_same_witness():
    def step(x: Tensor) -> Tensor:
        return torch.log(torch.softmax(MODEL(x), -1)).mean()

    (defect,) = analyze(step, X).defects
    first, second = confirm(defect, seed=3), confirm(defect, seed=3)
    assert all(torch.equal(first.weights[key], second.weights[key]) for key in first.weights)


def test_what_cannot_happen_stays_possible():
    def step(x: Tensor) -> Tensor:
        # x - x * 1 is 0 whatever x is; intervals do not know that.
        return torch.log(1e-3 + (x - x * 1.0)).mean()

    analysis = analyze(step, X, confirm=True)
    assert [defect.severity for defect in analysis.defects] == ["possible"]


def test_analyze_can_confirm_at_once():
    analysis = analyze(lambda x: torch.log(x - 0.5).mean(), X, confirm=True)
    assert analysis.defects[0].severity == "certain"
    assert analysis.defects[0].witness.outcome in ("NaN", "-Inf")


def test_bad_arguments():
    (defect,) = analyze(lambda x: torch.log(x).mean(), X, inputs={"x": (0, 1)}).defects
    with pytest.raises(ArgumentError, match="seconds must be positive; got 0"):
        ranum.confirm(defect, seconds=0)
    with pytest.raises(ArgumentError, match="restarts must be 0 or more; got -1"):
        ranum.confirm(defect, restarts=-1)


def test_integer_inputs_are_moved_too():
    def step(x: Tensor, label: Tensor) -> Tensor:
        return (x / (label - 1)).sum()

    (defect,) = analyze(step, torch.rand(4), torch.tensor([0, 2, 0, 2])).defects
    witness = confirm(defect)
    assert witness is not None
    assert set(witness.inputs) == {"label"}
    assert bool((witness.inputs["label"] == 1).any())


def test_ranges_as_wide_as_the_dtype_are_searched():
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_()

    def step(x: Tensor) -> Tensor:
        return torch.log(torch.softmax(layer(x), -1)).mean()

    (defect,) = analyze(step, X, weights="anything").defects
    witness = confirm(defect)
    assert witness is not None
    assert not witness.inputs
    assert len(witness.weights) == 1
    (weight,) = witness.weights.values()
    assert weight.abs().max() < 1e3  # the nearest, not the largest


def test_a_witness_holds_for_the_dropout_of_its_seed():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 3))

    def step(x: Tensor) -> Tensor:
        return torch.log(torch.softmax(net(x), -1)).mean()

    (defect,) = analyze(step, X).defects
    witness = confirm(defect, seed=5)
    assert witness is not None
    state = {name: value.clone() for name, value in net.state_dict().items()}
    moved = {
        own: witness.weights[name]
        for own in state
        for name in witness.weights
        if name.endswith(own)
    }
    net.load_state_dict({**state, **moved})
    torch.manual_seed(5)
    assert not step(witness.inputs.get("x", X)).isfinite()


def test_random_draws_of_another_step_are_not_used():
    def step(x: Tensor) -> Tensor:
        return torch.log(x + torch.rand(3)).sum()

    analysis = analyze(step, torch.ones(3), inputs={"x": (-1, 1)})
    context = analysis.context
    drawn = torch.tensor([0.25, 0.5, 0.75])
    wanted = [analysis.defects[0].operand]
    leaf = next(iter(context.graph.leaves("input"))).index
    moved = {leaf: torch.zeros(3, dtype=torch.float64)}
    used = Replay(context, wanted, [drawn]).run(moved)
    assert torch.equal(used[wanted[0]], drawn.double())
    ignored = Replay(context, wanted, [torch.rand(4)]).run(moved)
    assert torch.equal(ignored[wanted[0]], torch.full((3,), 0.5, dtype=torch.float64))


def test_a_denominator_that_is_zero_for_one_number_only():
    gain = nn.Parameter(torch.tensor(0.7))

    def step(x: Tensor) -> Tensor:
        return (x / (gain + 1e-7)).sum()

    (defect,) = analyze(step, torch.rand(3), weights={"*": (-1, 1)}).defects
    witness = confirm(defect)
    assert witness is not None
    (moved,) = witness.weights.values()
    assert moved + 1e-7 == 0
    assert moved != 0


def test_behind_a_clamp_the_gradient_must_still_arrive():
    level = nn.Parameter(torch.zeros(2))

    def step(x: Tensor) -> Tensor:
        return torch.sqrt(torch.exp(x * level.clamp(-110.0, 80.0))).sum()

    defects = analyze(step, torch.ones(2), inputs={"x": (1, 1)}, weights=500.0).defects
    (defect,) = [one for one in defects if one.op == "sqrt"]
    witness = confirm(defect)
    assert witness is not None
    assert witness.outcome == "gradient not finite"


def test_a_witness_moves_no_more_than_it_must():
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))

    def step(x: Tensor) -> Tensor:
        return torch.exp(net(x)).mean()

    (defect,) = analyze(step, X, weights="anything").defects
    witness = confirm(defect)
    assert not witness.inputs
    assert len(witness.weights) == 1
    assert 88.7 < witness.operand[1] < 100
