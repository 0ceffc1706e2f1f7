"""Configurations read from models and written into them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ranum.errors import ArgumentError
from ranum.repair.search import (
    SearchSpace,
    apply_configuration,
    build_optimizer,
    read_configuration,
    repair_configuration,
)
from ranum.repair.search.surgery import ACTIVATIONS, INITIALIZATIONS, OPTIMIZERS


def mlp(activation=nn.ReLU, output=nn.Identity):
    return nn.Sequential(
        nn.Linear(4, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 2), output()
    )


class Everything(nn.Module):
    """One of each layer that weights can be drawn for."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm1d(6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.gru = nn.GRUCell(6, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)
        self.layer_norm = nn.LayerNorm(6)
        self.relu = nn.ReLU()
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.relu(self.norm(self.conv(self.embedding(tokens).transpose(1, 2)))).transpose(1, 2)
        x, _ = self.lstm(x)
        x, _ = self.attention(x, x, x)
        return self.head(self.layer_norm(self.gru(x[:, -1])))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


def kinds(model):
    return [type(module).__name__ for module in model.modules()][1:]


def test_a_configuration_is_read():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)
    assert read_configuration(model, optimizer, 32) == {
        "learning_rate": 0.5,
        "optimizer": "SGD",
        "batch_size": 32,
        "initialization": "keep",
        "activation": "ReLU",
        "normalization": "none",
        "gradient_clip": None,
    }


def test_what_cannot_change_is_none_and_not_searched():
    model = nn.Linear(2, 2)
    configuration = read_configuration(model, torch.optim.Adam(model.parameters()))
    assert configuration["activation"] is None
    assert configuration["batch_size"] is None
    assert list(SearchSpace().within(configuration)) == [
        "learning_rate",
        "optimizer",
        "initialization",
    ]


def last_tanh():
    layers = (nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2), nn.Tanh())
    return nn.ModuleDict(dict(zip("abcd", layers, strict=True)))


@pytest.mark.parametrize(
    ("make", "read", "after"),
    [
        (mlp, "ReLU", ["Linear", "SELU", "Linear", "SELU", "Linear", "Identity"]),
        (lambda: mlp(nn.Tanh, nn.Softmax), "Tanh", ["Linear", "SELU"] * 2 + ["Linear", "Softmax"]),
        (lambda: mlp(nn.ReLU, nn.Tanh), "ReLU", ["Linear", "SELU"] * 2 + ["Linear", "Tanh"]),
        (lambda: mlp(nn.ReLU, nn.ReLU), "ReLU", ["Linear", "SELU"] * 2 + ["Linear", "ReLU"]),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2)), None, None),
        (last_tanh, "GELU", ["Linear", "SELU", "Linear", "Tanh"]),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=nn.ReLU()), None, None),
        (nn.ReLU, None, None),
    ],
)
def test_hidden_activations_are_swapped_and_only_they(make, read, after):
    model = make()
    before, weights = kinds(model), state(model)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert read_configuration(model, optimizer)["activation"] == read
    edit = apply_configuration(model, {"activation": "SELU"})
    assert kinds(model) == (before if after is None else after)
    assert same(state(model), weights)
    edit.undo()
    assert kinds(model) == before


def test_the_minority_and_the_shared_stay_what_they_are():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.first = nn.Sequential(nn.Linear(2, 2), self.relu, nn.GELU(), nn.Linear(2, 2))
            self.second = nn.Sequential(nn.Linear(2, 2), self.relu, nn.Linear(2, 2))

    model = Model().eval()
    relu = model.relu
    edit = apply_configuration(model, {"activation": "PReLU"})
    assert model.first[1] is model.second[1] is model.relu
    assert isinstance(model.relu, nn.PReLU)
    assert isinstance(model.first[2], nn.GELU)
    assert not model.relu.training
    assert edit.changes[0] == "relu: ReLU -> PReLU"
    edit.undo()
    edit.undo()
    assert model.first[1] is model.second[1] is model.relu is relu


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_can_be_put_in(activation):
    model = mlp(nn.Tanh).double()
    apply_configuration(model, {"activation": activation})
    assert model(torch.zeros(3, 4, dtype=torch.float64)).dtype == torch.float64


