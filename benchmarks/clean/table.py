"""All cases, filled in by importing the families."""

from __future__ import annotations

from benchmarks.clean import (  # noqa: F401 - they fill the table
    keras_applications,
    language,
    plain,
    speech,
    vision,
)
from benchmarks.clean.case import CASES

__all__ = ["CASES"]
