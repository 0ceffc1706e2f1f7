from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ranum._untouched import untouched
from ranum.analysis import analyze
from ranum.analysis.capture.recorder import record
from ranum.analysis.capture.torch import function_program, module_program
from ranum.analysis.evaluate import evaluate, needed_nodes
from ranum.analysis.graph import Graph


def ops(graph: Graph, phase: str = "forward") -> list[str]:
    return [node.op for node in graph.nodes if node.phase == phase]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3 * 16, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(self.drop(F.relu(self.norm(self.conv(x)))).flatten(1))


def small_step() -> tuple[Small, object]:
    torch.manual_seed(0)
    model = Small()

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    return model, function_program(step, (torch.rand(2, 1, 6, 6), torch.tensor([1, 3])))


def test_every_operator_has_file_line_and_module():
    _, program = small_step()
    graph = program.capture()
    forward = [node for node in graph.nodes if node.phase == "forward"]
    assert [node.op for node in forward if node.op in ("convolution", "native_batch_norm")]
    assert all(node.source.file == __file__ and node.source.line > 0 for node in forward)
    by_op = {node.op: node for node in forward}
    assert by_op["convolution"].source.module == "conv"
    assert by_op["relu"].source.module == ""
    assert by_op["relu"].source.expression == "F.relu(self.norm(self.conv(x)))"
    assert by_op["nll_loss_forward"].source.module is None


def test_backward_operators_point_to_their_forward_operator():
    _, program = small_step()
    graph = program.capture()
    for node in graph.nodes:
        if node.op == "convolution_backward":
            assert graph.nodes[node.forward].op == "convolution"
            assert node.source.module == "conv"
            break
    else:
        pytest.fail("no convolution_backward was recorded")


def test_the_step_leaves_no_trace():
    model, program = small_step()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    program.capture()
    assert model.calls == 0
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert model.conv.weight.grad is None
    assert torch.equal(rng[0], torch.get_rng_state())
    assert rng[1] == random.getstate()
    assert rng[2] == np.random.get_state()[1].tolist()
    assert not torch.nn.modules.module._global_forward_hooks