def test_what_the_model_has_already_changes_nothing():
    model = mlp()
    weights = state(model)
    edit = apply_configuration(model, {"activation": "ReLU", "initialization": "keep", "lr": 3})
    assert str(edit) == "no change"
    assert same(state(model), weights)


@pytest.mark.parametrize("scheme", [name for name in INITIALIZATIONS if name != "keep"])
@pytest.mark.parametrize("make", [mlp, Everything])
def test_weights_are_drawn_again_and_come_back(make, scheme):
    model = make()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(1)
    before = state(model)
    edit = apply_configuration(model, {"initialization": scheme}, seed=0)
    for name, weight in model.named_parameters():
        is_matrix = weight.dim() > 1 and "embedding" not in name and "bias_" not in name
        assert not is_matrix or weight.std() > 0.01, name
    assert not same(state(model), before)
    edit.undo()
    assert same(state(model), before)


@pytest.mark.parametrize(
    ("scheme", "deviation"),
    [
        ("kaiming_normal", (2 / 256) ** 0.5),
        ("kaiming_uniform", (2 / 256) ** 0.5),
        ("xavier_normal", (2 / (256 + 128)) ** 0.5),
        ("xavier_uniform", (2 / (256 + 128)) ** 0.5),
        ("orthogonal", (2 / 256) ** 0.5),
        ("default", (1 / (3 * 256)) ** 0.5),
    ],
)
def test_the_spread_of_the_weights_is_the_schemes(scheme, deviation):
    model = nn.Sequential(nn.Linear(256, 128))
    apply_configuration(model, {"initialization": scheme}, seed=0)
    assert model[0].weight.std().item() == pytest.approx(deviation, rel=0.03)
    assert scheme == "default" or not model[0].bias.any()


def test_each_gate_of_a_recurrent_layer_is_drawn_by_itself():
    model = nn.LSTM(64, 64)
    apply_configuration(model, {"initialization": "orthogonal"}, seed=0)
    for gate in model.weight_hh_l0.detach().chunk(4):
        torch.testing.assert_close(gate @ gate.T, 2 * torch.eye(64), atol=1e-4, rtol=1e-4)


def test_norms_start_afresh():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(16, 4) * 1e6)
    apply_configuration(model, {"initialization": "xavier_uniform"})
    assert torch.equal(model[1].running_var, torch.ones(4))
    assert model[1].num_batches_tracked == 0


def test_frozen_parametrized_and_embedded_weights_stay():
    model = nn.ModuleDict(
        {
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "frozen_norm": nn.LayerNorm(4).requires_grad_(False),
            "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
            "embedding": nn.Embedding(5, 4),
            "tied": nn.Linear(4, 5, bias=False),
            "empty": nn.ReLU(),
        }
    )
    model["tied"].weight = model["embedding"].weight
    with torch.no_grad():
        model["frozen_norm"].weight.fill_(3)
    before = state(model)
    apply_configuration(model, {"initialization": "kaiming_normal"})
    assert same(state(model), before)


def test_a_weight_tied_to_an_embedding_is_drawn_as_one_by_default():
    model = nn.ModuleDict({"embedding": nn.Embedding(100, 64), "tied": nn.Linear(64, 100)})
    model["tied"].weight = model["embedding"].weight
    apply_configuration(model, {"initialization": "default"}, seed=0)
    assert model["embedding"].weight.std().item() == pytest.approx(1, rel=0.05)


def test_a_seed_fixes_the_weights_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        model = mlp()
        torch.set_rng_state(generator)
        apply_configuration(model, {"initialization": "default"}, seed=seed)
        drawn.append(state(model))
        assert torch.equal(torch.get_rng_state(), generator)
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"activation": "Sigmoid"}, "activation must be one of ReLU, .*got 'Sigmoid'"),
        ({"initialization": "zeros"}, "initialization must be one of keep, .*got 'zeros'"),
    ],
)
def test_unknown_names_list_the_known_ones(configuration, message):
    model = mlp()
    before = kinds(model)
    with pytest.raises(ArgumentError, match=message):
        apply_configuration(model, {"activation": "SELU", **configuration})
    assert kinds(model) == before


