from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.analysis import analyze
from ranum.analysis.defects import find_defects
from ranum.analysis.levels import with_reach
from ranum.analysis.ranges import starting_ranges
from ranum.errors import ArgumentError

X = torch.full((2, 1), 2.0)


class Scale(nn.Module):
    """exp(weight * 2): overflows once the weight, 5 at first, exceeds 44.36."""

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x @ self.weight).mean()


def only(analysis):
    (defect,) = analysis.defects
    return defect


@pytest.mark.parametrize("weights", ["envelope", "anything", 60.0])
def test_the_growth_at_which_an_exponential_overflows(weights):
    defect = only(analyze(Scale(), X, weights=weights))
    assert defect.reach == "envelope"
    assert 44.36 / 5 <= defect.growth <= 1.08 * 44.36 / 5
    assert defect.drift == f"once weights grow to about {defect.times} times their initial size"
    assert defect.times[0] in "89"


def test_placing_is_a_part_of_the_analysis():
    analysis = analyze(Scale(), X)
    assert 0 < analysis.placing_seconds < analysis.analysis_seconds
    assert analysis.to_dict()["placing_seconds"] == analysis.placing_seconds


def test_weights_that_changed_are_measured_again():
    """The same step, analysed again after its weights were set anew."""
    model = Scale()
    first = only(analyze(model, X)).growth
    with torch.no_grad():
        model.weight.fill_(10.0)
    second = only(analyze(model, X)).growth
    assert second < 0.6 * first


def test_initial_weights_that_already_overflow():
    defect = only(analyze(Scale(50.0), X))
    assert (defect.reach, defect.growth) == ("initial", None)
    assert defect.drift == "with the weights as initialised"


def test_what_only_anything_reaches_is_not_found_in_the_envelope():
    assert analyze(Scale(1.0), X).defects == ()
    defect = only(analyze(Scale(1.0), X, weights="anything"))
    assert defect.reach == "anything"
    assert 44.36 <= defect.growth <= 1.25 * 44.36
    assert defect.drift.startswith("only once weights grow to about")


def test_other_weights_of_the_same_size():
    """log(x w + 4) with w = 5: a weight of -5 is no growth."""
    weight = nn.Parameter(torch.tensor(5.0))
    defect = only(analyze(lambda x: torch.log(x * weight + 4.0).mean(), X))
    assert (defect.reach, defect.growth) == ("envelope", 1.0)
    assert defect.drift == "with other weights of their initial size"


def test_a_defect_of_the_inputs_alone_needs_no_growth():
    assert only(analyze(lambda x: torch.log(x).mean(), X, inputs={"x": (0, 1)})).reach == "initial"


def test_levels_of_several_defects_are_told_apart():
    first, second = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor(20.0))

    def step(x: Tensor) -> Tensor:
        return torch.exp(x * first).mean() + torch.exp(x * second).mean()

    growths = [defect.growth for defect in analyze(step, X).defects]
    assert growths == pytest.approx([44.36 / 5, 44.36 / 20], rel=0.08)


def test_size_alone_is_no_defect_of_the_architecture():
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))

    def step(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    assert (
        analyze(step, torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]), weights="anything").defects
        == ()
    )


def test_a_gain_may_be_zero_at_anything_but_not_as_initialised():
    gain = nn.Parameter(torch.ones(1))
    analysis = analyze(lambda x: (x / gain).mean(), X, weights="anything")
    assert only(analysis).code == "RN103"
    assert analyze(lambda x: (x / gain).mean(), X, weights="initial").defects == ()


def test_ranges_and_levels_by_name_override_the_level():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    analysis = analyze(net, torch.rand(2, 3), weights={"0.weight": (-2, 3), "1.*": "initial"})
    ranges = analysis.ranges
    assert (ranges["0.weight"].low, ranges["0.weight"].high) == (-2, 3)
    assert ranges["1.weight"].is_point
    assert ranges["0.bias"].high >= 1.0
    assert analysis.weights == "up to 10 times their initial size; 2 by name"


def test_weights_that_were_to_stay_do_not_grow():
    net = Scale(5.0)
    other = nn.Parameter(torch.tensor(1.0))
    step = lambda x: net(x) + torch.exp(50 * other)  # noqa: E731
    analysis = analyze(step, X, weights={"weight": "initial"})
    assert only(analysis).growth == pytest.approx(88.73 / 50, rel=0.08)


def test_no_defects_no_further_walks(monkeypatch):
    import ranum.analysis.levels as levels

    walks = []
    monkeypatch.setattr(
        levels, "find_defects", lambda *a, **k: walks.append(1) or find_defects(*a, **k)
    )
    analyze(Scale(1.0), X)
    assert walks == []
    analyze(Scale(5.0), X)
    assert 1 <= len(walks) <= 8


def test_only_what_a_defect_depends_on_is_walked_again(monkeypatch):
    import ranum.analysis.levels as levels

    sizes = []

    def spy(graph, start, nodes, **options):
        sizes.append(len(nodes))
        return find_defects(graph, start, nodes=nodes, **options)

    monkeypatch.setattr(levels, "find_defects", spy)
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(20)))
    weight = nn.Parameter(torch.tensor(5.0))

    def step(x: Tensor) -> Tensor:
        return torch.tanh(net(x)).mean() + torch.exp(2 * weight * 5)

    analysis = analyze(step, torch.rand(2, 3))
    assert analysis.defects
    assert max(sizes) < len(analysis.graph.nodes) / 4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": "all"}, r"weights\['weight'\] must be a pair"),
        ({"weight": (True, False)}, r"must be a pair \(lower, upper\)"),
        ({"head": "initial"}, "matches no name; known names: weight"),
        ({3: (0, 1)}, r"weights\[3\] matches no name"),
        (float("inf"), "positive finite"),
        ([0, 1], "weights must be 'initial', 'envelope', 'anything', a number or a mapping"),
    ],
)
def test_weights_that_break_the_rule(weights, message):
    with pytest.raises(ArgumentError, match=message):
        analyze(Scale(), X, weights=weights)


def test_reach_of_nothing_is_nothing():
    graph = analyze(Scale(1.0), X).graph
    assert with_reach(graph, starting_ranges(graph), "envelope", ()) == ()
