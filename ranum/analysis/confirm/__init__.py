"""Proofs: concrete inputs and weights, or training data, that make a defect happen."""

from ranum.analysis.confirm.every import confirm_all
from ranum.analysis.confirm.training import confirm_training
from ranum.analysis.confirm.unit import confirm

__all__ = ["confirm", "confirm_all", "confirm_training"]
