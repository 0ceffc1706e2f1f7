"""Batch normalization that a repair puts behind layers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from ranum.errors import ArgumentError
from ranum.repair.search import apply_configuration, read_configuration
from ranum.repair.search.normalization import read_normalization

WITH = {"normalization": "BatchNorm"}
WITHOUT = {"normalization": "none"}


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head(x.mean((-2, -1)))


def by_hand(model):
    """The same network as a developer would normalize it."""
    norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(5)])

    def forward(x):
        x = torch.relu(norms[0](model.first(x)))
        x = torch.relu(norms[1](model.second(x)))
        return model.head(x.mean((-2, -1)))

    return norms, forward


def test_it_computes_what_a_developer_would_have_written():
    torch.manual_seed(0)
    model = Convolutions()
    reference = copy.deepcopy(model)
    norms, forward = by_hand(reference)
    apply_configuration(model, WITH)
    for x in torch.randn(3, 6, 3, 9, 9):
        ours, theirs = model(x), forward(x)
        torch.testing.assert_close(ours, theirs)
        ours.square().sum().backward()
        theirs.square().sum().backward()
    torch.testing.assert_close(model.first.weight.grad, reference.first.weight.grad)
    torch.testing.assert_close(model.second.added_normalization.running_var, norms[1].running_var)
    model.eval(), norms.eval()
    torch.testing.assert_close(model(x), forward(x))


def test_features_of_a_sequence_are_normalized_over_all_its_places():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(5, 7, 3)
    expected = nn.BatchNorm1d(4)(model[0](x).transpose(1, 2)).transpose(1, 2)
    apply_configuration(model, WITH)
    torch.testing.assert_close(model[0](x), expected)


def test_a_batch_of_one_does_not_end_the_run():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    apply_configuration(model, WITH)
    before = model[0].added_normalization.running_mean.clone()
    assert model(torch.randn(1, 3)).isfinite().all()
    assert torch.equal(model[0].added_normalization.running_mean, before)
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm1d(4)(torch.randn(1, 4))


def test_names_stay_and_a_copy_or_a_pickle_keeps_the_layer():
    model = Convolutions()
    names = [name for name, _ in model.named_parameters()]
    apply_configuration(model, WITH)
    now = [name for name, _ in model.named_parameters()]
    assert set(names) < set(now)
    assert "second.added_normalization.weight" in now
    assert not any("head.added" in name for name in now)
    x = torch.randn(4, 3, 8, 8)
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        other.first.added_normalization.weight.data.zero_()
        assert not torch.equal(other(x), model(x))


def test_it_can_be_undone_and_taken_out():
    model = Convolutions()
    x = torch.randn(4, 3, 8, 8)
    before, names = model(x), list(model.state_dict())
    edit = apply_configuration(model, WITH)
    assert read_normalization(model) == "BatchNorm"
    assert not torch.equal(model(x), before)
    out = apply_configuration(model, WITHOUT)
    assert torch.equal(model(x), before)
    out.undo()
    assert read_normalization(model) == "BatchNorm"
    edit.undo()
    edit.undo()
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names
    assert not model.first._forward_hooks


def test_a_model_with_normalization_of_its_own_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert read_configuration(model, optimizer)["normalization"] is None
    assert not apply_configuration(model, WITH).changes


def test_attention_keeps_its_projections_and_one_layer_is_not_hidden():
    assert read_normalization(nn.MultiheadAttention(4, 2)) is None
    assert read_normalization(nn.Linear(2, 2)) is None


def test_an_unknown_name_is_refused():
    with pytest.raises(ArgumentError, match=r"normalization must be one of none, BatchNorm; got"):
        apply_configuration(Convolutions(), {"normalization": "batch"})
