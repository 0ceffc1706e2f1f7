from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.readings import TorchReader


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def plain_norm(model: nn.Module) -> float:
    parts = [p.grad.to_dense().double() for p in model.parameters() if p.grad is not None]
    return math.sqrt(sum(float((part**2).sum()) for part in parts))


@contextmanager
def host_reads():
    """Counts the calls that make the host wait for a tensor's value."""
    count = []

    def counted(method):
        def call(self, *args, **kwargs):
            count.append(method.__name__)
            return method(self, *args, **kwargs)

        return call

    names = ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__")
    patches = [patch.object(Tensor, name, counted(getattr(Tensor, name))) for name in names]
    for each in patches:
        each.start()
    try:
        yield count
    finally:
        for each in patches:
            each.stop()


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def train_step(reader: TorchReader, step: int, x: Tensor | None = None) -> Tensor:
    reader.model.zero_grad()
    x = torch.randn(5, 1, 8, 8) if x is None else x
    with reader.watch(step):
        loss = reader.model(x).square().mean()
    loss.backward()
    return loss


# --- values --------------------------------------------------------------------------------


def test_norms_equal_a_plain_computation(model):
    reader = TorchReader(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    loss = train_step(reader, 0)
    reading = reader.read(step=0, loss=loss, optimizer=optimizer, epoch=3)
    assert reading.loss == pytest.approx(loss.item())
    assert reading.grad_norm == pytest.approx(plain_norm(model))
    assert (reading.step, reading.epoch, reading.learning_rate) == (0, 3, 0.25)
    assert list(reading.grad_norms) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert reading.grad_norms[name] == pytest.approx(parameter.grad.norm().item())
        assert reading.weight_norms[name] == pytest.approx(parameter.norm().item())


def test_activations_are_the_outputs_extremes(model):
    reader = TorchReader(model)
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        model[5].bias = nn.Parameter(torch.zeros(1))  # an unused parameter of a leaf
        model[4].bias[:6] = -1e4
    reading = reader.read(step=0, loss=train_step(reader, 0, x))
    assert list(reading.activations) == [str(index) for index in range(7)]
    model.eval()
    h = model[4](model[3](model[2](F.batch_norm(model[0](x), None, None, training=True))))
    assert reading.activations["4"].lower == pytest.approx(h.min().item(), rel=1e-4)
    assert reading.activations["4"].upper == pytest.approx(h.max().item(), rel=1e-4)
    assert reading.activations["4"].dead is None
    assert reading.activations["5"].dead == pytest.approx((h.amax(0) <= 0).float().mean().item())
    assert reading.activations["5"].dead >= 0.75
    assert reading.activations["5"].lower == 0.0


def dead_share(model: nn.Module, x: Tensor, name: str) -> float | None:
    reader = TorchReader(model)
    with reader.watch(0):
        model(x)
    return reader.read(step=0, loss=None).activations[name].dead


@pytest.mark.parametrize(
    ("before", "shape", "axis"),
    [
        (nn.Conv2d(4, 4, 1), (3, 4, 5, 5), 1),
        (nn.Conv1d(4, 4, 1), (3, 4, 5), 1),
        (nn.BatchNorm1d(4), (3, 4, 5), 1),
        (nn.Linear(4, 4), (3, 4), 1),
        (nn.Linear(4, 4), (3, 5, 4), 2),
        (nn.Linear(4, 4), (3, 5, 5, 4), 3),
    ],
)
def test_a_unit_is_a_channel_or_a_feature(before, shape, axis):
    torch.manual_seed(0)
    with torch.no_grad():
        before.bias[:3], before.bias[3] = -1e4, 1e4
    assert dead_share(nn.Sequential(before, nn.ReLU()), torch.randn(shape), "1") == 0.75


@pytest.mark.parametrize(
    ("rectifier", "measured"),
    [(nn.ReLU(), True), (nn.ReLU(inplace=True), True), (nn.ReLU6(), True), (nn.GELU(), False)],
)
def test_dead_units_are_measured_for_rectifiers(rectifier, measured):
    share = dead_share(nn.Sequential(nn.Linear(4, 4), rectifier), torch.randn(8, 4), "1")
    assert (share is not None) is measured


def test_a_module_called_twice_shows_the_extremes_of_both():
    model = nn.Sequential(nn.ReLU())
    reader = TorchReader(model)
    with reader.watch(0):
        model(torch.tensor([[1.0, 2.0]]))
    with reader.watch(0):
        model(torch.tensor([[-1.0, 7.0]]))
    activation = reader.read(step=0, loss=None).activations["0"]
    assert (activation.lower, activation.upper, activation.dead) == (0.0, 7.0, 0.5)


def test_statistics_of_another_step_are_dropped():
    reader = TorchReader(nn.Sequential(nn.ReLU()))
    with reader.watch(0):
        reader.model(torch.ones(1, 1))
    assert not reader.read(step=10, loss=None).activations
    with reader.watch(10):
        reader.model(torch.ones(1, 1))
    with reader.watch(20):
        reader.model(torch.zeros(1, 1))
    assert reader.read(step=20, loss=None).activations["0"].upper == 0.0


# --- cost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1])
def test_one_host_read_per_step(model, step):
    reader = TorchReader(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.5))
    with host_reads() as count:
        loss = train_step(reader, step)
        reading = reader.read(step=step, loss=loss, optimizer=optimizer)
    assert count == ["tolist"]
    assert reading.learning_rate == 0.5
    assert reading.is_sampled is (step == 0)


