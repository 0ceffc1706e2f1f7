"""What one case is: a program, its documented ranges, and the truth about its operators."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Set:
    """What a witness makes of a weight or an input.

    Attributes:
        value: The number that elements are set to.
        first: Only those with index 0 along the last dimension; the others stay.
    """

    value: float
    first: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Flaw:
    """One truly defective operator of a program, with its proof.

    It is named by what it computes and by the text of its line, never by a position in a graph.

    Attributes:
        op: Canonical operator: "log", "div", "exp", "sqrt", "sum", "mean".
        text: Part of its expression in the program's source.
        why: The values that make it fail.
        witness: Weights and inputs, inside the documented ranges, for which it fails.
        is_target: True for the defect the case was published for.
        gradient: True if only the gradient fails.
        compiled: True if it fails only once TensorFlow has optimised the graph.
        is_required: False where reporting it is right and leaving it out is no miss; `why`
            says the reason.
    """

    op: str
    text: str
    why: str
    witness: Mapping[str, Set] = field(default_factory=dict)
    is_target: bool = False
    gradient: bool = False
    compiled: bool = False
    is_required: bool = True

    def target(self) -> Flaw:
        """The same, as what a case was published for."""
        return replace(self, is_target=True)


@dataclass(frozen=True, slots=True)
class Training:
    """How the program trains: optimizer, learning rate, batch size (None: all there is)."""

    optimizer: str
    rate: float
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A program ready to run, one step of it.

    Attributes:
        target: Called with the inputs; returns the loss. A module or a function.
        inputs: One example batch, by argument name, in order.
        ranges: Documented range of each float input.
        weights: Trained tensors or variables by name.
        weight_ranges: Documented ranges of weights that do not move freely.
    """

    target: Any
    inputs: Mapping[str, Any]
    ranges: Mapping[str, tuple[float, float]]
    weights: Mapping[str, Any]
    weight_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """One of the 79.

    Attributes:
        name: As in the study: "28a".
        framework: "torch" or "tensorflow".
        build: From a seed to the program.
        flaws: Every operator of it that is truly defective.
        training: How it trains.
        outside: Weight ranges, wider than documented, that the published defect needs.
        beyond: Flaws that are there with the ranges `outside` only.
    """

    name: str
    framework: Literal["torch", "tensorflow"]
    build: Callable[[int], Built]
    flaws: tuple[Flaw, ...]
    training: Training
    outside: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    beyond: tuple[Flaw, ...] = ()

    @property
    def formula(self) -> str:
        """The builder's docstring."""
        return (self.build.__doc__ or "").strip()

    @property
    def targets(self) -> tuple[Flaw, ...]:
        """The published defects."""
        return tuple(flaw for flaw in self.flaws + self.beyond if flaw.is_target)


CASES: dict[str, Case] = {}

_FILES = {
    "torch": ("logistic", "softmax", "boltzmann", "small"),
    "tensorflow": (
        "regression",
        "convolution",
        "perceptron",
        "unshifted",
        "unet",
        "autoencoder",
        "scaling",
        "planning",
        "transformer",
        "adversarial",
    ),
}


def case(
    name: str,
    *flaws: Flaw,
    training: Training,
    outside: Mapping[str, tuple[float, float]] | None = None,
    beyond: tuple[Flaw, ...] = (),
) -> Callable[[Callable[[int], Built]], Callable[[int], Built]]:
    """Registers a builder as a case; its package says the framework."""

    def register(build: Callable[[int], Built]) -> Callable[[int], Built]:
        if name in CASES:
            raise ValueError(f"case {name} exists already.")
        if not build.__doc__:
            raise ValueError(f"case {name} has no docstring; it is the program's formula.")
        framework: Any = "torch" if ".in_torch." in build.__module__ else "tensorflow"
        CASES[name] = Case(name, framework, build, flaws, training, outside or {}, beyond)
        return build

    return register


def load(framework: str | None = None) -> dict[str, Case]:
    """All cases, or those of one framework, in the study's order; imports the framework."""
    for one, files in _FILES.items():
        if framework in (None, one):
            for file in files:
                importlib.import_module(f"benchmarks.grist.in_{one}.{file}")
    chosen = {n: c for n, c in CASES.items() if framework in (None, c.framework)}
    return dict(sorted(chosen.items(), key=lambda item: _order(item[0])))


def _order(name: str) -> tuple[int, str]:
    number = re.match(r"\d+", name)
    assert number is not None
    return int(number.group()), name[number.end() :]
