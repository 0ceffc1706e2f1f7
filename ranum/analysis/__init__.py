"""Before training: what can go wrong numerically in one training step, found on intervals."""

from ranum.analysis.analyze import analyze
from ranum.analysis.interval import Interval
from ranum.analysis.result import Analysis, Defect, Unknown, Witness

__all__ = ["Analysis", "Defect", "Interval", "Unknown", "Witness", "analyze"]