def test_a_lazy_layer_must_have_seen_a_batch():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ArgumentError, match=r"'0.weight' has no shape yet\. Run it once"):
        apply_configuration(model, {"initialization": "default"})


def test_the_default_space_holds_only_what_the_surgery_knows():
    space = SearchSpace()
    assert set(space.activation) <= set(ACTIVATIONS)
    assert set(space.initialization) <= set(INITIALIZATIONS)
    assert set(space.optimizer) <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step(name):
    model = mlp()
    former = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    optimizer = build_optimizer(name, former.param_groups, 0.01, like=former)
    before = state(model)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert type(optimizer).__name__ == name
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    assert optimizer.param_groups[0].get("momentum", 0.9) == 0.9
    assert not same(state(model), before)


def test_groups_keep_their_options_and_the_ratio_of_their_rates():
    model = mlp()
    former = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "weight_decay": 0.0},
            {"params": model[2].weight, "lr": 1e-4, "betas": (0.5, 0.9)},
            {"params": model[4].parameters(), "lr": 0.0},
        ],
        lr=1e-3,
        weight_decay=0.3,
    )
    torch.optim.lr_scheduler.ConstantLR(former, factor=0.5)
    for name in ("AdamW", "NAdam", "SGD"):
        groups = build_optimizer(name, former.param_groups, 1e-2).param_groups
        assert [group["lr"] for group in groups] == pytest.approx([1e-2, 1e-3, 0.0])
        assert [group["weight_decay"] for group in groups] == [0.0, 0.3, 0.3]
        assert [len(group["params"]) for group in groups] == [2, 1, 2]
        assert name == "SGD" or groups[1]["betas"] == (0.5, 0.9)
    assert former.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_options_of_the_same_class_all_stay():
    model = mlp()
    former = torch.optim.RMSprop(model.parameters(), lr=1.0, alpha=0.5, centered=True)
    (group,) = build_optimizer("RMSprop", model.parameters(), 0.1, like=former).param_groups
    assert (group["lr"], group["alpha"], group["centered"]) == (0.1, 0.5, True)


def test_an_optimizer_of_ones_own_can_be_built_again():
    class Lion(torch.optim.SGD):
        pass

    model = mlp()
    former = Lion(model.parameters(), lr=1.0)
    assert type(build_optimizer("Lion", model.parameters(), 0.1, like=former)) is Lion


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("LBFGS", [nn.Parameter(torch.ones(1))], 0.1), "name must be one of Adadelta.*'LBFGS'"),
        (("Adam", [nn.Parameter(torch.ones(1))], 0.0), "learning_rate must be positive and finite"),
        (("Adam", [], 0.1), "parameters must hold at least one"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        build_optimizer(*arguments)


def test_a_real_model_is_repaired():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 4, generator=generator)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = mlp()
    for weight in model.parameters():
        nn.init.ones_(weight)  # every unit the same: nothing to learn with
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    faulty = read_configuration(model, optimizer)

    def train(configuration, report):
        candidate = copy.deepcopy(model)
        apply_configuration(candidate, configuration, seed=report.seed)
        trained = build_optimizer(
            configuration["optimizer"], candidate.parameters(), configuration["learning_rate"]
        )
        for epoch in range(60):
            trained.zero_grad()
            loss = nn.functional.cross_entropy(candidate(inputs), targets)
            report(epoch, loss)
            loss.backward()
            trained.step()
        return loss.item()

    before = state(model)
    result = repair_configuration(train, faulty, target=0.5, budget=40)
    assert result.is_repaired
    assert {"learning_rate", "initialization"} <= result.patch.keys()
    assert same(state(model), before)
