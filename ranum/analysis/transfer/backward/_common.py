"""What several families of backward operators share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ranum.analysis.transfer._common import Box

Mask = Sequence[bool]


def overflowing(result: Box, numerator: Box) -> Box:
    """A quotient that is infinite wherever its numerator can be."""
    lower = torch.where(numerator.lower == -math.inf, numerator.lower, result.lower)
    upper = torch.where(numerator.upper == math.inf, numerator.upper, result.upper)
    return result.replaced(lower, upper)
