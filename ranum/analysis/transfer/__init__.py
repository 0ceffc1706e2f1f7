"""Transfer functions, one file per family; importing this package fills the table."""

from __future__ import annotations

from ranum.analysis.transfer import (
    activations,
    comparison,
    elementwise,
    functions,
    selection,
)
from ranum.analysis.transfer.registry import Rule, rule_for, rules, transfer

__all__ = [
    "Rule",
    "activations",
    "comparison",
    "elementwise",
    "functions",
    "rule_for",
    "rules",
    "selection",
    "transfer",
]
