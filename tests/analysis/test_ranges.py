from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ranum.analysis import analyze
from ranum.analysis.scan import Batches, Seen
from ranum.errors import ArgumentError, CaptureError

X = torch.rand(4, 3)


def span(analysis, name: str) -> tuple[float, float]:
    return analysis.ranges[name].low, analysis.ranges[name].high


# --- data ----------------------------------------------------------------------------------


class Noisy(Dataset):
    """Numbers up to 9 with noise from every generator there is."""

    def __init__(self) -> None:
        self.own = np.random.default_rng(0)
        self.python = random.Random(0)
        self.torch = torch.Generator().manual_seed(0)
        self.old = np.random.RandomState(0)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + random.random() + np.random.rand() + self.own.random()
        noise += self.python.random() + torch.rand((), generator=self.torch) + self.old.rand()
        return torch.full((3,), float(index)) + 1e-3 * noise, torch.tensor(index % 3)


def states(dataset: Noisy) -> list[str]:
    return [
        str(torch.get_rng_state().tolist()),
        str(random.getstate()),
        str(np.random.get_state()),
        str(dataset.own.bit_generator.state),
        str(dataset.python.getstate()),
        str(dataset.torch.get_state().tolist()),
        str(dataset.old.get_state()),
    ]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # 2 s
def test_a_scan_widens_the_ranges_and_leaves_no_trace(workers):
    dataset = Noisy()
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(dataset, 2, shuffle=True, num_workers=workers, generator=own)
    before = [*states(dataset), str(own.get_state().tolist())]
    analysis = analyze(lambda x, y: (x * x).sum(), X, torch.tensor([0, 1, 2, 0]), data=loader)
    assert [*states(dataset), str(own.get_state().tolist())] == before
    low, high = span(analysis, "x")
    assert -1.1 < low < 0
    assert 9 < high < 10.1
    assert "input ranges come from the example and 5 batches of data" in analysis.notes


def test_an_iterator_that_is_being_read_goes_on_where_it_was():
    loader = DataLoader(TensorDataset(torch.arange(12.0)), 2, shuffle=True)
    torch.manual_seed(5)
    expected = [batch[0].tolist() for batch in loader]
    torch.manual_seed(5)
    reader = iter(loader)
    got = [next(reader)[0].tolist()]
    analyze(lambda x: x.sum(), torch.zeros(2), data=loader)
    assert got + [batch[0].tolist() for batch in reader] == expected


def test_the_first_batch_is_the_example_where_none_is_given():
    model = nn.Linear(3, 2)
    loader = DataLoader(TensorDataset(X, torch.tensor([0, 1, 0, 1])), 2)
    analysis = analyze(lambda x, y: F.cross_entropy(model(x), y), data=loader)
    assert analysis.graph.inputs == ("x", "y")
    assert analyze(model, data=loader).graph.inputs == ("input",)
    whole = analyze(lambda batch: F.cross_entropy(model(batch[0]), batch[1]), data=loader)
    assert whole.graph.inputs == ("batch[0]", "batch[1]")


def test_lists_of_batches_and_dictionaries():
    batches = [{"x": torch.full((2,), float(i)), "y": torch.ones(2)} for i in range(3)]
    analysis = analyze(lambda batch: (batch["x"] * batch["y"]).sum(), data=batches)
    assert span(analysis, "batch['x']") == (0, 2)


def test_reading_stops_after_some_batches():
    loader = DataLoader(TensorDataset(torch.arange(1000.0)), 1)
    assert len(list(Batches(loader, batches=7))) == 7
    assert len(list(Batches(loader, seconds=0.0))) == 1


