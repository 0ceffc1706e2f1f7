"""A run as the reports get it, built from the real result types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ranum.analysis.graph import Graph, Node, Ref, Value
from ranum.analysis.interval import Interval
from ranum.analysis.result import Analysis, Defect, Unknown, Witness
from ranum.guards.types import (
    ActivationReading,
    Culprit,
    Extremes,
    Finding,
    History,
    Incident,
    Reading,
)
from ranum.source import Source

CODE = """\
import torch
from torch import nn


class Digits(nn.Module):
    def forward(self, images):
        scores = self.head(self.features(images))
        weights = scores / scores.sum(-1, keepdim=True)
        return weights

    def loss(self, images, labels):
        logits = self(images)
        onehot = nn.functional.one_hot(labels, 10)
        return -(onehot * torch.log(torch.softmax(logits, -1))).sum(-1).mean()
"""

LOG = "torch.log(torch.softmax(logits, -1))"
DIVISION = "scores / scores.sum(-1, keepdim=True)"

PATCH = """\
--- a/model.py
+++ b/model.py
@@ -11,4 +11,4 @@
     def loss(self, images, labels):
         logits = self(images)
         onehot = nn.functional.one_hot(labels, 10)
-        return -(onehot * torch.log(torch.softmax(logits, -1))).sum(-1).mean()
+        return -(onehot * torch.log_softmax(logits, -1)).sum(-1).mean()
"""

MODULES = ("features.0", "features.1", "features.2", "head")


@dataclass(frozen=True)
class TrialRecord:
    number: int
    configuration: Mapping[str, Any]
    score: float
    state: str
    reason: str = ""


@dataclass(frozen=True)
class RepairResult:
    faulty: Mapping[str, Any]
    configuration: Mapping[str, Any]
    patch: Mapping[str, tuple[Any, Any]]
    score: float
    faulty_score: float
    trials: tuple[TrialRecord, ...] = ()
    seconds: float = 14.2
    is_repaired: bool = True
    complexity: float = field(default=0.4)


def write_code(folder: Path, code: str = CODE) -> Path:
    file = folder / "model.py"
    file.write_text(code, encoding="utf-8")
    return file


def source_of(file: Path, expression: str, module: str | None = None) -> Source:
    """Where an expression of one line stands in a file."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if expression in line:
            column = len(line[: line.index(expression)].encode())
            return Source(
                file=str(file),
                line=number,
                end_line=number,
                column=column,
                end_column=column + len(expression.encode()),
                function="Digits.loss",
                module=module,
            )
    raise LookupError(expression)


def graph() -> Graph:
    return Graph(
        values={
            0: Value(index=0, shape=(64, 10), dtype=torch.float32, kind="input", name="images"),
            1: Value(index=1, shape=(64, 10), dtype=torch.float32, producer=0),
            2: Value(index=2, shape=(64, 10), dtype=torch.float32, producer=1),
        },
        nodes=[
            Node(index=0, op="_softmax", target=None, arguments={"x": Ref(0)}, outputs=(1,)),
            Node(index=1, op="log", target=None, arguments={"x": Ref(1)}, outputs=(2,)),
        ],
        loss=2,
    )


def bound(lower: float, upper: float, may_nan: bool = False) -> Interval:
    return Interval.full(lower, upper, (64, 10), torch.float32).with_nan(may_nan)


def defect(source: Source, *, certain: bool = True, **changes: Any) -> Defect:
    values: dict[str, Any] = {
        "code": "RN101",
        "rule": "LogDomain",
        "op": "log",
        "node": 1,
        "operand": 1,
        "source": source,
        "bounds": bound(0.0, 1.0),
        "bad": "x <= 0",
        "outcome": "-Inf at 0, NaN below",
        "consequence": "0 * -Inf is NaN in the loss, and every weight is NaN after one step.",
        "remedy": "Write torch.log_softmax(logits, -1).",
        "reach": "envelope",
        "growth": 2.54,
    }
    found = Defect(**values | changes)
    return found.certain(witness()) if certain else found


