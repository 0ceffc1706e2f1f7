"""Transfer functions, one file per family; importing this package fills the table."""

from __future__ import annotations

from ranum.analysis.transfer import (
    activations,
    attention,
    backward,
    comparison,
    contraction,
    creation,
    ctc,
    elementwise,
    experts,
    functions,
    indexing,
    layout,
    loss,
    normalization,
    pooling,
    recurrent,
    reduction,
    selection,
    uniform,
    weight_norm,
)
from ranum.analysis.transfer.registry import Rule, rule_for, rules, transfer

__all__ = [
    "Rule",
    "activations",
    "attention",
    "backward",
    "comparison",
    "contraction",
    "creation",
    "ctc",
    "elementwise",
    "experts",
    "functions",
    "indexing",
    "layout",
    "loss",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "rule_for",
    "rules",
    "selection",
    "transfer",
    "uniform",
    "weight_norm",
]
