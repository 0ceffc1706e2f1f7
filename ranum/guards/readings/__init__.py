"""From a framework's step to a `Reading`: plain numbers, one host read."""

from __future__ import annotations

from ranum.guards.readings.torch import TorchReader

__all__ = ["TorchReader"]
