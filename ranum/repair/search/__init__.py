"""Search for a configuration that trains, starting from one that does not."""

from __future__ import annotations

from ranum.repair.search.reporter import Reporter
from ranum.repair.search.result import Pruned, RepairResult, TrialRecord
from ranum.repair.search.space import SearchSpace
from ranum.repair.search.study import repair_configuration
from ranum.repair.search.surgery import (
    ModelEdit,
    apply_configuration,
    build_optimizer,
    read_configuration,
)

__all__ = [
    "ModelEdit",
    "Pruned",
    "RepairResult",
    "Reporter",
    "SearchSpace",
    "TrialRecord",
    "apply_configuration",
    "build_optimizer",
    "read_configuration",
    "repair_configuration",
]