def test_recording_does_not_change_loss_or_gradients():
    model, program = small_step()

    def run() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        loss = program.step(*program.arguments)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    plain = run()
    model.zero_grad()
    torch.manual_seed(1)
    with untouched(model):
        torch.manual_seed(1)
        seen: list[torch.Tensor] = []

        def step() -> torch.Tensor:
            loss = program.step(*program.arguments)
            seen.append(loss.detach())
            return loss

        record(step, model=model, parameters=dict(model.named_parameters()))
        seen += [p.grad.clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


def test_what_depends_on_no_parameter_or_float_input_is_a_constant():
    weight = nn.Parameter(torch.ones(4))

    def step(ids: torch.Tensor) -> torch.Tensor:
        mask = (torch.arange(4) < ids.max()).float() * 2 - 1
        return (weight * mask).sum()

    graph = function_program(step, (torch.tensor([1, 2]),)).capture()
    assert ops(graph) == ["mul", "sum"]
    constant = next(graph.leaves("constant"))
    assert constant.data.tolist() == [1, 1, -1, -1]


def test_a_constant_that_is_overwritten_later_keeps_its_old_value():
    weight = nn.Parameter(torch.ones(2))

    def step() -> torch.Tensor:
        buffer = torch.zeros(2)
        first = weight + buffer
        buffer.add_(5)
        return (first * buffer).sum()

    graph = function_program(step, ()).capture()
    data = [value.data.tolist() for value in graph.leaves("constant") if value.shape == (2,)]
    assert [0, 0] in data
    assert [5, 5] in data


def test_an_in_place_operator_reads_what_was_there_before():
    def step(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(3)
        total.add_(x)
        total.mul_(2)
        return total.sum()

    graph = module_free_graph(step, torch.tensor([1.0, 2.0, 3.0]))
    assert ops(graph) == ["add", "mul", "sum"]
    start = next(value for value in graph.leaves("constant") if value.shape == (3,))
    assert start.data.tolist() == [0, 0, 0]


def test_a_write_through_a_view_reaches_the_whole():
    def step(x: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(2, 3)
        whole[:, 0] = x
        return whole.sum()

    graph = module_free_graph(step, torch.tensor([7.0, 8.0]))
    assert "join" in ops(graph)


def test_running_statistics_are_written_once_they_are_read():
    norm = nn.BatchNorm1d(3, momentum=0.5)

    def step(x: torch.Tensor) -> torch.Tensor:
        out = norm(x)
        return out.sum() + torch.log(norm.running_var - 0.1).sum() + norm.running_mean.sum()

    x = torch.rand(8, 3)
    program = function_program(step, (x,))
    graph = program.capture()
    nodes = [node for node in graph.nodes if node.op == "running_statistics"]
    assert len(nodes) == 1
    assert nodes[0].source.module == ""
    before = [
        graph.values[nodes[0].arguments[name].value] for name in ("running_mean", "running_var")
    ]
    assert [value.data.tolist() for value in before] == [[0.0] * 3, [1.0] * 3]
    mean, variance = (graph.values[number].observed for number in nodes[0].outputs)
    assert float(mean[1]) == pytest.approx(float(x.mean(0).max()) / 2)
    assert float(variance[0]) == pytest.approx(float((1 + x.var(0)).min()) / 2)
    assert torch.equal(norm.running_var, torch.ones(3))
    unread = function_program(lambda x: norm(x).sum(), (x,)).capture()
    assert "running_statistics" not in ops(unread)


def test_running_statistics_of_two_batches_follow_each_other():
    norm = nn.BatchNorm1d(3)

    def step(x: torch.Tensor) -> torch.Tensor:
        first = norm(x).sum() + norm(10 * x).sum()
        norm.eval()
        return first + norm(x).sum()

    graph = function_program(step, (torch.rand(8, 3),)).capture()
    nodes = [node for node in graph.nodes if node.op == "running_statistics"]
    assert len(nodes) == 2
    assert nodes[1].arguments["running_mean"].value == nodes[0].outputs[0]
    evaluated = [n for n in graph.nodes if n.op == "native_batch_norm"][-1]
    assert evaluated.arguments["running_var"].value == nodes[1].outputs[1]


def test_an_out_argument_is_written_like_any_other():
    def step(x: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(4)
        with torch.no_grad():
            torch.mul(x, 3.0, out=whole[:2])
        return whole.sum()

    graph = module_free_graph(step, torch.tensor([1.0, 2.0]))
    assert ops(graph) == ["mul", "join", "sum"]


def test_writes_to_disjoint_views_are_told_apart():
    def step(x: torch.Tensor) -> torch.Tensor:
        left, right = (x * 1).split(2, dim=1)
        left.sigmoid_()
        return right.exp().sum() + left.sum()

    graph = module_free_graph(step, torch.randn(3, 4))
    assert "join" not in ops(graph)


def module_free_graph(step, *arguments: torch.Tensor) -> Graph:
    return function_program(step, arguments).capture()


def test_a_tensor_that_decides_and_a_tensor_that_leaves_are_noted():
    def step(x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = x * 2
        np.log(x.detach().numpy())
        return x.sum()

    graph = module_free_graph(step, torch.ones(2))
    assert [source.expression for source in graph.taken_branches] == ["x.sum() > 0"]
    assert len(graph.escapes) == 1


def test_gradients_are_marked_and_forward_values_are_not():
    weight = nn.Parameter(torch.tensor([4.0]))

    def step() -> torch.Tensor:
        return weight.sqrt().sum()

    graph = function_program(step, ()).capture()
    division = next(node for node in graph.nodes if node.op == "div")
    numerator, denominator = division.operands
    assert graph.values[numerator].is_gradient
    assert not graph.values[denominator].is_gradient


def test_module_outputs_are_named():
    graph = module_program(Small(), (torch.rand(2, 1, 6, 6),)).capture()
    assert {"conv", "norm", "drop", "head"} <= set(graph.module_outputs)
    assert graph.values[graph.module_outputs["head"]].shape == (2, 4)


MODELS = {
    "cnn": lambda: (Small(), torch.rand(2, 1, 6, 6)),
    "lstm": lambda: (nn.LSTM(3, 4), torch.rand(5, 2, 3)),
    "gru_cell": lambda: (nn.GRUCell(3, 4), torch.rand(2, 3)),
    "transformer": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
        torch.rand(2, 5, 8),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_float_value_appears_from_nowhere(name):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    graph = module_program(model.train(), (x,)).capture()
    known = {p.data_ptr() for p in model.parameters()}
    assert graph.loss is not None
    assert "backward" in {node.phase for node in graph.nodes}
    for value in graph.leaves("constant"):
        if value.data is not None and value.dtype.is_floating_point:
            assert value.data.data_ptr() not in known
    gradients = [value for value in graph.values.values() if value.is_gradient]
    assert len(gradients) >= len(list(model.parameters()))


@pytest.mark.parametrize("name", ["cnn", "gru_cell"])
def test_the_graph_computes_what_the_step_computed(name):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    graph = module_program(model.train(), (x,)).capture()
    leaves = {value.index: value.data.double() for value in graph.leaves("input", "parameter")}
    known = evaluate(graph, needed_nodes(graph, [graph.loss]), leaves)
    expected = model.train()(x)
    torch.testing.assert_close(known[graph.loss].float(), expected, rtol=1e-4, atol=1e-5)


def test_extremes_are_recorded_where_somebody_reads_them():
    def step(x: torch.Tensor) -> torch.Tensor:
        masked = x.masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
        return torch.softmax(model(masked.softmax(-1)), -1).log().mean()

    model = nn.Linear(3, 3)
    program = function_program(step, (torch.rand(3, 3),))
    every, few = program.capture(), program.capture(observe=False)
    seen = {value.index for value in few.values.values() if value.observed is not None}
    wanted = [node.outputs[0] for node in few.nodes if node.op == "_softmax"]
    assert seen == {*wanted, few.module_outputs.get("", few.loss), few.loss}
    for number in seen:
        assert few.values[number].observed == every.values[number].observed
    assert {d.code for d in analyze(step, torch.rand(3, 3)).defects} == {
        d.code for d in analyze(step, torch.rand(3, 3), observe=True).defects
    }


def test_a_view_of_another_dtype_is_no_reshape():
    def step(x: torch.Tensor) -> torch.Tensor:
        return x.view(torch.int32).float().sum()

    assert "view" in ops(module_free_graph(step, torch.ones(3)))


def test_the_garbage_collector_runs_again_afterwards():
    _, program = small_step()
    program.capture()
    assert gc.isenabled()
    gc.disable()
    try:
        program.capture()
        assert not gc.isenabled()
    finally:
        gc.enable()
