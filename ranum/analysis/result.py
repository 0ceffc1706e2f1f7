"""What an analysis says: defects and bounds, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ranum.analysis.interval import Interval
from ranum.analysis.ranges import WeightLevel
from ranum.errors import ArgumentError
from ranum.source import Source

if TYPE_CHECKING:
    from ranum.analysis.capture.program import Program
    from ranum.analysis.graph import Graph

Severity = Literal["possible", "certain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Concrete inputs and weights, inside the stated ranges, that make an operator fail.

    Attributes:
        inputs: Tensors by input name; only those that were changed.
        weights: Tensors by parameter name; only those that were changed.
        operand: Smallest and largest element of the operator's operand when it failed.
        outcome: What the operator gave when the user's own code was run again: "-Inf",
            "Inf", "NaN".
        loss: What the loss became in that run.
        evaluations: Number of runs of the step that the search took.
        seed: Seed of the search.
        defect: What it proves.
    """

    inputs: Mapping[str, Any] = field(repr=False)
    weights: Mapping[str, Any] = field(repr=False)
    operand: tuple[float, float]
    outcome: str
    loss: float | None
    evaluations: int
    seed: int
    defect: Defect | None = field(default=None, repr=False, compare=False)

    def save_test(self, path: str | Path, make: str | None = None) -> Path:
        """Writes a pytest file that fails today, and passes once the operator is safe.

        It needs torch and the user's own code, and holds the weights and the batch; large ones
        lie in a file of the same name beside it, ending in ".pt". The file is run once here.

        Args:
            path: Where to; must end in ".py", and begin with "test_" for pytest to find it.
            make: "module:function" of a function that returns what was analysed. By default a
                function is imported, and a module is made by its class again, with arguments
                that are read off attributes of the same names.

        Raises:
            ArgumentError: If the path is no Python file, the target cannot be made again, or
                the file that was written does not fail.
        """
        from ranum.analysis.confirm.saved import save_test

        return save_test(self, path, make)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; tensors are shown by shape and extremes."""
        return {
            "inputs": {name: _summary(tensor) for name, tensor in self.inputs.items()},
            "weights": {name: _summary(tensor) for name, tensor in self.weights.items()},
            "operand": list(self.operand),
            "outcome": self.outcome,
            "loss": self.loss,
            "evaluations": self.evaluations,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWitness:
    """Training data, inside the stated ranges, on which ordinary training runs into a defect.

    Attributes:
        batches: The distinct batches: tensors by input name, those that differ from the example.
        order: For each step, the position of its batch. The last step is the one that fails.
        optimizer: In words: "SGD(lr=0.1)".
        operand: Smallest and largest element of the operator's operand when it failed.
        outcome: What the operator gave: "-Inf", "Inf", "NaN", "gradient not finite".
        loss: What the loss became in that step.
        evaluations: Number of runs of the graph that the search took.
        steps_tried: Number of training steps that the search took.
        seed: Of the run's random numbers, set once before the first step.
        start: Initial values of the parameters that were declared `free`, by name.
        defect: What it proves.
    """

    batches: tuple[Mapping[str, Any], ...] = field(repr=False)
    order: tuple[int, ...] = field(repr=False)
    optimizer: str
    operand: tuple[float, float]
    outcome: str
    loss: float | None
    evaluations: int
    steps_tried: int
    seed: int
    start: Mapping[str, Any] = field(default_factory=dict, repr=False)
    recipe: Any = field(default=None, repr=False, compare=False)
    defect: Defect | None = field(default=None, repr=False, compare=False)

    @property
    def steps(self) -> int:
        """Steps that the optimizer takes before the one that fails."""
        return len(self.order) - 1

    def save(self, path: str | Path) -> Path:
        """Writes the data set to a file for `torch.load(path, weights_only=True)`.

        It holds a dict: "batches", a list of dicts by input name, complete; "order"; "optimizer"
        and "seed".

        Args:
            path: Where to; must end in ".pt".

        Raises:
            ArgumentError: If the path has another ending.
        """
        from ranum.analysis.confirm.training.saved import save

        return save(self, path)

    def save_script(
        self, path: str | Path, make: str | None = None, optimizer: str | None = None
    ) -> Path:
        """Writes a script that trains into the failure, and says so; it is run once here.

        It needs torch and the user's own code, and ends with exit code 1 at the step that fails,
        with 0 once the operator is safe.

        Args:
            path: Where to; must end in ".py". The data lie beside it, ending in ".pt".
            make: "module:function" of a function that returns what was analysed, as for
                `Witness.save_test`.
            optimizer: "module:function" of a function from parameters to the optimizer, for one
                that cannot be written down from its settings.

        Raises:
            ArgumentError: If the path is no Python file, the target or the optimizer cannot be
                made again, or the script that was written does not fail.
        """
        from ranum.analysis.confirm.training.saved import save_script

        return save_script(self, path, make, optimizer)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; tensors are shown by shape and extremes."""
        return {
            "batches": [
                {name: _summary(tensor) for name, tensor in batch.items()} for batch in self.batches
            ],
            "steps": self.steps,
            "optimizer": self.optimizer,
            "operand": list(self.operand),
            "outcome": self.outcome,
            "loss": self.loss,
            "evaluations": self.evaluations,
            "steps_tried": self.steps_tried,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a search for a proof did.

    Attributes:
        runs: Runs of the graph or the step.
        steps: Training steps among them.
        seconds: Wall clock.
        tried: What was tried, in order, in words.
        limits: What stood in the way, a sentence each: no gradient, integer inputs, random
            numbers.
    """

    runs: int = 0
    steps: int = 0
    seconds: float = 0.0
    tried: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            runs=self.runs + other.runs,
            steps=self.steps + other.steps,
            seconds=self.seconds + other.seconds,
            tried=tuple(dict.fromkeys(self.tried + other.tried)),
            limits=tuple(dict.fromkeys(self.limits + other.limits)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "runs": self.runs,
            "steps": self.steps,
            "seconds": self.seconds,
            "tried": list(self.tried),
            "limits": list(self.limits),
        }

    def __str__(self) -> str:
        steps = f", {self.steps} training steps" if self.steps else ""
        text = f"{self.runs} runs{steps} in {self.seconds:.1f} s: {', '.join(self.tried)}"
        return ". ".join((text, *(limit.rstrip(".") for limit in self.limits)))


def _summary(tensor: Any) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "lower": float(tensor.min()) if tensor.numel() else None,
        "upper": float(tensor.max()) if tensor.numel() else None,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What an analysis was made from.

    Attributes:
        program: The step, which can be run again.
        graph: The recorded step.
        start: Interval of every leaf, by value number.
        intervals: Interval of every value.
        varying: Names and patterns of the inputs that were given a range.
    """

    program: Program
    graph: Graph
    start: Mapping[int, Interval]
    intervals: Mapping[int, Interval]
    varying: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """An operator that can produce NaN or Inf, or lose its gradient.

    Attributes:
        code: Stable code, "RN1xx".
        rule: Name of the rule's class, "LogDomain".
        op: Canonical operator name.
        node: Index of the operator in the graph.
        operand: Value number of the operand to blame.
        source: The user's expression.
        bounds: Interval of the blamed operand.
        bad: The values that do harm, in words: "x <= 0".
        outcome: What comes out: "-Inf at 0, NaN below".
        consequence: What it becomes in the loss and the gradients, in one sentence.
        remedy: What a developer would write instead, in one sentence.
        gradient_only: True if the value stays finite and only its gradient does not.
        severity: "possible" by the bounds, "certain" once a witness was found and re-run.
        witness: The proof of a certain defect: inputs and weights.
        training: The proof that training gets there.
        effort: What the searches for proofs did; None if there was none.
        safe: Range of the operand in which the operator is harmless; None if there is none.
        reach: The narrowest weights with which it occurs: "initial" (as they were), "envelope"
            (within ten times that) or "anything" (only beyond).
        growth: To how many times their initial size weights must grow for it to occur, where
            it does not occur with the initial ones; a weight that starts below 0.1 counts as
            0.1. Up to some 7 % above the least such growth.
        context: The analysis it comes from; what `confirm` and `fix` work on.
    """

    code: str
    rule: str
    op: str
    node: int
    operand: int
    source: Source
    bounds: Interval
    bad: str
    outcome: str
    consequence: str = ""
    remedy: str = ""
    gradient_only: bool = False
    severity: Severity = "possible"
    witness: Witness | None = None
    training: TrainingWitness | None = None
    effort: Effort | None = None
    safe: tuple[float, float] | None = None
    reach: WeightLevel = "initial"
    growth: float | None = None
    context: Context | None = field(default=None, repr=False, compare=False)

    @property
    def times(self) -> str:
        """The growth, two digits; "" where the weights need not grow."""
        if self.growth is None or self.growth <= 1.0:
            return ""
        return f"{self.growth:.2g}".replace("e+0", "e").replace("e+", "e")

    @property
    def drift(self) -> str:
        """How far training must move the weights before it occurs, in words."""
        if self.growth is None:
            return "with the weights as initialised"
        if not self.times:
            return "with other weights of their initial size"
        only = "only " if self.reach == "anything" else ""
        return f"{only}once weights grow to about {self.times} times their initial size"

    @property
    def proof(self) -> str:
        """How far it is proved.

        "certain in training" if training data were found, or a batch that fails with the weights
        as they are; "certain for some weights"; "possible, not shown" after a search without
        result; "possible" without a search.
        """
        if self.training is not None or (self.witness is not None and not self.witness.weights):
            return "certain in training"
        if self.witness is not None:
            return "certain for some weights"
        return "possible" if self.effort is None else "possible, not shown"

    @property
    def prospect(self) -> str:
        """What that means for the next run, in a sentence; "" if nothing was tried."""
        steps = 0 if self.training is None else self.training.steps
        if self.proof == "certain in training":
            if not steps:
                return "your next run fails as soon as it meets such a batch"
            plural = "" if steps == 1 else "s"
            return f"your next run can reach this in {steps} step{plural}"
        if self.proof == "certain for some weights":
            return "it fails once training has made the weights so"
        return f"possible on paper, not shown in {self.effort}" if self.effort else ""

    def certain(self, witness: Witness) -> Defect:
        """The same defect with its proof."""
        return replace(self, severity="certain", witness=witness)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.code,
            "rule": self.rule,
            "op": self.op,
            "node": self.node,
            "source": self.source.to_dict(),
            "bounds": self.bounds.to_dict(),
            "bad": self.bad,
            "outcome": self.outcome,
            "consequence": self.consequence,
            "remedy": self.remedy,
            "gradient_only": self.gradient_only,
            "reach": self.reach,
            "growth": self.growth,
            "severity": self.severity,
            "proof": self.proof,
            "witness": None if self.witness is None else self.witness.to_dict(),
            "training": None if self.training is None else self.training.to_dict(),
            "effort": None if self.effort is None else self.effort.to_dict(),
        }

    def __str__(self) -> str:
        return (
            f"{self.code} {self.proof}: {self.op} at {self.source}: operand in {self.bounds}, "
            f"fails for {self.bad}: {self.outcome} ({self.drift})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A spelling that loses precision; nothing becomes NaN or Inf by it.

    Attributes:
        code: Stable code, "RN1xx".
        rule: Name of the rule's class, "LogSpelling".
        op: Canonical operator name.
        node: Index of the operator in the graph.
        source: The user's expression.
        loss: What is lost, in words.
        rewrite: What to write instead.
    """

    code: str
    rule: str
    op: str
    node: int
    source: Source
    loss: str
    rewrite: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.code,
            "rule": self.rule,
            "op": self.op,
            "node": self.node,
            "source": self.source.to_dict(),
            "loss": self.loss,
            "rewrite": self.rewrite,
        }

    def __str__(self) -> str:
        return f"{self.code} at {self.source}: {self.loss}; write {self.rewrite}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """An operator that could not be bounded: its result was taken as [-inf, inf]."""

    op: str
    count: int
    source: Source

    def __str__(self) -> str:
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.op}{times}, first at {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """The result of `ranum.analyze`.

    Attributes:
        graph: The recorded step.
        intervals: Interval by value number.
        bounds: Interval by module path: of the module's (last) output in the step. "loss"
            holds the loss.
        observed: Extremes seen in the recorded step, by the same names as `bounds`.
        defects: All defects, certain ones first, then in execution order.
        advice: Spellings that lose precision, with what to write instead. These are no defects.
        unknowns: Operators that could not be bounded. If there are any, the analysis is
            incomplete.
        notes: Other limits of the analysis, a sentence each (branches not taken, ...).
        ranges: Where the analysis started from: interval by input and parameter name.
        weights: The weights asked for, in words: "up to 10 times their initial size".
        capture_seconds: CPU time of recording the step.
        analysis_seconds: CPU time of the analysis itself.
        placing_seconds: What of it was spent on the level of weights at which each defect
            occurs.
        context: The step that was analysed and its ranges.
    """

    graph: Graph
    intervals: Mapping[int, Interval] = field(repr=False)
    bounds: Mapping[str, Interval]
    observed: Mapping[str, tuple[float, float]]
    defects: tuple[Defect, ...]
    advice: tuple[Advice, ...] = ()
    unknowns: tuple[Unknown, ...] = ()
    notes: tuple[str, ...] = ()
    ranges: Mapping[str, Interval] = field(default_factory=dict)
    weights: str = "up to 10 times their initial size"
    capture_seconds: float = 0.0
    analysis_seconds: float = 0.0
    placing_seconds: float = 0.0
    context: Context | None = field(default=None, repr=False, compare=False)

    @property
    def is_complete(self) -> bool:
        """True if every operator was bounded by its own transfer function."""
        return not self.unknowns

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "complete": self.is_complete,
            "operators": len(self.graph.nodes),
            "defects": [defect.to_dict() for defect in self.defects],
            "advice": [advice.to_dict() for advice in self.advice],
            "bounds": {name: bound.to_dict() for name, bound in self.bounds.items()},
            "observed": {name: list(pair) for name, pair in self.observed.items()},
            "ranges": {name: bound.to_dict() for name, bound in self.ranges.items()},
            "weights": self.weights,
            "unknowns": [str(unknown) for unknown in self.unknowns],
            "notes": list(self.notes),
            "capture_seconds": self.capture_seconds,
            "analysis_seconds": self.analysis_seconds,
            "placing_seconds": self.placing_seconds,
        }

    def save(self, path: str | Path) -> Path:
        """Writes the analysis as a report; the suffix chooses the form: .html or .json.

        Raises:
            ArgumentError: If the suffix is not a known one.
        """
        import importlib
        import json

        target = Path(path)
        if target.suffix == ".json":
            target.write_text(json.dumps(self.to_dict(), indent=2), encoding="utf-8")
        elif target.suffix == ".html":
            # The report is one floor up: reached by name, only when somebody asks for it.
            report = importlib.import_module("ranum.report")
            report.write_html(target, analysis=self)
        else:
            raise ArgumentError(f"path must end in .html or .json; got {str(target)!r}.")
        return target

    def __str__(self) -> str:
        certain = sum(defect.severity == "certain" for defect in self.defects)
        counts = [f"{certain} certain"] if certain else []
        if not certain or certain < len(self.defects):
            counts.append(f"{len(self.defects) - certain} possible")
        plural = "" if len(self.defects) == 1 else "s"
        head = f"{' and '.join(counts)} numerical defect{plural}"
        head += f" in {len(self.graph.nodes)} operators"
        if not self.is_complete:
            head += f" (incomplete: {len(self.unknowns)} operator(s) that could not be bounded)"
        lines = [head, *(f"  {defect}" for defect in self.defects)]
        lines += [f"  advice {advice}" for advice in self.advice]
        lines += [f"  unknown operator {unknown}" for unknown in self.unknowns]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
