"""All cases, filled in by importing the families."""

from __future__ import annotations

from benchmarks.clean import language, plain, speech, vision  # noqa: F401 - they fill the table
from benchmarks.clean.case import CASES

__all__ = ["CASES"]