def test_only_sampled_steps_are_sampled(model):
    reader = TorchReader(model, sample_every=3)
    for step in range(7):
        reading = reader.read(step=step, loss=train_step(reader, step))
        assert reading.is_sampled is reader.is_sampled(step) is (step % 3 == 0)
        assert bool(reading.activations) is (step % 3 == 0)
        assert bool(reading.weight_norms) is (step % 3 == 0)
        assert reading.grad_norm == pytest.approx(plain_norm(model))


def test_hooks_exist_only_while_watching_a_sampled_step(model):
    reader = TorchReader(model)
    with reader.watch(1):
        assert hooks(model) == 0
    with reader.watch(0):
        assert hooks(model) == 7
    assert hooks(model) == 0
    with pytest.raises(KeyError), reader.watch(0):
        raise KeyError
    assert hooks(model) == 0


def test_close_leaves_nothing_behind(model):
    reader = TorchReader(model)
    loss = train_step(reader, 0)
    reader.close()
    assert hooks(model) == 0
    reading = reader.read(step=0, loss=loss)
    assert reading.grad_norm == pytest.approx(plain_norm(model))
    assert not reading.activations


def test_reading_leaves_training_alone(model):
    state = torch.get_rng_state()
    reader = TorchReader(model)
    train_step(reader, 0, torch.ones(5, 1, 8, 8))
    before = [p.grad.clone() for p in model.parameters()]
    with host_reads():
        reader.read(step=0, loss=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


# --- what models do ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 3e4])
def test_half_precision_gradients_do_not_overflow_the_norm(dtype, size):
    model = nn.Linear(100, 100, bias=False).to(dtype)
    model.weight.grad = torch.full_like(model.weight, size)
    reading = TorchReader(model).read(step=0, loss=torch.tensor(1.0, dtype=dtype))
    assert reading.grad_norm == pytest.approx(100 * size, rel=1e-2)


def test_finite_gradients_have_a_finite_norm():
    model = nn.Linear(4, 4)
    model.weight.grad = torch.full((4, 4), 1e30)
    model.bias.grad = torch.full((4,), -3e30)
    reading = TorchReader(model).read(step=0, loss=1.0)
    assert reading.grad_norm == pytest.approx(math.sqrt(16 + 36) * 1e30)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_single_bad_element_shows(bad, dtype):
    model = nn.Linear(64, 64).to(dtype)
    model.weight.grad = torch.zeros_like(model.weight)
    model.weight.grad[3, 5] = bad
    model.bias.grad = torch.full_like(model.bias, 1e4)
    norm = TorchReader(model).read(step=1, loss=1.0).grad_norm
    assert norm is not None
    assert not math.isfinite(norm)


def test_mixed_dtypes():
    model = nn.ModuleList(
        [nn.Linear(3, 3).to(d) for d in (torch.float16, torch.float64, torch.float32)]
    )
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    reading = TorchReader(model).read(step=0, loss=torch.tensor(1, dtype=torch.int64))
    assert reading.grad_norm == pytest.approx(plain_norm(model), rel=1e-5)
    assert list(reading.grad_norms) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        expected = parameter.grad.double().norm().item()
        assert reading.grad_norms[name] == pytest.approx(expected, rel=1e-5)


def test_sparse_gradients_are_summed_over_repeated_rows():
    model = nn.ModuleList([nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)])
    loss = model[1](model[0](torch.tensor([1, 1, 1, 7]))).sum()
    loss.backward()
    assert model[0].weight.grad.is_sparse
    reading = TorchReader(model).read(step=0, loss=loss)
    assert reading.grad_norm == pytest.approx(plain_norm(model))


