"""The recorded forward pass trains as the step does, or is not used."""

import pytest
import torch
from torch import nn

import ranum
from ranum.analysis.confirm.calls import Calls
from ranum.analysis.confirm.training.data import slots
from ranum.analysis.confirm.training.optimizers import recipe
from ranum.analysis.confirm.training.proposals import Matcher
from ranum.analysis.confirm.training.quick import quick
from ranum.analysis.confirm.training.rows import view
from ranum.analysis.confirm.training.trainer import Trainer
from ranum.analysis.evaluate import NotExecutableError, evaluate, needed_nodes

ROWS = 8


class Net(nn.Module):
    """Its loss is summed or averaged over the rows, or looks at all of them together."""

    def __init__(self, reduction, *, dropped=0.0):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(4, 5)
        self.last = nn.Linear(5, 3)
        self.reduction = reduction
        self.dropped = dropped

    def forward(self, x, y):
        h = torch.relu(self.first(x))
        if self.dropped:
            h = h * (torch.rand(h.shape) > self.dropped)
        z = torch.cat([self.last(h), self.last(-h)], 1)
        losses = -(y * torch.log(torch.softmax(z, 1))).sum(1)
        if self.reduction == "largest":
            return losses.max()
        if self.reduction == "branch":  # the recorded branch is that of the example batch
            return losses.mean() if x.mean() < 0.6 else losses.sum() + losses[0]
        return losses.sum() if self.reduction == "sum" else losses.mean()


def example():
    torch.manual_seed(0)
    return torch.rand(ROWS, 4), nn.functional.one_hot(torch.arange(ROWS) % 6, 6).float()


def prepared(*net, **options):
    """Context, slots and what the search looks at; the row, where one is enough."""
    model = Net(*net, **options)
    x, y = example()
    analysis = ranum.analyze(model, x, y, inputs={"x": (0, 1), "y": (0, 1)}, weights="anything")
    defect = next(one for one in analysis.defects if one.op == "log")
    context = defect.context
    wanted = (defect.operand, *context.graph.nodes[defect.node].operands)
    moved = slots(context)
    seen = view(context, moved, wanted, ())
    return defect, seen, Matcher(context.program, moved, seen)