def witness(**changes: Any) -> Witness:
    values: dict[str, Any] = {
        "inputs": {"images": torch.ones(2, 1, 8, 8)},
        "weights": {"head.weight": torch.ones(10, 4), "head.bias": torch.ones(10)},
        "operand": (0.0, 1.0),
        "outcome": "-Inf",
        "loss": math.nan,
        "evaluations": 14,
        "seed": 0,
    }
    return Witness(**values | changes)


def analysis(file: Path, **changes: Any) -> Analysis:
    values: dict[str, Any] = {
        "graph": graph(),
        "intervals": {},
        "bounds": {
            "features.0": bound(-38.2, 41.7),
            "features.1": bound(0.0, 41.7),
            "features.2": bound(-1.9e4, 2.4e4),
            "head": bound(-math.inf, math.inf, may_nan=True),
            "": bound(-8.1e6, 8.1e6),
            "loss": bound(0.0, 103.3),
        },
        "observed": {
            "features.0": (-2.1, 2.4),
            "features.1": (0.0, 2.4),
            "features.2": (-11.0, 9.0),
            "head": (-40.0, 61.0),
            "": (-3.0, 3.1),
            "loss": (2.31, 2.31),
        },
        "defects": (
            defect(source_of(file, LOG, "")),
            defect(
                source_of(file, DIVISION, "head"),
                certain=False,
                code="RN103",
                rule="DivisionByZero",
                op="div",
                bounds=bound(-410.0, 417.0),
                bad="x = 0",
                outcome="NaN for 0 / 0, Inf otherwise",
                consequence="",
                remedy="Divide by the sum of absolute values plus eps.",
                reach="initial",
                growth=None,
            ),
            defect(
                source_of(file, "scores.sum(-1, keepdim=True)", "head"),
                certain=False,
                code="RN110",
                rule="Overflow",
                op="sum",
                bounds=bound(-3.3e38, math.inf),
                bad="|x| > 3.4e38",
                outcome="Inf",
                consequence="",
                remedy="",
                reach="anything",
                growth=4.1e5,
            ),
        ),
        "unknowns": (Unknown(op="my_op", count=2, source=source_of(file, "self(images)", "")),),
        "notes": ("The branch taken at model.py:7 was the only one seen.",),
        "ranges": {"images": bound(0.0, 1.0), "head.weight": bound(-1.0, 1.0)},
        "capture_seconds": 0.05,
        "analysis_seconds": 0.09,
    }
    return Analysis(**values | changes)


def finding(step: int = 132, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "code": "RN201",
        "symptom": "NonFinite",
        "step": step,
        "severity": "fault",
        "message": "The loss is NaN.",
        "evidence": {"loss": math.nan, "grad_norm": math.nan},
    }
    return Finding(**values | changes)


def warning(step: int = 90, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "code": "RN204",
        "symptom": "DyingReLU",
        "severity": "warning",
        "message": "72 % of the units of features.1 gave 0 for every sample of the batch.",
        "where": "features.1",
        "evidence": {"dead": 0.72, "limit": 0.5},
    }
    return finding(step, **values | changes)


def incident(file: Path, step: int = 132, **changes: Any) -> Incident:
    values: dict[str, Any] = {
        "step": step,
        "epoch": 3,
        "finding": finding(step),
        "culprit": Culprit(
            op="log",
            phase="forward",
            source=source_of(file, LOG, ""),
            operands=(Extremes(name="x", lower=0.0, upper=1.0, nan=0, inf=0, size=640),),
            output=Extremes(name="output", lower=-87.3, upper=0.0, nan=0, inf=3, size=640),
            outcome="-Inf",
        ),
        "action": "clip",
        "detail": "The log is now computed from logits by log_softmax.",
        "back_to": 100,
        "patch": PATCH,
    }
    return Incident(**values | changes)


