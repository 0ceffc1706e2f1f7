from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ranum.analysis import analyze
from ranum.errors import ArgumentError, CaptureError

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")


class Net(nn.Module):
    """log of a softmax, with dropout and batch statistics in front."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        hidden = F.dropout(self.norm(self.layer(x)), 0.1, self.training)
        if scale is not None:
            hidden = hidden * scale
        return torch.log(torch.softmax(40 * hidden, -1)).mean()


# --- exported programs ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    return torch.export.export(Net(), (torch.rand(5, 3),), {"scale": torch.rand(4)})


def test_an_exported_program_brings_its_example_and_its_lines(exported):
    analysis = analyze(exported)
    assert analysis.graph.inputs == ("x", "scale")
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    source = analysis.defects[0].source
    assert source.file == __file__
    assert "torch.log(torch.softmax(" in source.expression
    assert {node.source.module for node in analysis.graph.nodes} >= {"layer", "norm"}
    assert "layer.weight" in analysis.ranges
    assert analysis.is_complete


def test_the_module_and_its_export_have_the_same_operators_and_bounds(exported):
    torch.manual_seed(0)
    module = Net()
    arguments = exported.example_inputs[0][0], exported.example_inputs[1]["scale"]
    first, second = analyze(module, *arguments), analyze(exported, *arguments)
    operators = lambda analysis: [node.op for node in analysis.graph.nodes]  # noqa: E731
    assert operators(first) == operators(second)
    assert [d.code for d in first.defects] == [d.code for d in second.defects]
    assert second.defects[0].bounds.low == first.defects[0].bounds.low


def test_an_exported_program_leaves_no_trace(exported):
    before = {name: each.clone() for name, each in exported.state_dict.items()}
    analyze(exported)
    assert all(torch.equal(before[name], each) for name, each in exported.state_dict.items())


def test_an_exported_program_without_its_example(exported):
    example = exported.example_inputs
    exported.example_inputs = None
    try:
        analysis = analyze(exported, inputs={"x": (0, 1)})
    finally:
        exported.example_inputs = example
    assert (analysis.ranges["x"].low, analysis.ranges["x"].high) == (0, 1)
    assert any("random numbers stand in for x, scale" in note for note in analysis.notes)


def test_arguments_that_do_not_fit_the_export(exported):
    with pytest.raises(ArgumentError, match=r"must match the 2 input\(s\).*\(x, scale\); got 1"):
        analyze(exported, torch.rand(5, 3))


def test_pt2_files_are_read_only_if_trusted(exported, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(exported, path)
    with pytest.raises(ArgumentError, match=r"run whatever code.*pass trust=True"):
        analyze(path)
    assert analyze(str(path), trust=True).defects
    (tmp_path / "bad.pt2").write_bytes(b"no zip")
    with pytest.raises(CaptureError, match=r"bad\.pt2 could not be read as an exported program"):
        analyze(tmp_path / "bad.pt2", trust=True)


def test_a_crafted_file_runs_nothing_unless_trusted(tmp_path):
    """What is refused is refused before a byte is read."""
    path = tmp_path / "gone.pt2"
    with pytest.raises(ArgumentError, match="trust=True"):
        analyze(path)
    assert not path.exists()


# --- no data -------------------------------------------------------------------------------


def test_shapes_without_data():
    image = torch.empty(2, 3, device="meta")
    analysis = analyze(Net(), image, inputs={"x": (0, 1)})
    assert (analysis.ranges["x"].low, analysis.ranges["x"].high) == (0, 1)
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    assert analyze(Net(), image).ranges["x"].low < -1


def test_fake_tensors_and_integers():
    with FakeTensorMode():
        ids, half = torch.empty(2, 3, dtype=torch.long), torch.empty(2, 4, dtype=torch.float16)
    table = nn.Embedding(10, 4)
    step = lambda ids, other: (table(ids).mean(1) * other).sum()  # noqa: E731
    analysis = analyze(step, ids, half, inputs={"other": (-float("inf"), 5)})
    assert analysis.ranges["other"].dtype == torch.float16
    assert analysis.ranges["other"].high == 5
    assert analyze(step, ids, half, inputs={"ids": (3, 9)}).is_complete


def test_weights_without_data():
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    with pytest.raises(ArgumentError, match=r"on the meta device\. Use model\.to_empty"):
        analyze(model, torch.rand(2, 3))


# --- odd modules ---------------------------------------------------------------------------


def test_lazy_layers_get_their_shapes_in_a_copy():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    analysis = analyze(model, torch.rand(5, 3))
    assert analysis.ranges["0.weight"].shape == (4, 3)
    assert isinstance(model[0], nn.LazyLinear)
    with pytest.raises(CaptureError, match=r"0\.weight is of a lazy layer.*Call the step once"):
        analyze(lambda x: model(x).sum(), torch.rand(5, 3))
    with pytest.raises(
        CaptureError, match="has lazy layers, and a run to find their shapes raised"
    ):
        analyze(model, torch.rand(5, 3, 1, 1, 1).long())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_model_that_needs_a_gpu():
    with pytest.raises(CaptureError, match=r"It asks for a GPU: analyse it where there is one"):
        analyze(lambda x: x.cuda().sum(), torch.rand(3))


@torch.library.custom_op("ranum_tests::opaque", mutates_args=())
def opaque(x: Tensor) -> Tensor:
    return x.numpy(force=True).max() * torch.ones(2)


def test_an_opaque_operator_without_a_meta_function():
    weight = nn.Parameter(torch.ones(3))
    analysis = analyze(lambda x: (torch.log(opaque(x)) * weight[0]).sum(), torch.rand(3))
    assert not analysis.is_complete
    assert [unknown.op for unknown in analysis.unknowns] == ["ranum_tests::opaque"]
    assert "incomplete" in str(analysis)
    assert analysis.bounds["loss"].may_nan
    with pytest.raises(CaptureError, match="no autograd formula was registered"):
        analyze(lambda x: opaque(x * weight).sum(), torch.rand(3))
    assert not analyze(
        lambda x: opaque(x * weight).sum(), torch.rand(3), backward=False
    ).is_complete


def test_autocast_is_recorded_as_it_ran():
    model = nn.Linear(3, 2)

    def step(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(x)
            assert hidden.dtype == torch.bfloat16
        return torch.exp(hidden.float()).mean()

    graph = analyze(step, torch.rand(4, 3)).graph
    dtypes = {graph.values[node.outputs[0]].dtype for node in graph.nodes if node.op == "addmm"}
    assert dtypes == {torch.bfloat16}

    def half(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            hidden = model(x)
        return torch.exp(hidden).mean()

    big = {"weights": {"weight": (-8, 8), "bias": (0, 0)}, "inputs": {"input*": (0, 1)}}
    big["inputs"] = {"x": (0, 1)}
    assert [d.code for d in analyze(half, torch.rand(4, 3), **big).defects] == ["RN104"]
    assert analyze(step, torch.rand(4, 3), **big).defects == ()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_gradient_penalty_and_functional_transforms():
    critic = nn.Linear(3, 1)

    def penalty(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).exp().sum(), x, create_graph=True)
        return (slope.norm(2, 1) - 1).pow(2).mean()

    class PerExample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            slope = torch.func.grad(lambda row: self.layer(row).tanh().sum())
            return torch.func.vmap(slope)(x).exp().mean()

    def tangent(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda z: critic(z).exp(), (x,), (torch.ones_like(x),))[1].mean()

    for target in (penalty, PerExample(), tangent):
        analysis = analyze(target, torch.rand(4, 3))
        assert target is tangent or analysis.is_complete  # it runs an operator of "prims"
        assert "exp" in {node.op for node in analysis.graph.nodes}


def test_a_step_that_runs_its_own_backward_pass_and_returns_the_loss():
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(layer.parameters())
    before = layer.weight.detach().clone()

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = layer(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss

    analysis = analyze(step, torch.rand(4, 3))
    assert any(node.phase == "backward" for node in analysis.graph.nodes)
    assert not optimizer.state
    assert torch.equal(before, layer.weight)
    assert layer.weight.grad is None


def test_nothing_is_assumed_of_sparse_and_complex_inputs():
    layer = nn.Linear(3, 3)
    spectrum = torch.randn(3, dtype=torch.cfloat)
    analysis = analyze(lambda z: z.abs().log().sum(), spectrum)
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    assert "nothing is assumed of z" in str(analysis.notes)
    adjacency = torch.eye(3).to_sparse()
    analysis = analyze(lambda s: torch.sparse.mm(s, layer.weight).sum(), adjacency)
    assert not analysis.is_complete
    assert "nothing is assumed of s" in str(analysis.notes)


def test_what_is_computed_through_a_sparse_tensor_is_no_constant():
    layer = nn.Linear(3, 3)
    step = lambda x: torch.exp(layer(x).to_sparse().to_dense()).sum()  # noqa: E731
    graph = analyze(step, torch.rand(4, 3)).graph
    assert "exp" in {node.op for node in graph.nodes}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_nested_tensors():
    layer = nn.Linear(3, 3)
    rows = [torch.rand(2, 3), torch.rand(4, 3)]
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    graph = analyze(lambda n: layer(n).values().exp().sum(), jagged).graph
    assert "n._values" in {value.name for value in graph.leaves("input")}
    assert "exp" in {node.op for node in graph.nodes}
    with pytest.raises(CaptureError, match=r"in the layout torch\.jagged only"):
        analyze(lambda n: layer(n).to_padded_tensor(0.0).sum(), torch.nested.nested_tensor(rows))


# --- what must not change ------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_leaves_no_trace_even_if_it_raises(fails):
    torch.manual_seed(0)
    model, free = Net(), nn.Parameter(torch.ones(4))
    frozen = model.layer.bias.requires_grad_(False)
    model.norm.eval()
    model.layer.weight.grad = torch.full_like(model.layer.weight, 3.0)
    x, seen = torch.rand(5, 3), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step(x: Tensor) -> Tensor:
        model.train()
        seen.append(model.layer.register_forward_hook(lambda *_: None))
        frozen.requires_grad_(True)
        torch.rand(3)
        loss = (model(x) * free).sum()
        loss.backward()
        x.mul_(2)
        optimizer.step()
        if fails:
            raise ValueError("half way")
        return (model(x) * free).sum()

    state = {name: each.clone() for name, each in model.state_dict().items()}
    batch, random = x.clone(), torch.get_rng_state()
    gradient, rate = model.layer.weight.grad, optimizer.param_groups[0]["lr"]
    modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), gc.isenabled()
    if fails:
        with pytest.raises(CaptureError, match="half way"):
            analyze(step, x)
    else:
        analyze(step, x)
    assert seen
    assert all(torch.equal(state[name], each) for name, each in model.state_dict().items())
    assert torch.equal(x, batch)
    assert torch.equal(random, torch.get_rng_state())
    assert model.layer.weight.grad is gradient
    assert float(gradient.min()) == float(gradient.max()) == 3
    assert free.grad is None
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == rate
    assert not model.norm.training
    assert not model.layer._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert modes == (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), gc.isenabled())
    assert not frozen.requires_grad


# --- Lightning -----------------------------------------------------------------------------


def lightning_module():
    pl = pytest.importorskip("lightning.pytorch")

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.modes: list[bool] = []

        def training_step(self, batch, batch_idx):
            self.log("train", 1.0)
            return F.log_softmax(self.net.layer(batch), -1).mean()

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if self.training or torch.is_grad_enabled():
                raise RuntimeError("validation runs without gradients, in evaluation mode")
            self.log("accuracy", self.net(batch))

    return Lit()


def test_the_validation_step_on_request():
    lit = lightning_module()
    x = torch.rand(5, 3)
    assert analyze(lit, x).defects == ()
    analysis = analyze(lit, x, step="validation")
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    assert {node.phase for node in analysis.graph.nodes} == {"forward"}
    assert all(module.training for module in lit.modules())
    assert analyze(lit, data=[x, 2 * x], step="validation").defects


def test_a_module_without_a_validation_step():
    pl = pytest.importorskip("lightning.pytorch")

    class Bare(pl.LightningModule):
        def training_step(self, batch):
            return batch.sum()

    with pytest.raises(ArgumentError, match="Bare must have a validation_step; it has none"):
        analyze(Bare(), torch.rand(3), step="validation")
    with pytest.raises(ArgumentError, match="step='validation' is for a LightningModule"):
        analyze(Net(), torch.rand(5, 3), step="validation")
    with pytest.raises(ArgumentError, match="step must be 'training' or 'validation'; got 'test'"):
        analyze(Bare(), torch.rand(3), step="test")


@pytest.mark.parametrize("steps", ["closure", "toggled", "scheduled"])
def test_manual_optimization_in_its_several_ways(steps):
    pl = pytest.importorskip("lightning.pytorch")

    class Gan(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.make, self.judge = nn.Linear(3, 3), nn.Linear(3, 1)

        def loss(self, x):
            return -torch.log(torch.sigmoid(20 * self.judge(self.make(x)))).mean()

        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            if steps == "closure":

                def closure():
                    loss = self.loss(batch)
                    first.zero_grad()
                    self.manual_backward(loss)
                    return loss

                first.step(closure=closure)
            elif steps == "toggled":
                for optimizer in (first, second):
                    self.toggle_optimizer(optimizer)
                    self.manual_backward(self.loss(batch))
                    self.clip_gradients(optimizer, gradient_clip_val=1.0)
                    optimizer.step()
                    self.untoggle_optimizer(optimizer)
            else:
                with second.toggle_model(sync_grad=True):
                    self.manual_backward(self.loss(batch))
                    second.step()
                for scheduler in self.lr_schedulers():
                    scheduler.step()
                self.log_dict({"rate": first.param_groups[0]["lr"]}, prog_bar=True)

        def configure_optimizers(self):
            parts = (self.make, self.judge)
            made = [torch.optim.Adam(part.parameters(), lr=0.1) for part in parts]
            return made, [torch.optim.lr_scheduler.ConstantLR(each) for each in made]

    lit = Gan()
    before = {name: each.clone() for name, each in lit.state_dict().items()}
    analysis = analyze(lit, torch.rand(4, 3))
    assert {defect.code for defect in analysis.defects} == {"RN101"}
    assert any(node.phase == "backward" for node in analysis.graph.nodes)
    assert all(torch.equal(before[name], each) for name, each in lit.state_dict().items())
