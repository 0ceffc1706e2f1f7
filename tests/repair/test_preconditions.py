from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import ranum
from ranum.analysis.defects import find_defects
from ranum.errors import ArgumentError, PatchError
from ranum.repair.preconditions import loosest_ranges

X = torch.tensor([0.0, 0.25, 1.0])


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))
        self.b = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """The loss."""
        # the logarithm of a line
        return torch.log(x * self.w + self.b).sum()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.log(torch.softmax(self.layers(x), 1)).mean()


class Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x).sum()


BATCH = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


def line(weights=10.0):
    model = Line()
    return model, ranum.analyze(model, X, inputs={"x": (0, 1)}, weights=weights)


def classifier(weights=30.0):
    model = Classifier()
    return model, ranum.analyze(model, BATCH, inputs={"x": (0, 1)}, weights=weights)


def by_name(found):
    return {one.name: one for one in found.kept}


# --- the ranges that can be worked out by hand -------------------------------------------------


def test_one_weight_goes_as_far_as_it_can():
    _, analysis = line({"w": (-10, 10), "b": (1, 1)})
    (kept,) = ranum.fix(analysis, "w").kept  # x w + 1 > 0 for x in [0, 1]
    assert -1 < kept.lower < -0.97
    assert kept.upper == 10
    assert kept.share == pytest.approx((10 - kept.lower) / 20)
    assert [defect.code for defect in kept.removes] == ["RN101"]


def test_two_weights_share_what_there_is_in_the_best_proportion():
    _, analysis = line()
    kept = by_name(ranum.fix(analysis, "weights"))
    w, b = kept["w"].lower, kept["b"].lower
    assert (kept["w"].upper, kept["b"].upper) == (10, 10)
    assert 0 < b + min(w, 0) < 0.02  # safe, and hardly any room left

    def gain(low):  # the product of what both keep, along the line where the defect begins
        ways = (
            (math.asinh(1) - math.asinh(low / 0.5)) / (math.asinh(1) + math.asinh(20)),
            (math.asinh(1) - math.asinh(-low)) / (math.asinh(1) + math.asinh(10)),
        )
        return ways[0] * ways[1]

    best = max(gain(-step / 1000) for step in range(1000))
    assert gain(w) > 0.9 * best


def test_an_input_stops_where_the_exponential_overflows():
    analysis = ranum.analyze(Exponential(), X, inputs={"x": (-300, 300)})
    (kept,) = ranum.fix(analysis, "inputs").kept
    assert kept.lower == -300
    assert 87 < kept.upper < 87.7  # and three of them can be added


def test_only_zero_is_left_out_where_only_zero_does_harm():
    def step(x):
        return torch.log(x).sum()

    for x in (X + 0.1, X + 1e-38, X):
        analysis = ranum.analyze(step, x, inputs={"x": (0, 2)})
        (kept,) = ranum.fix(analysis, "x").kept
        assert 0 < kept.lower < 1e-37
        assert kept.upper == 2


def test_recorded_weights_stay_inside_and_nothing_is_pinned():
    model, analysis = classifier()
    found = ranum.fix(analysis, "weights")
    for one in found.kept:
        weight = model.get_parameter(one.name)
        assert one.outside == 0
        assert one.lower <= float(weight.detach().min())
        assert one.upper >= float(weight.detach().max())
        assert one.log_share > 0.05
    assert found.is_loosest


def test_ranges_around_zero_where_the_recorded_ones_fail():
    x = torch.tensor([-1.0, 0.5, 2.0])

    def step(x):
        return torch.log(1 - x * x).sum()

    analysis = ranum.analyze(step, x, inputs={"x": (-2, 2)})
    (kept,) = ranum.fix(analysis, "inputs").kept
    assert -1 < kept.lower < -0.9
    assert 0.9 < kept.upper < 1
    assert kept.outside == 2
    assert "2 elements of the example lie outside" in str(kept)


