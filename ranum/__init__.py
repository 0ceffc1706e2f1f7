"""Keeps PyTorch training runs free of NaN and Inf.

`analyze` finds the operators that can fail before training, `Guard` and `RanumCallback`
watch a run and bring it back when something breaks, `fix` and `repair_configuration` find
cures. Names are loaded when first used: `import ranum` itself imports neither torch nor
any optional package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ranum._version import __version__
from ranum.errors import (
    ArgumentError,
    CaptureError,
    MissingExtraError,
    PatchError,
    RanumError,
    RanumWarning,
)

if TYPE_CHECKING:
    from ranum.analysis import analyze
    from ranum.analysis.confirm import confirm, confirm_all, confirm_training
    from ranum.analysis.execution import Execution
    from ranum.analysis.interval import Interval
    from ranum.analysis.result import Analysis, Defect, TrainingWitness, Witness
    from ranum.callbacks import RanumCallback
    from ranum.guards.guard import Guard
    from ranum.guards.types import Culprit, Finding, History, Incident
    from ranum.pages import explain
    from ranum.repair.clipping import fix
    from ranum.repair.search import RepairResult, SearchSpace, repair_configuration

__all__ = [
    "Analysis",
    "ArgumentError",
    "CaptureError",
    "Culprit",
    "Defect",
    "Execution",
    "Finding",
    "Guard",
    "History",
    "Incident",
    "Interval",
    "MissingExtraError",
    "PatchError",
    "RanumCallback",
    "RanumError",
    "RanumWarning",
    "RepairResult",
    "SearchSpace",
    "TrainingWitness",
    "Witness",
    "__version__",
    "analyze",
    "confirm",
    "confirm_all",
    "confirm_training",
    "explain",
    "fix",
    "repair_configuration",
]

_HOMES = {
    "Analysis": "ranum.analysis.result",
    "Culprit": "ranum.guards.types",
    "Defect": "ranum.analysis.result",
    "Execution": "ranum.analysis.execution",
    "Finding": "ranum.guards.types",
    "Guard": "ranum.guards.guard",
    "History": "ranum.guards.types",
    "Incident": "ranum.guards.types",
    "Interval": "ranum.analysis.interval",
    "RanumCallback": "ranum.callbacks",
    "RepairResult": "ranum.repair.search",
    "SearchSpace": "ranum.repair.search",
    "TrainingWitness": "ranum.analysis.result",
    "Witness": "ranum.analysis.result",
    "analyze": "ranum.analysis",
    "confirm": "ranum.analysis.confirm",
    "confirm_all": "ranum.analysis.confirm",
    "confirm_training": "ranum.analysis.confirm",
    "explain": "ranum.pages",
    "fix": "ranum.repair.clipping",
    "repair_configuration": "ranum.repair.search",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ranum' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    if name != "RanumCallback":  # which depends on the Lightning namespaces imported by then
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
