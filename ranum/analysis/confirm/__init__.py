"""Proofs: concrete inputs and weights that make a defect happen."""

from ranum.analysis.confirm.unit import confirm, confirm_all

__all__ = ["confirm", "confirm_all"]