def test_a_sign_is_chosen_where_zero_does_harm():
    scale = nn.Parameter(torch.tensor([0.0, 2.0, -1.0]))

    def step(x):
        return (x / scale).sum()

    analysis = ranum.analyze(step, X, weights={"scale": (-4, 4)})
    (kept,) = ranum.fix(analysis, "weights").kept
    assert kept.lower > 0 or kept.upper < 0
    assert max(abs(kept.lower), abs(kept.upper)) == 4


# --- no end can be moved further ----------------------------------------------------------------


@pytest.mark.parametrize("where", ["weights", "inputs", "all"])
@pytest.mark.parametrize("program", [line, classifier])
def test_every_defect_comes_back_when_an_end_is_moved(program, where):
    _, analysis = program()
    found = loosest_ranges(analysis, where)
    context = analysis.context
    kept = found.ranges()
    assert find_defects(context.graph, kept)[0] == () or found.left
    for one in found.kept:
        number = next(n for n, v in context.graph.values.items() if v.name == one.name)
        width = one.upper - one.lower
        for pair, whole in (
            ((one.lower - 0.05 * width, one.upper), one.analysed[0]),
            ((one.lower, one.upper + 0.05 * width), one.analysed[1]),
        ):
            if whole in (one.lower, one.upper):
                continue
            wider = {**kept, number: context.start[number].intersect(*pair)}
            assert find_defects(context.graph, wider)[0] != ()


def test_wider_ranges_do_not_verify():
    _, analysis = line()
    found = ranum.fix(analysis, "weights")
    assert found.verify().remaining == ()
    wide = {one.name: replace(one, lower=-1.0, edit=None) for one in found.kept}
    program = replace(analysis.context.program, target=None)
    unpatched = replace(analysis, context=replace(analysis.context, program=program))
    checked = replace(found, kept=tuple(wide.values()), analysis=unpatched).verify()
    assert [defect.op for defect in checked.remaining] == ["log"]


# --- where there can be none ---------------------------------------------------------------------


def test_what_does_not_reach_the_operator_cannot_help():
    weight = nn.Parameter(torch.tensor([0.5, 2.0, 1.0]))

    def step(label):
        return (label * torch.log(weight)).sum()

    analysis = ranum.analyze(step, X)
    (left,) = ranum.fix(analysis, "inputs").left
    assert left.how == "no path"
    assert left.is_impossible
    (left,) = ranum.fix(ranum.analyze(lambda x: torch.log(x).sum(), X), "weights").left
    assert "there is nothing to choose" in left.reason


def test_weights_with_which_every_input_fails_are_shown():
    model, analysis = classifier(300.0)
    found = ranum.fix(analysis, "inputs")
    assert found.kept == ()
    (left,) = found.left
    assert left.how == "fails anyway"
    assert "layers.2.bias = " in left.reason
    assert "layers.2.bias" in left.witness
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for name, tensor in left.witness.items():
            model.get_parameter(name).copy_(tensor)
        for x in (BATCH, torch.zeros(5, 4), torch.ones(5, 4), torch.rand(5, 4)):
            assert not bool(model(x).isfinite())
    model.load_state_dict(state)


def test_an_input_with_which_every_weight_fails_is_shown():
    weight = nn.Parameter(torch.tensor(2.0))

    def step(x):
        return (1 / (x * weight)).sum()

    (left,) = ranum.fix(ranum.analyze(step, X + 1, inputs={"x": (0, 3)}), "weights").left
    assert left.how == "fails anyway"
    assert float(left.witness["x"].abs().min()) == 0


def test_nothing_is_claimed_where_no_proof_is_found():
    weight = nn.Parameter(torch.tensor(1.0))

    def step(x):
        return (1 / ((weight - 3.375) * (x + 1))).sum()

    found = ranum.fix(ranum.analyze(step, X), "inputs")
    assert found.kept == ()
    (left,) = found.left
    assert left.how == "not found"
    assert not left.is_impossible
    assert "no range found" in str(left)


