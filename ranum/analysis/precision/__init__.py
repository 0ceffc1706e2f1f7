"""Advice on precision: spellings that lose digits, and what to write instead.

Advice is no alarm: nothing becomes NaN. It is listed apart from the defects.
"""

from ranum.analysis.precision.base import CODES, AdviceRule, Suggestion, advice_rule
from ranum.analysis.precision.cancellation import Cancellation
from ranum.analysis.precision.eps import AbsorbedEps, VanishedEps
from ranum.analysis.precision.find import find_advice
from ranum.analysis.precision.logarithm import LogSpelling

__all__ = [
    "CODES",
    "AbsorbedEps",
    "AdviceRule",
    "Cancellation",
    "LogSpelling",
    "Suggestion",
    "VanishedEps",
    "advice_rule",
    "find_advice",
]
