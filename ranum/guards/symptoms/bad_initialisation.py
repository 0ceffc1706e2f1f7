"""RN211: the weights are initialised so that training cannot begin well."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Literal

from ranum.guards.symptoms.base import Symptom, register
from ranum.guards.symptoms.window import START, Window
from ranum.guards.types import Finding, Reading, Severity


@register
@dataclass(frozen=True, slots=True)
class BadInitialisation(Symptom):
    """Before training, the signal explodes or dies on its way through the model.

    What it finds:
        In the first sample: (1) the last module's largest output is `growth` times the largest
        input (or 1, if that is larger), and half of the modules are beyond the square root of
        that; (2) of at least three modules, half put out the same for every example: their
        outputs vary over the batch by less than `variation` of what the input does. And (3) in
        `patience` samples from the start, all units of a weight are alike.

    Why it matters:
        Too wide, and the first gradients are as large as the outputs: the first update destroys
        the net, or Adam spends its steps on undoing the scale. Too narrow, and no layer sees the
        data. Units that are alike get the same gradient and stay alike: the layer is one unit.

    Thresholds and their source:
        growth 100: at most 6 in 34 kinds of healthy runs; eight layers of width 128 with
        weights of deviation 0.5 give 1e5. variation 1e-4: at least 1e-2 in healthy runs, but for
        single layers that start at zero; twelve sigmoids give 1e-8. patience 3: a head that
        starts at zero is different after one update. All ours; SageMaker compares variances of
        layers at 10, TheDeepChecker asks for deviations between 0.5 and 2.

    Known misses:
        Runs resumed from a checkpoint. Widths that are a few times off. Batches of one, and a
        constant input, show no variation. Modules are taken in the order in which they run.

    Remedies:
        A He initialisation in front of rectifiers (variance 2 / inputs), Xavier in front of tanh,
        normalization layers; random weights, not constants.

    Example:
        `nn.init.normal_(weight, std=0.5)` in eight layers; `nn.init.zeros_` in all.

    References:
        He et al.: Delving deep into rectifiers, 2015, https://arxiv.org/abs/1502.01852.
        Mishkin, Matas: All you need is a good init, 2016, https://arxiv.org/abs/1511.06422
    """

    growth: float = 100.0  # of the largest absolute value, input to output
    variation: float = 1e-4  # over the batch, of the input's
    patience: int = 3  # samples from the start, for units that are alike

    code: ClassVar[str] = "RN211"
    severity: ClassVar[Severity] = "warning"
    needs: ClassVar[Literal["step", "sample"]] = "sample"

    def __post_init__(self) -> None:
        self.require("growth", above=1.0)
        self.require("variation", to=1.0)
        self.require_count("patience", to=5)

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        reading = window.latest
        if window.count == 1 and reading.step <= START:
            return self._exploding(window, reading) or self._dying(window, reading)
        samples = window.samples
        if len(samples) != self.patience or samples[0].step > START:
            return None
        alike = [
            name
            for name in reading.alike
            if name in reading.grad_norms and all(name in sample.alike for sample in samples)
        ]
        if not alike:
            return None
        others = f" and of {len(alike) - 1} other weights" if len(alike) > 1 else ""
        return self.find(
            window,
            f"All units of {alike[0]}{others} are still alike at step {reading.step}: they get "
            "the same gradients, so they will stay so.",
            where=alike[0],
            weights=len(alike),
        )

    def _exploding(self, window: Window, reading: Reading) -> Finding | None:
        names, given = list(reading.activations), reading.inputs
        if not names:
            return None
        sizes = [one.size for one in reading.activations.values()]
        is_real = given is not None and (given.mean or given.deviation)
        first = max(abs(given.lower), abs(given.upper)) if given and is_real else sizes[0]
        growth = sizes[-1] / max(first, 1.0)
        half = median(sizes) / max(first, 1.0)
        if not (growth >= self.growth and half >= math.sqrt(self.growth)):
            return None
        return self.find(
            window,
            f"Untrained, the model turns inputs of up to {first:.3g} into outputs of up to "
            f"{sizes[-1]:.3g}: the initialisation is too wide.",
            where=names[-1],
            growth=growth,
        )

    def _dying(self, window: Window, reading: Reading) -> Finding | None:
        spreads = {
            name: one.spread for name, one in reading.activations.items() if one.spread is not None
        }
        given = reading.inputs
        is_real = given is not None and (given.mean or given.deviation)
        first = given.spread if given and is_real else next(iter(spreads.values()), None)
        if not first:
            return None
        same = [name for name, spread in spreads.items() if spread < self.variation * first]
        if len(same) < 3 or 2 * len(same) < len(spreads):
            return None
        return self.find(
            window,
            f"Untrained, the outputs of {same[0]} and {len(same) - 1} other modules are the same "
            "for every example: the initialisation lets the signal die.",
            where=same[0],
            modules=len(same),
        )