def test_weights_that_leave_room_for_some_inputs():
    model = nn.Linear(4, 3)

    def step(x):
        return -torch.log(torch.softmax(model(x), 1)).mean()

    analysis = ranum.analyze(step, BATCH, inputs={"x": (0, 1)}, weights=30.0)
    (kept,) = ranum.fix(analysis, "x").kept
    assert (kept.name, kept.lower) == ("x", 0)
    assert 0.05 < kept.upper < 0.2  # 4 x 60 x + 60 < 87


def test_unknown_places_are_refused():
    _, analysis = line()
    with pytest.raises(ArgumentError, match="Known: w, b, x"):
        ranum.fix(analysis, "encoder")
    with pytest.raises(ArgumentError, match="lost its context"):
        ranum.fix(replace(analysis, context=None), "weights")


# --- names and modules ---------------------------------------------------------------------------


def test_places_are_chosen_by_name_pattern_and_module():
    _, analysis = classifier()
    last = {"layers.2.weight", "layers.2.bias"}
    assert set(by_name(ranum.fix(analysis, "layers.2.*"))) == last
    assert {one.kind for one in ranum.fix(analysis, "layers.[12]").kept} == {"output"}


def test_what_a_module_returns_is_clamped_by_a_hook():
    model, analysis = classifier()
    found = ranum.fix(analysis, "layers.2")
    (kept,) = found.kept
    assert (kept.kind, kept.outside) == ("output", 0)
    assert 60 < kept.upper - kept.lower < 90
    assert "in code, write .clamp" in kept.reason
    assert found.verify().is_clean
    assert found.verify().remaining == ()
    loss = model(BATCH)
    with found.apply(), torch.no_grad():
        assert torch.equal(model(BATCH), loss)
        pickle.loads(pickle.dumps(model))
        bias = model.layers[2].bias.clone()
        model.layers[2].bias[0] = 1e4
        assert bool(model(BATCH).isfinite())
        model.layers[2].bias.copy_(bias)
    assert not model.layers[2]._forward_hooks


# --- as lines of the step ------------------------------------------------------------------------


def test_the_lines_stand_first_behind_docstring_and_comments():
    _, analysis = line()
    diff = ranum.fix(analysis, "weights").diff()
    added = [one[1:] for one in diff.splitlines() if one.startswith("+") and "+++" not in one]
    assert [one.split("(")[0] for one in added] == [
        "        self.w.data.clamp_",
        "        self.b.data.clamp_",
    ]
    assert "# the logarithm of a line\n+ " in diff