def test_frozen_and_unused_parameters_have_no_gradient_norm():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    model[1].requires_grad_(True)
    reader = TorchReader(model)
    model(torch.ones(1, 2)).sum().backward()
    reading = reader.read(step=0, loss=None)
    assert list(reading.grad_norms) == ["1.weight", "1.bias"]
    assert len(reading.weight_norms) == 4


def test_a_model_without_parameters():
    reader = TorchReader(nn.Flatten())
    with reader.watch(0):
        reader.model(torch.ones(2, 3))
    reading = reader.read(step=0, loss=torch.tensor(0.5))
    assert (reading.loss, reading.grad_norm, reading.learning_rate) == (0.5, None, None)
    assert reading.activations[""].upper == 1.0
    assert reader.read(step=1, loss=None).loss is None


@pytest.mark.parametrize(
    ("loss", "value"),
    [(torch.tensor([2.5]), 2.5), (torch.tensor([1.0, 3.0]), 2.0), (3, 3.0), (None, None)],
)
def test_shapes_of_a_loss(loss, value):
    assert TorchReader(nn.Linear(1, 1)).read(step=0, loss=loss).loss == value


class Outputs(NamedTuple):
    mask: Tensor
    scores: Tensor


class Odd(nn.Module):
    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "upper"),
    [
        (lambda x: (x, (x + 1,)), 1.0),
        (lambda x: [None, {"a": x + 1}], 2.0),
        (lambda x: OrderedDict(kind="dict", value=x), 1.0),
        (lambda x: Outputs(x > 0, x + 2), 3.0),
        (lambda x: x.long(), None),
        (lambda x: x[:0], None),
        (lambda x: None, None),
        (lambda x: "words", None),
        (lambda x: x.to(torch.complex64), None),
        (lambda x: x.sum(), 6.0),
    ],
)
def test_outputs_that_are_not_a_tensor(output, upper):
    reader = TorchReader(nn.Sequential(Odd(output)))
    with reader.watch(0):
        reader.model(torch.ones(2, 3))
    activations = reader.read(step=0, loss=None).activations
    assert (activations["0"].upper if activations else None) == upper


def test_lstm_and_a_lazy_layer():
    model = nn.ModuleList([nn.LSTM(3, 4), nn.LazyLinear(2)])
    reader = TorchReader(model)
    reader.read(step=0, loss=None)
    with reader.watch(0):
        loss = model[1](model[0](torch.randn(5, 2, 3))[0]).sum()
    loss.backward()
    reading = reader.read(step=0, loss=loss)
    assert set(reading.activations) == {"0", "1"}
    assert reading.grad_norm == pytest.approx(plain_norm(model))


def test_a_shared_module_and_a_shared_parameter_count_once():
    embedding, head = nn.Embedding(5, 5), nn.Linear(5, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head, head)
    loss = model(torch.tensor([0, 1])).sum()
    loss.backward()
    reading = TorchReader(model).read(step=0, loss=loss)
    assert list(reading.grad_norms) == ["0.weight"]
    assert reading.grad_norm == pytest.approx(plain_norm(model))


def test_replaced_parameters_are_seen_in_the_next_step(model):
    reader = TorchReader(model)
    reader.read(step=0, loss=train_step(reader, 0))
    model[6] = nn.Linear(8, 2)
    model.append(nn.Linear(2, 2))
    loss = train_step(reader, 1)
    model[7].weight.grad[0, 0] = math.nan
    norm = reader.read(step=1, loss=loss).grad_norm
    assert norm is not None
    assert math.isnan(norm)
    reading = reader.read(step=10, loss=train_step(reader, 10))
    assert list(reading.grad_norms) == [name for name, _ in model.named_parameters()]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's own compiler