def test_careful_reading_leaves_streams_alone():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([1.0, 2.0])

    loader = DataLoader(Stream())
    assert list(Batches(loader, is_careful=True)) == []
    assert [float(batch) for batch in Batches(loader)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (batch for batch in [X]),
            "something that can be read again.*generator",
        ),
        (iter([X]), "got a list_iterator, which a scan would use up"),
        (X, "must be a DataLoader or a list of batches; got Tensor"),
        (3, "must be a DataLoader or a list of batches; got int"),
        ({"x": X}, "got dict"),
        ([], "data must hold at least one batch; it is empty"),
        (DataLoader(TensorDataset(torch.zeros(0, 3))), "it is empty"),
        ([["a"], ["b"]], "must be like the example's, with x"),
    ],
)
def test_data_of_the_wrong_kind(data, message):
    with pytest.raises(ArgumentError, match=message):
        analyze(lambda x: x.sum(), X, data=data)


def test_data_that_cannot_be_read():
    class Broken(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise OSError("no such file")

    with pytest.raises(CaptureError, match="data could not be read: it raised OSError: no such"):
        analyze(lambda x: x.sum(), X, data=DataLoader(Broken()))


def test_an_empty_loader_without_an_example():
    with pytest.raises(ArgumentError, match="at least one batch"):
        analyze(lambda x: x.sum(), data=[])


# --- labels and indices --------------------------------------------------------------------


def test_token_ids_may_be_any_row_of_the_table():
    """Row 3, which no token of the batch picks, is large: exp overflows for it."""
    table = nn.Embedding(4, 1)
    table.weight.data.copy_(torch.tensor([[0.0], [1.0], [2.0], [200.0]]))
    step = lambda ids: torch.exp(table(ids)).mean()  # noqa: E731
    analysis = analyze(step, torch.tensor([0, 2]), weights="initial")
    assert [defect.code for defect in analysis.defects] == ["RN104"]
    assert any("ids: any valid index" in note for note in analysis.notes)
    assert analyze(step, torch.tensor([1]), weights="initial").defects


@pytest.mark.parametrize("pick", ["gather", "index", "index_select"])
def test_labels_pick_any_class(pick):
    scores = nn.Parameter(torch.tensor([[0.0, 1.0, 300.0]] * 2))

    def step(y: Tensor) -> Tensor:
        if pick == "gather":
            chosen = scores.gather(1, y[:, None])
        elif pick == "index":
            chosen = scores[torch.arange(2), y]
        else:
            chosen = scores.index_select(1, y)
        return chosen.exp().mean()

    assert analyze(step, torch.tensor([0, 1]), weights="initial").defects


def test_masks_and_padding_are_those_of_the_batch():
    """A padding mask, as bool, as 0 and 1, and as -inf, keeps its precision."""
    table = nn.Embedding(10, 4)

    def step(ids: Tensor, mask: Tensor) -> Tensor:
        scores = table(ids).sum(-1).masked_fill(ids == 0, -torch.inf)
        attention = torch.softmax(scores + (1 - mask.float()) * -1e9, -1)
        return (attention * mask).sum() / mask.sum()

    ids = torch.tensor([[1, 5, 0], [2, 3, 4]])
    analysis = analyze(step, ids, (ids != 0).long())
    assert analysis.defects == ()


def test_infinite_masks_made_of_integers_stay_what_they_are():
    weight = nn.Parameter(torch.ones(3))

    def step(ids: Tensor) -> Tensor:
        mask = torch.zeros(3).index_fill(0, ids, -torch.inf)
        return (weight + mask).softmax(-1).sum()

    analysis = analyze(step, torch.tensor([0, 2]))
    assert analysis.defects == ()
    assert analysis.bounds["loss"].is_finite


def test_counts_that_become_floats_vary_within_what_was_seen():
    weight = nn.Parameter(torch.ones(1))
    counts = torch.tensor([0, 2, 5])
    step = lambda n: (weight * torch.log(n.float())).sum()  # noqa: E731
    analysis = analyze(step, counts)
    assert [defect.code for defect in analysis.defects] == ["RN101"]
    assert span(analysis, "n") == (0, 5)
    assert analyze(step, counts, inputs={"n": (1, 9)}).defects == ()
    assert analyze(step, counts + 1).defects == ()
    assert analyze(step, counts + 1, data=[(torch.tensor([0, 8, 7]),)]).defects
    assert analyze(lambda n: (weight / n).sum(), counts).defects


def test_integers_of_zero_and_one_are_masks_unless_a_range_says_otherwise():
    weight = nn.Parameter(torch.ones(1))
    step = lambda mask: (weight * mask.float()).sum() / mask.float().sum()  # noqa: E731
    mask = torch.tensor([0, 1, 1])
    assert analyze(step, mask).defects == ()
    assert [d.code for d in analyze(step, mask, inputs={"mask": (0, 1)}).defects] == ["RN103"]


def test_a_table_of_constants_is_looked_up_anywhere():
    weight, schedule = nn.Parameter(torch.ones(1)), torch.tensor([0.0, 1.0, 2.0])
    step = lambda t: (weight / schedule[t]).sum()  # noqa: E731
    assert [d.code for d in analyze(step, torch.tensor([1, 2, 2])).defects] == ["RN103"]


def test_one_hot_rows_sum_to_one():
    weight = nn.Parameter(torch.ones(1))
    y = torch.tensor([0, 2, 1])
    step = lambda y: (weight * y).sum() / y.sum(-1).prod()  # noqa: E731
    one_hot = F.one_hot(y, 3).float()
    analysis = analyze(step, one_hot)
    assert analysis.defects == ()
    assert any("rows of y are taken to sum to 1" in note for note in analysis.notes)
    assert analyze(lambda y: step(F.one_hot(y, 3).float()), y).defects == ()
    assert analyze(step, one_hot, inputs={"y": (0, 1)}).defects
    assert analyze(step, one_hot, data=[(torch.zeros(2, 3),)]).defects


def test_what_is_seen_of_a_tensor():
    assert Seen.of(torch.tensor([[0.5, 0.5], [0.25, 0.75]])).is_shared
    assert not Seen.of(torch.tensor([[0.5, 0.5]])).is_shared
    assert not Seen.of(torch.tensor([[1.5, -0.5], [0.0, 1.0]])).is_shared
    nan = Seen.of(torch.tensor([float("nan"), 1.0, float("inf"), 3.5]))
    assert (nan.lower, nan.upper, nan.is_whole) == (1.0, 3.5, False)
    empty = Seen.of(torch.zeros(0, 2))
    assert (empty.lower, empty.upper) == (0.0, 0.0)


def test_an_interval_of_the_wrong_shape():
    from ranum.analysis.interval import Interval

    bounds = Interval.between(torch.zeros(2), torch.ones(2), (2,), torch.float32)
    with pytest.raises(ArgumentError, match=r"'x' must have bounds that broadcast to \[4, 3\]"):
        analyze(lambda x: x.sum(), X, inputs={"x": bounds})


def test_inputs_must_be_a_mapping():
    with pytest.raises(ArgumentError, match="inputs must map names to ranges"):
        analyze(lambda x: x.sum(), X, inputs=[(0, 1)])


# --- running statistics --------------------------------------------------------------------


def test_running_statistics_are_bounded_where_the_step_reads_them():
    """The new variance holds for all inputs in the range, not just for the batch's."""
    norm = nn.BatchNorm1d(3, momentum=1.0)

    def step(x: Tensor) -> Tensor:
        return norm(x).sum() + torch.log(norm.running_var).sum()

    x = torch.rand(8, 3)
    assert [d.code for d in analyze(step, x, inputs={"x": (0, 1)}).defects] == ["RN101"]
    norm.momentum = 0.5  # half of the old variance, 1, stays
    analysis = analyze(step, x, inputs={"x": (0, 1)})
    assert analysis.defects == ()
    assert analysis.is_complete
    node = next(node for node in analysis.graph.nodes if node.op == "running_statistics")
    mean, variance = (analysis.intervals[number] for number in node.outputs)
    assert 0 <= mean.low <= mean.high <= 0.51
    assert 0.499 <= variance.low <= variance.high <= 0.7