def test_the_patched_step_is_proved_from_the_old_ranges_and_undone():
    model, analysis = classifier()
    found = ranum.fix(analysis, "weights")
    verified = found.verify()
    assert verified.is_clean
    assert verified.remaining == ()
    assert verified.change == 0.0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(map(id, model.parameters()))
    loss = model(BATCH)
    with found.apply(model) as patch:
        assert patch.functions == ("Classifier.forward",)
        assert ranum.analyze(model, BATCH, inputs={"x": (0, 1)}, weights=30.0).defects == ()
        assert torch.equal(model(BATCH), loss)
        assert list(model.state_dict()) == list(before)
        assert list(map(id, model.parameters())) == parameters
        pickle.loads(pickle.dumps(model))
        copy.deepcopy(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert ranum.analyze(model, BATCH, inputs={"x": (0, 1)}, weights=30.0).defects != ()


def test_whatever_moves_a_weight_the_next_step_has_it_inside():
    model, analysis = classifier()
    found = ranum.fix(analysis, "weights")
    optimizer = torch.optim.Adam(model.parameters(), lr=50.0)
    with found.apply(model):
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(BATCH)
            assert bool(loss.isfinite())
            loss.backward()
            optimizer.step()
        model(BATCH)
        for one in found.kept:
            weight = model.get_parameter(one.name).detach()
            least, most = one.clamp
            assert least <= float(weight.min()) + 1e-5
            assert float(weight.max()) - 1e-5 <= most
    assert len(optimizer.state) == len(list(model.parameters()))


def test_weights_outside_are_said_and_not_moved_silently():
    model, analysis = classifier()
    found = ranum.fix(analysis, "weights")
    with torch.no_grad():
        model.layers[2].bias[0] = 1e4
    with pytest.raises(PatchError, match=r"1 elements of layers\.2\.bias"):
        found.apply(model)
    assert float(model.layers[2].bias.detach().max()) == 1e4
    with found.apply(model, project=True):
        model(BATCH)
        assert float(model.layers[2].bias.detach().max()) < 100


def test_a_compiled_model_runs_with_the_clamps_and_without():
    model, analysis = classifier()
    found = ranum.fix(analysis, "all")
    compiled = torch.compile(model, backend="eager")
    plain = compiled(BATCH)
    with found.apply(model), torch.no_grad():
        model.layers[2].bias[0] = 1e4
        assert bool(compiled(BATCH).isfinite())
        assert float(model.layers[2].bias.max()) < 1e4
        model.layers[2].bias[0] = 1e4
    assert float(compiled(BATCH).detach()) != float(plain.detach())
    assert float(model.layers[2].bias.detach().max()) == 1e4


def test_an_input_that_lies_in_a_tuple_or_a_mapping():
    def pair(batch):
        return torch.log(batch[1]).sum() + batch[0].sum()

    def mapping(batch):
        return torch.log(batch["a"]).sum()

    for step, batch, line_of in (
        (pair, (X, X + 1), "batch = (*batch[:1], batch[1].clamp(min="),
        (mapping, {"a": X + 1}, 'batch = {**batch, "a": batch["a"].clamp(min='),
    ):
        found = ranum.fix(ranum.analyze(step, batch, inputs={"batch[[]*": (0, 2)}), "inputs")
        assert "+        " + line_of in found.diff()
        assert found.verify().remaining == ()


def test_a_function_names_the_model_it_closes_over():
    model = nn.Linear(4, 3)

    def step(x):
        return -torch.log(torch.softmax(model(x), 1)).mean()

    found = ranum.fix(ranum.analyze(step, BATCH, weights=60.0), "weights")
    assert "+        model.weight.data.clamp_(min=" in found.diff()
    assert found.verify().remaining == ()


def test_without_source_a_hook_does_it():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))

    def loss(p):
        return -p.log().mean()

    def defects():
        return ranum.analyze(model, BATCH, loss=loss, weights=60.0).defects

    analysis = ranum.analyze(model, BATCH, loss=loss, weights=60.0)
    found = ranum.fix(analysis, "all")
    assert found.diff() == ""
    assert "installed package" in found.kept[0].reason
    assert found.verify().remaining == ()
    with found.apply():
        assert defects() == ()
        pickle.loads(pickle.dumps(model))
    assert not model._forward_pre_hooks
    assert defects() != ()


def test_hooks_clamp_inputs_by_name():
    model, x = Exponential(), torch.tensor([200.0])
    found = ranum.fix(ranum.analyze(model, x, inputs={"x": (-300, 300)}), "inputs")
    hooked = replace(found, kept=tuple(replace(one, edit=None) for one in found.kept))
    with hooked.apply(model):
        assert bool(model(x).isfinite())
        assert bool(model(x=x).isfinite())
    assert not bool(model(x).isfinite())


def test_plain_data():
    _, analysis = line()
    data = ranum.fix(analysis, "all").to_dict()
    assert {"kept", "left", "seconds", "loosest"} == set(data)
    assert data["kept"][0]["removes"]
    (left,) = ranum.fix(analysis, "inputs").to_dict()["left"]
    assert left["how"] == "fails anyway"


def test_half_precision_has_its_own_limits():
    model = Exponential()
    analysis = ranum.analyze(model, X.half(), inputs={"x": (-300, 300)})
    (kept,) = ranum.fix(analysis, "inputs").kept
    assert 9.8 < kept.upper < 9.99  # three of them add up to no more than 65504