def test_compiled_modules_are_not_hooked():
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = nn.Sequential(nn.Linear(3, 3), torch.compile(inner, backend="eager"), nn.Tanh())
    model[2].compile(backend="eager")
    reader = TorchReader(model)
    with reader.watch(0):
        assert hooks(inner) == 0
        loss = model(torch.ones(2, 3)).sum()
    loss.backward()
    reading = reader.read(step=0, loss=loss)
    assert set(reading.activations) == {"0"}
    assert reading.grad_norm == pytest.approx(plain_norm(model))


def test_a_compiled_step_keeps_its_graph():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    reader = TorchReader(model)

    @torch.compile(backend="eager", fullgraph=True)
    def forward(x):
        return model(x).sum()

    with reader.watch(0):
        forward(torch.ones(2, 3))
    assert reader.read(step=0, loss=None).activations == {}


def test_scripted_modules_are_not_hooked():
    with pytest.warns() if hasattr(torch.jit, "script") else pytest.raises(AttributeError):
        scripted = torch.jit.script(nn.ReLU())
    model = nn.Sequential(scripted, nn.Tanh())
    reader = TorchReader(model)
    with reader.watch(0):
        model(torch.ones(1, 1))
    assert set(reader.read(step=0, loss=None).activations) == {"1"}


def test_a_fault_in_the_statistics_switches_them_off(model):
    reader = TorchReader(model)
    with (
        patch("ranum.guards.readings._modules._first_tensor", side_effect=RuntimeError("odd")),
        pytest.warns(RanumWarning, match="activation statistics are switched off.*odd") as caught,
    ):
        loss = train_step(reader, 0)
    assert len(caught) == 1
    reading = reader.read(step=0, loss=loss)
    assert reading.grad_norm == pytest.approx(plain_norm(model))
    with reader.watch(10):
        assert hooks(model) == 0


def test_statistics_that_cannot_be_read_do_not_lose_the_step(model):
    reader = TorchReader(model)
    loss = train_step(reader, 0)
    reader._modules._statistics["0"].lower = torch.empty((), device="meta")
    with pytest.warns(RanumWarning, match="activation statistics are switched off"):
        reading = reader.read(step=0, loss=loss)
    assert reading.grad_norm == pytest.approx(plain_norm(model))
    assert reading.loss == pytest.approx(loss.item())
    assert not reading.activations


# --- arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "often", None])
def test_sample_every_is_validated(bad):
    with pytest.raises(ArgumentError, match="sample_every must be a positive integer; got"):
        TorchReader(nn.Linear(1, 1), sample_every=bad)


def test_model_is_validated():
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module; got dict"):
        TorchReader({})


@pytest.mark.parametrize("bad", [{"loss": 1.0}, "low", torch.empty(0), torch.tensor(1j)])
def test_loss_is_validated(bad):
    with pytest.raises(ArgumentError, match="loss must be a"):
        TorchReader(nn.Linear(1, 1)).read(step=0, loss=bad)


def test_several_optimizers_and_none():
    model = nn.Linear(1, 1)
    first, second = (torch.optim.SGD(model.parameters(), lr=lr) for lr in (0.5, 0.25))
    reader = TorchReader(model)
    assert reader.read(step=0, loss=None, optimizer=[first, second]).learning_rate == 0.5
    assert reader.read(step=0, loss=None, optimizer=[]).learning_rate is None
    assert reader.read(step=0, loss=None, optimizer=object()).learning_rate is None


def test_repr():
    assert (
        repr(TorchReader(nn.Linear(1, 1), sample_every=5)) == "TorchReader(Linear, sample_every=5)"
    )


def test_a_buffer_that_goes_bad_is_named_and_masks_are_not():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reader = TorchReader(model)
    mask, mean = torch.full((2,), -torch.inf), torch.zeros(2)
    buffers = [("mask", mask), ("mean", mean), ("large", torch.full((2,), 3e30))]

    def read(step):
        return reader.read(step=step, loss=1.0, optimizer=optimizer, buffers=buffers).bad_state

    assert read(0) == ""
    assert read(1) == ""
    mean[1] = torch.nan
    assert read(2) == "mean"
    assert read(10) == "mean"  # a sampled step
