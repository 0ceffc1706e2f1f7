"""`RanumCallback` for `pytorch_lightning`."""

from __future__ import annotations

from ranum.callbacks._lightning import make_callback

RanumCallback = make_callback("pytorch_lightning")

__all__ = ["RanumCallback"]