def batch_of(rows):
    """A batch of so many kinds of rows, in blocks."""
    torch.manual_seed(3)
    x = torch.rand(rows, 4).repeat_interleave(ROWS // rows, 0)
    y = nn.functional.one_hot(torch.arange(rows) % 6, 6).float()
    return {"x": x, "y": y.repeat_interleave(ROWS // rows, 0)}


def gradients(program, batch):
    loss = program.step(*program.batch(batch))
    return torch.autograd.grad(loss, list(program.parameters.values()))


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", ROWS)])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_row_gives_the_gradients_of_a_batch_of_such_rows(reduction, factor, rows):
    defect, seen, matcher = prepared(reduction)
    program = defect.context.program
    made = quick(defect.context, seen, matcher.comparable())
    assert (made.rows, made.factor) == (ROWS, factor)
    loss, found = made.gradients(batch_of(rows))
    for ours, theirs in zip(found, gradients(program, batch_of(rows)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    wanted = program.step(*program.batch(batch_of(rows)))
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-4, atol=1e-6)


def test_milder_data_are_nearer_to_the_recorded_ones_and_labels_stay():
    _, _, matcher = prepared("mean")
    x, y = example()
    far = {"x": torch.ones(ROWS, 4), "y": y.flip(0)}
    found = matcher.milder(far, 0.25)
    torch.testing.assert_close(found["x"], x + 0.25 * (1 - x))
    assert torch.equal(found["y"], far["y"])
    assert torch.equal(far["x"], torch.ones(ROWS, 4))


def test_a_batch_of_many_rows_is_left_to_the_step():
    defect, seen, matcher = prepared("mean")
    assert quick(defect.context, seen, matcher.comparable()).gradients(batch_of(8)) is None


def test_a_loss_that_is_no_sum_over_rows_is_computed_on_all_of_them():
    defect, seen, matcher = prepared("largest")
    made = quick(defect.context, seen, matcher.comparable())
    assert made.rows == 0
    found = made.gradients(batch_of(8))[1]
    assert all(
        torch.equal(a, b)
        for a, b in zip(found, gradients(defect.context.program, batch_of(8)), strict=True)
    )


def test_a_forward_pass_that_is_not_the_steps_is_not_used():
    defect, seen, _ = prepared("branch")
    far = [{**batch_of(1), "x": torch.ones(ROWS, 4)}]
    assert quick(defect.context, seen, far) is None
    near = [{**batch_of(1), "x": torch.zeros(ROWS, 4)}]
    assert quick(defect.context, seen, near) is not None


def test_random_numbers_are_drawn_as_the_step_draws_them():
    defect, seen, matcher = prepared("mean", dropped=0.5)
    made = quick(defect.context, seen, matcher.comparable())
    assert made.rows == 0
    batch = batch_of(8)
    torch.manual_seed(5)
    wanted = gradients(defect.context.program, batch)
    torch.manual_seed(5)
    found = made.gradients(batch)[1]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    again = made.gradients(batch)[1]
    assert not all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_calls_compute_what_evaluate_does():
    defect, _, _ = prepared("mean")
    graph = defect.context.graph
    nodes = needed_nodes(graph, [defect.operand])
    leaves = {one.index: one.data.double() for one in graph.leaves("input", "parameter")}
    constants = {
        n: graph.values[n].data.double()
        for node in nodes
        for n in node.operands
        if graph.values[n].kind == "constant"
    }
    first = evaluate(graph, nodes, leaves)[defect.operand]
    second = Calls(nodes, wide=True).run({**constants, **leaves})[defect.operand]
    assert first.dtype == second.dtype == torch.float64
    assert torch.equal(first, second)


def test_a_draw_whose_probability_is_not_known_is_refused():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return torch.log(nn.functional.dropout(x * self.weight, 0.5)).sum()

    defect = ranum.analyze(Dropped(), torch.rand(3, 4), inputs={"x": (0, 1)}).defects[0]
    graph = defect.context.graph
    with pytest.raises(NotExecutableError, match="probability"):
        Calls(needed_nodes(graph, [graph.loss]), wide=False)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
def test_a_run_goes_on_from_a_snapshot_as_it_did_before(kind):
    defect, _, _ = prepared("mean")
    made = recipe(lambda p: kind(p, lr=0.1), defect.context.program)
    trainer = Trainer(defect.context, defect, made, seed=0)
    with trainer.training():
        trainer.begin()
        for number in range(3):
            assert trainer.step(batch_of(2 ** (number % 3))) == "stepped"
        state = trainer.snapshot()
        ends = []
        for _ in range(2):
            for _ in range(3):
                trainer.step(batch_of(1))
            ends.append([one.clone() for one in trainer.weights.values()])
            trainer.step(batch_of(2))
            trainer.restore(state)
            assert trainer.steps == 3
        trainer.begin()
        trainer.restore(state)
        trainer.step(batch_of(1))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_programs_own_step_has_the_last_word():
    defect, seen, matcher = prepared("mean")
    made = recipe(lambda p: torch.optim.SGD(p, lr=0.1), defect.context.program)
    trainer = Trainer(defect.context, defect, made, seed=0)
    with trainer.training():
        trainer.begin()
        trainer.quick = quick(defect.context, seen, matcher.comparable())
        trainer.quick.factor = 0.0  # wrong on purpose: nothing moves
        before = [one.clone() for one in trainer.weights.values()]
        trainer.step(batch_of(1))
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.weights.values(), strict=True))
        with trainer.in_earnest():
            trainer.step(batch_of(1))
        assert trainer.quick is not None
        assert not all(
            torch.equal(a, b) for a, b in zip(before, trainer.weights.values(), strict=True)
        )


def test_some_rows_stand_for_a_batch_whose_rows_draw_numbers_of_their_own():
    class Sampled(nn.Module):
        """One step of a small restricted Boltzmann machine's contrastive divergence."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(0.1 * torch.randn(6, 10))

        def energy(self, v):
            return -torch.log(1 + torch.exp(v @ self.weight.t())).sum(1).mean()

        def forward(self, v):
            h = (torch.sigmoid(v @ self.weight.t()) > torch.rand(len(v), 6)).float()
            again = (torch.sigmoid(h @ self.weight) > torch.rand(len(v), 10)).float()
            return self.energy(v) - self.energy(again)

    defect = ranum.analyze(
        Sampled(), torch.rand(64, 10), inputs={"v": (0, 1)}, weights="anything"
    ).defects[0]
    context = defect.context
    moved = slots(context)
    wanted = (defect.operand, *context.graph.nodes[defect.node].operands)
    seen = view(context, moved, wanted, ())
    matcher = Matcher(context.program, moved, seen)
    made = quick(context, seen, matcher.comparable())
    assert made.sample == (4, 12, 20, 28, 36, 44, 52, 60)
    batch = {"v": torch.ones(64, 10)}
    torch.manual_seed(1)
    (drawn,) = made.gradients(batch)[1]
    (whole,) = gradients(context.program, batch)
    assert not torch.equal(drawn, whole)
    assert torch.cosine_similarity(drawn.flatten(), whole.flatten(), 0) > 0.7
    assert quick(context, None, matcher.comparable()).sample == ()
