"""Peers' published detection rules, written again from their thresholds.

Sources: AutoTrainer (Zhang et al., ICSE 2021, and its shipped parameters; DeepFD's are the same),
Amazon SageMaker Debugger's list of built-in rules with their defaults, TheDeepChecker (Ben Braiek,
Khomh, 2022), Lightning 2.6's `SpikeDetection`, `EarlyStopping(check_finite)` and `detect_anomaly`.
What a publication leaves open is said with the rule. SageMaker's rules are closed: only their
published descriptions and defaults were used.

Rules over tensors are asked at every look (each fifth step), rules over the loss in every step,
rules over accuracy or epochs once per `EPOCH` steps, and only on tasks with classes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.symptoms.task import Task

EPOCH = 20
"""Steps that count as an epoch for rules that judge epochs."""

RECTIFIERS = (nn.ReLU, nn.ReLU6)


class Sight:
    """What rules may look at: the step's tensors, and series of the past."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.step = -1
        self.loss = math.nan
        self.validation: float | None = None
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.looks = False
        self.ends_epoch = False
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self.gradients: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.updates: dict[str, float] = {}
        self._before: dict[str, Tensor] = {}
        self._epoch: list[float] = []

    @contextmanager
    def watch(self, looks: bool) -> Iterator[None]:
        """Keeps inputs and outputs of the leaf modules that run inside, if `looks`."""
        self.inputs, self.outputs, self.modules = {}, {}, {}
        handles = []
        if looks:
            for name, module in self.task.model.named_modules():
                if not list(module.children()):
                    handles.append(module.register_forward_hook(self._hook(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.is_floating_point():
                self.outputs[name] = first.detach()
                self.modules[name] = module
                if args and isinstance(args[0], Tensor):
                    self.inputs[name] = args[0].detach()

        return keep

    def see(self, step: int, loss: float, validation: float | None, *, looks: bool) -> None:
        """Takes up a step after its backward pass and before its update."""
        self.step, self.loss, self.validation, self.looks = step, loss, validation, looks
        self.losses.append(loss)
        accuracy = self.task.seen.accuracy
        self.ends_epoch = step % EPOCH == EPOCH - 1
        if accuracy is not None:
            self._epoch.append(accuracy)
        if self.ends_epoch and self._epoch:
            self.accuracies.append(sum(self._epoch) / len(self._epoch))
            self._epoch = []
        named = list(self.task.model.named_parameters())
        self.updates = {}
        if self._before:
            for name, weight in named:
                if name in self._before and weight.ndim > 1:
                    old = self._before[name]
                    size = float(old.abs().mean())
                    change = float((weight.detach() - old).abs().mean())
                    self.updates[name] = change / (size + 1e-9)
            self._before = {}
        if looks:
            self.gradients = {
                name: weight.grad.detach() for name, weight in named if weight.grad is not None
            }
            self.weights = {name: weight.detach() for name, weight in named}
            self._before = {name: weight.detach().clone() for name, weight in named}

    @property
    def kernels(self) -> dict[str, Tensor]:
        """Gradients of matrices and kernels, in the model's order."""
        return {name: grad for name, grad in self.gradients.items() if grad.ndim > 1}

    def units(self, name: str) -> Tensor:
        """A module's output as samples times units, channels being units after convolutions."""
        output = self.outputs[name]
        if output.ndim == 4:
            return output.movedim(1, -1).flatten(0, -2)
        return output.reshape(-1, output.shape[-1]) if output.ndim else output.reshape(1, 1)


@dataclass(slots=True)
class Rule:
    """One rule of one tool.

    Attributes:
        tool: Its name.
        name: The rule's name there.
        codes: Ranum's symptoms that it stands for.
        when: "look", "step" or "epoch".
        check: True if it speaks up.
        asked: Times it was asked so far.
    """

    tool: str
    name: str
    codes: tuple[str, ...]
    when: str
    check: Callable[[Sight], bool]
    asked: int = field(default=0)

    def fires(self, sight: Sight) -> bool:
        """Asks the rule, if this step is one of its own."""
        if self.when == "look" and not sight.looks:
            return False
        if self.when == "epoch" and not sight.ends_epoch:
            return False
        if self.when == "update" and not sight.updates:
            return False
        if self.when == "validation" and sight.validation is None:
            return False
        self.asked += 1
        return bool(self.check(sight))


def mean_abs(tensor: Tensor) -> float:
    """Mean absolute value; NaN if an element is."""
    return float(tensor.float().abs().mean()) if tensor.numel() else 0.0


def is_bad(tensors: dict[str, Tensor]) -> bool:
    """True if an element is not finite."""
    return any(not bool(tensor.isfinite().all()) for tensor in tensors.values())


def rules(steps: int) -> tuple[Rule, ...]:
    """Fresh rules for a run that is planned to take so many steps."""
    return (*autotrainer(steps), *sagemaker(), *deepchecker(), *lightning())


# --- AutoTrainer ---------------------------------------------------------------------------


def autotrainer(steps: int) -> list[Rule]:
    """Seven rules; those over epochs after 30 % of the run, as in its parameters."""
    planned = steps / EPOCH

    def ends(sight: Sight) -> tuple[float, float] | None:
        norms = [float(grad.norm()) for grad in sight.kernels.values()]
        return (norms[0], norms[-1]) if len(norms) > 1 else None

    def nan(sight: Sight) -> bool:
        return (
            not math.isfinite(sight.loss)
            or sight.loss >= 1e3
            or (sight.looks and (is_bad(sight.gradients) or is_bad(sight.weights)))
        )

    def vanishing(sight: Sight) -> bool:
        found = ends(sight)
        return found is not None and found[0] < 1e-4 and found[0] < 1e-3 * found[1]

    def exploding(sight: Sight) -> bool:
        found = ends(sight)
        return is_bad(sight.gradients) or (
            found is not None and found[1] > 0 and found[0] / found[1] > 70
        )

    def dying(sight: Sight) -> bool:
        count = sum(grad.numel() for grad in sight.gradients.values())
        zero = sum(int((grad == 0).sum()) for grad in sight.gradients.values())
        return count > 0 and zero / count >= 0.7

    def is_late(sight: Sight) -> bool:
        return len(sight.accuracies) >= max(3.0, 0.3 * planned)

    def oscillating(sight: Sight) -> bool:
        series = sight.accuracies
        if not is_late(sight):
            return False
        highs = [b for a, b, c in _triples(series) if b > a and b > c]
        lows = [b for a, b, c in _triples(series) if b < a and b < c]
        wide = sum(high - low >= 0.03 for high, low in zip(highs, lows, strict=False))
        return wide >= 0.2 * len(series)

    def slow(sight: Sight) -> bool:
        return is_late(sight) and max(b - a for a, b in pairwise(sight.accuracies)) < 0.01

    def abnormal(sight: Sight) -> bool:
        hidden = list(sight.outputs.values())[:-1]
        return any(mean_abs(output) >= 10 for output in hidden)

    tool = "AutoTrainer"
    return [
        Rule(tool, "NaN loss", ("RN201", "RN202", "RN208"), "step", nan),
        Rule(tool, "vanishing gradient", ("RN203",), "look", vanishing),
        Rule(tool, "exploding gradient", ("RN202",), "look", exploding),
        Rule(tool, "dying ReLU", ("RN204",), "look", dying),
        Rule(tool, "oscillating loss", ("RN205",), "epoch", oscillating),
        Rule(tool, "slow convergence", ("RN206", "RN210", "RN212"), "epoch", slow),
        Rule(tool, "abnormal data", ("RN301",), "look", abnormal),
    ]


def _triples(series: list[float]) -> Iterator[tuple[float, float, float]]:
    return zip(series, series[1:], series[2:], strict=False)


# --- SageMaker -----------------------------------------------------------------------------


def sagemaker() -> list[Rule]:
    """Eleven of its rules; the others ask for what a plain run does not have.

    PoorWeightInitialization is taken as (variance ratio or gradient spread) and a loss that has
    not fallen for five steps, within the first ten looks.
    """
    looked = 0
    stuck: dict[str, tuple[Tensor, int]] = {}
    counts: dict[int, int] = {}
    pixels: list[float] = []

    def dead(sight: Sight) -> bool:
        for name, module in sight.modules.items():
            if isinstance(module, RECTIFIERS):
                active = (sight.units(name) > 0).float().mean(0)
                if float((active < 0.01).float().mean()) > 0.5:
                    return True
        return False

    def exploding(sight: Sight) -> bool:
        return (
            not math.isfinite(sight.loss)
            or is_bad(sight.gradients)
            or is_bad(sight.weights)
            or is_bad(sight.outputs)
        )

    def initialisation(sight: Sight) -> bool:
        nonlocal looked
        looked += 1
        if looked > 10 or len(sight.losses) < 6:
            return False
        if min(sight.losses[-5:]) < sight.losses[-6]:
            return False
        parts = [float(tensor.float().var()) for tensor in sight.inputs.values()]
        parts = [part for part in parts if math.isfinite(part) and part > 0]
        ratio = max(parts) / min(parts) if parts else 1.0
        flat = [grad.flatten().float() for grad in sight.kernels.values()]
        if not flat or is_bad(sight.gradients):
            return ratio > 10
        every = torch.cat(flat)[:100_000]
        spread = float(torch.quantile(every, 0.95) - torch.quantile(every, 0.05))
        return ratio > 10 or spread < 1e-3

    def saturated(sight: Sight) -> bool:
        bounds = {nn.Tanh: (-9.4999, 9.4999), nn.Sigmoid: (-23.0, 16.99999)}
        for name, module in sight.modules.items():
            if type(module) in bounds and name in sight.inputs:
                low, high = bounds[type(module)]
                given = sight.inputs[name]
                units = given.reshape(-1, given.shape[-1])
                inside = ((units > low) & (units < high)).float().mean(0)
                if float((inside < 0.01).float().mean()) > 0.5:
                    return True
        return False

    def vanishing(sight: Sight) -> bool:
        return any(mean_abs(grad) < 1e-7 for grad in sight.gradients.values())

    def update_ratio(sight: Sight) -> bool:
        return any(ratio > 10 or ratio < 1e-8 for ratio in sight.updates.values())

    def all_zero(sight: Sight) -> bool:
        return any(bool((grad == 0).all()) for grad in sight.gradients.values())

    def not_decreasing(sight: Sight) -> bool:
        return len(sight.losses) > 10 and not sight.loss < sight.losses[-11]

    def overfit(sight: Sight) -> bool:
        recent = sight.losses[-EPOCH:]
        train = sum(recent) / len(recent)
        return sight.validation is not None and (sight.validation - train) / abs(train) > 0.1

    def unchanged(sight: Sight) -> bool:
        found = False
        for name, weight in sight.weights.items():
            old, times = stuck.get(name, (weight, -1))
            same = torch.allclose(weight, old, rtol=1e-5, atol=1e-8)
            stuck[name] = (weight.clone(), times + 1 if same else 0)
            found = found or stuck[name][1] >= 2
        return found

    def imbalance(sight: Sight) -> bool:
        seen = sight.task.seen
        if not seen.classes or seen.labels is None:
            return False
        for label in seen.labels.tolist():
            counts[label] = counts.get(label, 0) + 1
        total = sum(counts.values())
        return total > 500 and max(counts.values()) > 10 * min(counts.values())

    def images(sight: Sight) -> bool:
        given = sight.task.seen.inputs
        if given is None or given.ndim != 4:
            return False
        pixels.extend(given.flatten(1).mean(1).tolist())
        return len(pixels) >= 500 and abs(sum(pixels) / len(pixels)) > 0.2

    tool = "SageMaker"
    return [
        Rule(tool, "DeadRelu", ("RN204",), "look", dead),
        Rule(tool, "ExplodingTensor", ("RN201",), "look", exploding),
        Rule(tool, "PoorWeightInitialization", ("RN211",), "look", initialisation),
        Rule(tool, "SaturatedActivation", ("RN209",), "look", saturated),
        Rule(tool, "VanishingGradient", ("RN203",), "look", vanishing),
        Rule(tool, "WeightUpdateRatio", ("RN212", "RN213"), "update", update_ratio),
        Rule(tool, "AllZero", ("RN204", "RN210", "RN211"), "look", all_zero),
        Rule(tool, "LossNotDecreasing", ("RN205", "RN206", "RN208"), "step", not_decreasing),
        Rule(tool, "Overfit", ("RN215",), "validation", overfit),
        Rule(tool, "UnchangedTensor", ("RN210", "RN212"), "look", unchanged),
        Rule(tool, "ClassImbalance", ("RN302",), "step", imbalance),
        Rule(tool, "CheckInputImages", ("RN301",), "step", images),
    ]


# --- TheDeepChecker ------------------------------------------------------------------------


def deepchecker() -> list[Rule]:
    """Eleven of its checks. Series of ratios are over looks."""
    sizes: dict[str, deque[float]] = {}
    outputs: dict[str, deque[Tensor]] = {}
    updates: deque[dict[str, float]] = deque(maxlen=10)
    measured = -1

    def ratios(sight: Sight) -> Iterator[list[float]]:
        nonlocal measured
        if measured != sight.step:
            measured = sight.step
            for name, grad in sight.kernels.items():
                sizes.setdefault(name, deque(maxlen=5)).append(mean_abs(grad))
        for series in sizes.values():
            if len(series) == 5 and min(series) > 0:
                yield [b / a for a, b in pairwise(series)]

    def vanishing(sight: Sight) -> bool:
        found = any(max(each) <= 0.5 for each in ratios(sight))
        return found or any(mean_abs(grad) < 1e-6 for grad in sight.kernels.values())

    def exploding(sight: Sight) -> bool:
        found = any(min(each) >= 2 for each in ratios(sight))
        return found or any(mean_abs(grad) > 1e6 for grad in sight.kernels.values())

    def dead(sight: Sight) -> bool:
        found = False
        for name, module in sight.modules.items():
            if isinstance(module, RECTIFIERS):
                buffer = outputs.setdefault(name, deque(maxlen=10))
                buffer.append(sight.units(name)[:256].abs())
                whole = torch.cat(list(buffer))
                large = whole.kthvalue(max(1, int(0.95 * len(whole))), 0).values
                found = found or float((large < 1e-5).float().mean()) > 0.5
        return found

    def saturated(sight: Sight) -> bool:
        ranges = {nn.Tanh: (-1.0, 1.0), nn.Sigmoid: (0.0, 1.0)}
        for name, module in sight.modules.items():
            if type(module) in ranges:
                low, high = ranges[type(module)]
                units = (sight.units(name) - (low + high) / 2).abs() * 2 / (high - low)
                if float((units.mean(0) > 0.85).float().mean()) > 0.5:
                    return True
        return False

    def activation_range(sight: Sight) -> bool:
        for name, module in sight.modules.items():
            if not isinstance(module, (*RECTIFIERS, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU)):
                continue
            deviation = float(sight.outputs[name].float().std())
            if not 0.5 <= deviation <= 2:
                return True
        return False

    def fluctuating(sight: Sight) -> bool:
        last = sight.losses[-50:]
        if len(last) < 50:
            return False
        turns = sum((b - a) * (c - b) < 0 for a, b, c in _triples(last))
        return (len(last) - turns) / len(last) < 0.5

    def not_decreasing(sight: Sight) -> bool:
        last = sight.losses[-6:]
        return len(last) == 6 and all(a == 0 or (a - b) / abs(a) < 0.05 for a, b in pairwise(last))

    def update(sight: Sight) -> list[float]:
        if not updates or updates[-1] is not sight.updates:
            updates.append(sight.updates)
        if len(updates) < 10:
            return []
        return [
            sum(math.log10(each[name] + 1e-16) for each in updates) / 10 for name in sight.updates
        ]

    def wrong_start(sight: Sight) -> bool:
        classes = sight.task.seen.classes
        if sight.step or not classes:
            return False
        usual = math.log(classes)
        return not abs(sight.loss - usual) / usual < 1.0

    def weights(sight: Sight) -> bool:
        for weight in sight.weights.values():
            if weight.ndim > 1:
                dead_share = float((weight.abs() < 1e-5).float().mean())
                if dead_share > 0.95 or float((weight < 0).float().mean()) > 0.95:
                    return True
        return False

    def nan(sight: Sight) -> bool:
        return not math.isfinite(sight.loss) or (sight.looks and is_bad(sight.weights))

    tool = "TheDeepChecker"
    return [
        Rule(tool, "NaN", ("RN201",), "step", nan),
        Rule(tool, "vanishing gradient", ("RN203",), "look", vanishing),
        Rule(tool, "exploding gradient", ("RN202",), "look", exploding),
        Rule(tool, "dead units", ("RN204",), "look", dead),
        Rule(tool, "saturation", ("RN209",), "look", saturated),
        Rule(tool, "activation range", ("RN211",), "look", activation_range),
        Rule(tool, "fluctuating loss", ("RN205",), "step", fluctuating),
        Rule(tool, "loss not decreasing", ("RN206", "RN210"), "step", not_decreasing),
        Rule(tool, "fast updates", ("RN213",), "update", lambda s: any(r > -1 for r in update(s))),
        Rule(
            tool,
            "slow or no updates",
            ("RN212", "RN210"),
            "update",
            lambda s: any(r < -4 for r in update(s)),
        ),
        Rule(tool, "initial loss", ("RN211",), "step", wrong_start),
        Rule(tool, "dead or negative weights", ("RN211",), "look", weights),
    ]


# --- Lightning -----------------------------------------------------------------------------


def lightning() -> list[Rule]:
    """Its spike detection, finiteness of the monitored loss, and of the backward pass."""

    def spike(sight: Sight) -> bool:
        if not math.isfinite(sight.loss):
            return True
        if len(sight.losses) < 2 or not sight.loss > sight.losses[-2]:
            return False
        past = [loss for loss in sight.losses[-11:-1] if math.isfinite(loss)]
        if not past:
            return False
        mean = sum(past) / len(past)
        return abs(sight.loss - mean) >= 2 * abs(mean)

    def finite(sight: Sight) -> bool:
        return sight.validation is not None and not math.isfinite(sight.validation)

    def anomaly(sight: Sight) -> bool:
        return any(bool(grad.isnan().any()) for grad in sight.gradients.values())

    tool = "Lightning"
    return [
        Rule(tool, "SpikeDetection", ("RN207", "RN202", "RN208"), "step", spike),
        Rule(
            tool,
            "SpikeDetection, finite",
            ("RN201",),
            "step",
            lambda s: not math.isfinite(s.loss),
        ),
        Rule(tool, "EarlyStopping(check_finite)", ("RN201",), "validation", finite),
        Rule(tool, "detect_anomaly", ("RN201",), "look", anomaly),
    ]
