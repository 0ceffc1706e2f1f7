"""What the guards measure and say: plain frozen values, no framework types inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ranum.source import Source

Severity = Literal["fault", "warning"]
"""A fault is acted on before the optimizer step; a warning is shown and recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationReading:
    """Statistics of one module's output in one step.

    Attributes:
        lower: Smallest element.
        upper: Largest element.
        dead: Share of units whose output was <= 0 for the whole batch, in [0, 1]; None for
            modules that are not rectifiers.
        saturated: Share of elements within 1 % of an end of the activation's range, in [0, 1];
            None for modules that are not bounded on both sides.
        spread: Largest range of an element over the examples of the batch; None where it was
            not measured (only the first samples of a run are), or there is one example.
    """

    lower: float
    upper: float
    dead: float | None = None
    saturated: float | None = None
    spread: float | None = None

    @property
    def size(self) -> float:
        """Largest absolute element."""
        return max(abs(self.lower), abs(self.upper))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReading:
    """What the first module that ran was given in one step.

    Attributes:
        where: Path of the module.
        lower: Smallest element; NaN if one is NaN.
        upper: Largest element; NaN if one is NaN.
        mean: Over all elements.
        deviation: Standard deviation over all elements.
        spread: Largest range of an element over the examples of the batch; None if there is one
            example.
        is_normalized: The module is a normalization, so that the scale does not matter.
    """

    where: str
    lower: float
    upper: float
    mean: float = 0.0
    deviation: float = 0.0
    spread: float | None = None
    is_normalized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReading:
    """One loss function of a step, as the step's autograd graph shows it.

    Attributes:
        kind: "cross entropy", "negative log likelihood", "binary cross entropy", "binary cross
            entropy with logits", "squared error" or "Huber".
        activation: What its input came from: "softmax", "sigmoid", "tanh", "relu" or "".
        lower: Smallest target, or class that is not ignored.
        upper: Largest.
        count: Number of targets.
        ignored: Share of targets that are ignored, in [0, 1].
        outside: Share of targets outside the range of the activation or of the loss, in [0, 1].
        peak: Largest input of a negative log likelihood; None for others.
    """

    kind: str
    activation: str = ""
    lower: float = 0.0
    upper: float = 0.0
    count: int = 0
    ignored: float = 0.0
    outside: float = 0.0
    peak: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizationReading:
    """How a batch compares with the running statistics of a BatchNorm before that batch.

    Attributes:
        shift: Distance of the means in running standard deviations; median over channels.
        ratio: Variance of the batch over the running variance; median over channels.
        momentum: Weight of the batch in the new statistics; 0 if they are not updated.
        count: Values per channel in the batch.
    """

    shift: float
    ratio: float
    momentum: float = 0.1
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was measured in one optimizer step, before the step.

    Attributes:
        step: Optimizer steps attempted before this one.
        loss: Loss of the (last) batch; None where the framework does not show it.
        grad_norm: Global L2 norm of the gradients, unscaled, before clipping; NaN or inf if
            any gradient is not finite; None if there were no gradients.
        learning_rate: Of the first parameter group.
        epoch: Counting from 0.
        grad_norms: L2 norm per parameter name; empty in steps that are not sampled.
        weight_norms: L2 norm per parameter name; empty in steps that are not sampled.
        activations: By module path; empty in steps that are not sampled.
        bad_state: A weight, buffer or moment of the optimizer that is not finite, by name; "" if
            there is none, or it was not looked for. Or a running variance that has jumped.
        growth: Times by which the norm of that has grown in one step; 0 if it is not finite.
        validation_loss: Of a validation since the reading before, if there was one.
        updates: By parameter name, L2 of the change that the optimizer step after the sample
            before made, over L2 of the weight (or of one of torch's default initialisation, where
            that is larger: a weight may start near zero). Estimated from some of the elements; of
            matrices and kernels that are trained. Exactly 0 if none of these elements changed.
        cut_off: Parameters whose module took part in the step's graph, and which got no gradient.
        alike: Weights whose units (first dimension) are all the same; in the first samples.
        inputs: What the first module was given; None in steps that are not sampled.
        loss_terms: Loss functions of the step; empty where their graph was not seen.
        normalizations: By module path, of BatchNorm modules.
    """

    step: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float | None = None
    epoch: int = 0
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    weight_norms: Mapping[str, float] = field(default_factory=dict)
    activations: Mapping[str, ActivationReading] = field(default_factory=dict)
    bad_state: str = ""
    growth: float = 0.0
    validation_loss: float | None = None
    updates: Mapping[str, float] = field(default_factory=dict)
    cut_off: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()
    inputs: InputReading | None = None
    loss_terms: tuple[LossReading, ...] = ()
    normalizations: Mapping[str, NormalizationReading] = field(default_factory=dict)

    @property
    def is_sampled(self) -> bool:
        """True if the per-layer statistics were taken in this step."""
        return bool(self.grad_norms or self.activations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A symptom's verdict over the readings so far.

    Attributes:
        code: Stable code, "RN2xx" (training) or "RN3xx" (data and configuration).
        symptom: Name of the symptom's class, "ExplodingGradient".
        step: Step of the reading that decided.
        severity: "fault" or "warning".
        message: One sentence for a person, with the numbers.
        where: Parameter name or module path, "" for the whole run.
        evidence: The numbers behind the verdict, by name.
    """

    code: str
    symptom: str
    step: int
    severity: Severity
    message: str
    where: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "code": self.code,
            "symptom": self.symptom,
            "step": self.step,
            "severity": self.severity,
            "message": self.message,
            "where": self.where,
            "evidence": dict(self.evidence),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Extremes:
    """Smallest and largest finite element of a tensor, and how many are not finite.

    Attributes:
        name: Argument name in the operator's schema, or parameter/buffer/input name.
        lower: Smallest finite element; None if there is none.
        upper: Largest finite element; None if there is none.
        nan: Number of NaN elements.
        inf: Number of infinite elements.
        size: Number of elements.
    """

    name: str
    lower: float | None
    upper: float | None
    nan: int
    inf: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        bounds = "no finite element"
        if self.lower is not None and self.upper is not None:
            bounds = f"[{self.lower:.4g}, {self.upper:.4g}]"
        bad = [f"{count} {kind}" for count, kind in ((self.nan, "NaN"), (self.inf, "Inf")) if count]
        return f"{self.name} in {bounds}" + (f" with {' and '.join(bad)}" if bad else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """The first operator of a step whose inputs were finite and whose output was not.

    Attributes:
        op: Canonical operator name, "log".
        phase: "forward" or "backward".
        source: The user's expression; for backward, the one of the forward operator.
        operands: Extremes of the operator's tensor arguments.
        output: Extremes of its first bad output.
        outcome: "NaN", "Inf" or "-Inf"; "NaN or Inf" of numbers at rest.
        cause: "operator" (finite in, not finite out), "data" (the batch was not finite) or
            "weights" (a parameter, buffer or moment was not finite before the step).
        name: For data and weights, the name of the bad tensor.
    """

    op: str
    phase: Literal["forward", "backward"]
    source: Source
    operands: tuple[Extremes, ...] = ()
    output: Extremes | None = None
    outcome: str = "NaN"
    cause: Literal["operator", "data", "weights"] = "operator"
    name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "op": self.op,
            "phase": self.phase,
            "source": self.source.to_dict(),
            "operands": [operand.to_dict() for operand in self.operands],
            "output": None if self.output is None else self.output.to_dict(),
            "outcome": self.outcome,
            "cause": self.cause,
            "name": self.name,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Culprit:
        """What `to_dict` has given, also after JSON."""
        source = {name: value for name, value in data["source"].items() if name != "expression"}
        output = data["output"]
        parts = {
            "source": Source(**source),
            "operands": tuple(Extremes(**operand) for operand in data["operands"]),
            "output": None if output is None else Extremes(**output),
        }
        return cls(**{**data, **parts})

    def __str__(self) -> str:
        if self.cause != "operator":
            return f"{self.outcome} in {self.cause} {self.name!r}"
        where = "gradient of " if self.phase == "backward" else ""
        operands = ", ".join(str(operand) for operand in self.operands)
        return f"{self.outcome} from {where}{self.op} at {self.source} ({operands})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A fault, its culprit, and what was done about it.

    Attributes:
        step: Step that was withheld.
        epoch: Counting from 0.
        finding: The symptom that decided.
        culprit: None where the replay found none, or there was nothing to replay.
        action: Name of the remedy taken: "skip", "rollback", "clip", "repair", "stop".
        detail: One sentence on what the action did.
        back_to: Step of the snapshot gone back to; None if none was.
        patch: Unified diff of the live patch that was inserted; "" if none.
        file: Where the step was saved, for `ranum replay`; "" if it was not.
    """

    step: int
    epoch: int
    finding: Finding
    action: str
    detail: str
    culprit: Culprit | None = None
    back_to: int | None = None
    patch: str = ""
    file: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "finding": self.finding.to_dict(),
            "culprit": None if self.culprit is None else self.culprit.to_dict(),
            "action": self.action,
            "detail": self.detail,
            "back_to": self.back_to,
            "patch": self.patch,
            "file": self.file,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Incident:
        """What `to_dict` has given, also after JSON."""
        culprit = data["culprit"]
        parts = {
            "finding": Finding(**data["finding"]),
            "culprit": None if culprit is None else Culprit.from_dict(culprit),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything a guard has seen, for reports.

    Attributes:
        readings: One per step (thinned to a bounded number for long runs).
        findings: Warnings and faults, in order, each kind of warning once per place.
        incidents: Faults acted on, in order.
        internal_faults: One line per rule of Ranum's own that failed and was switched off.
    """

    readings: Sequence[Reading] = ()
    findings: Sequence[Finding] = ()
    incidents: Sequence[Incident] = ()
    internal_faults: Sequence[str] = ()