def readings(count: int = 400, faults: tuple[int, ...] = (132, 260)) -> tuple[Reading, ...]:
    """A falling, wavy loss; NaN at `faults`; layers sampled every tenth step."""
    made = []
    for step in range(count):
        wave = 0.15 * math.sin(step / 3.0) + 0.1 * math.sin(step * 1.7)
        loss = 2.3 * math.exp(-step / max(count / 4, 1)) + 0.08 * (2 + wave) * (1 + wave)
        norm = (1.4 + wave) * math.exp(-step / max(count / 2, 1))
        for fault in faults:
            if 0 < fault - step < 6:
                norm *= 40.0 ** (6 - (fault - step))
        if step in faults:
            loss = norm = math.nan
        sampled = step % 10 == 0
        made.append(
            Reading(
                step=step,
                loss=loss,
                grad_norm=norm,
                learning_rate=0.1,
                epoch=step // 45,
                grad_norms={f"{name}.weight": norm / (2 + i) for i, name in enumerate(MODULES)}
                if sampled
                else {},
                weight_norms={f"{name}.weight": 3.0 + i for i, name in enumerate(MODULES)}
                if sampled
                else {},
                activations={
                    name: ActivationReading(
                        lower=-2.0 * i - step / 200,
                        upper=2.4 + i + step / (4.0 if name == "features.0" else 90.0),
                        dead=min(0.1 + step / 500, 0.72) if name == "features.1" else None,
                    )
                    for i, name in enumerate(MODULES)
                }
                if sampled
                else {},
            )
        )
    return tuple(made)


def history(file: Path, count: int = 400) -> History:
    second = incident(
        file,
        260,
        finding=finding(
            260,
            code="RN202",
            symptom="ExplodingGradient",
            message="The gradient norm is 8.4e7, 2,100 times the median of the last 50 steps.",
            evidence={"grad_norm": 8.4e7, "median": 4.0e4},
        ),
        culprit=Culprit(
            op="div",
            phase="backward",
            source=source_of(file, DIVISION, "head"),
            operands=(
                Extremes(name="x", lower=-3.0, upper=3.1, nan=0, inf=0, size=640),
                Extremes(name="other", lower=-1e-9, upper=2.0, nan=0, inf=0, size=64),
            ),
            outcome="Inf",
        ),
        action="rollback",
        detail="Learning rate 0.1 → 0.05.",
        back_to=250,
        patch="",
    )
    return History(
        readings=readings(count),
        findings=(
            warning(90),
            finding(132),
            warning(
                210,
                code="RN206",
                symptom="OscillatingLoss",
                message="The loss changed direction in 41 of the last 50 steps.",
                where="",
            ),
            second.finding,
            warning(300),
        ),
        incidents=(incident(file), second),
    )


def repair(**changes: Any) -> RepairResult:
    faulty = {
        "learning_rate": 5.0,
        "optimizer": "sgd",
        "batch_size": 64,
        "initialisation": "normal",
        "activation": "relu",
    }
    fixed = faulty | {"learning_rate": 0.0034, "initialisation": "kaiming"}
    trials = [TrialRecord(0, faulty, math.inf, "failed", "The loss is NaN at step 3.")]
    for number in range(1, 14):
        score = 0.9 * math.exp(-number / 5) + 0.05 * (1 + math.sin(number * 2.3))
        state = ("complete", "pruned", "complete", "failed")[number % 4]
        trials.append(
            TrialRecord(
                number,
                fixed,
                math.inf if state == "failed" else score,
                state,
                "ExplodingGradient" if state == "failed" else "",
            )
        )
    values: dict[str, Any] = {
        "faulty": faulty,
        "configuration": fixed,
        "patch": {"learning_rate": (5.0, 0.0034), "initialisation": ("normal", "kaiming")},
        "score": 0.081,
        "faulty_score": math.inf,
        "trials": tuple(trials),
    }
    return RepairResult(**values | changes)
