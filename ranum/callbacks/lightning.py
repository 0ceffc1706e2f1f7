"""`RanumCallback` for `lightning.pytorch`."""

from __future__ import annotations

from ranum.callbacks._lightning import make_callback

RanumCallback = make_callback("lightning.pytorch")

__all__ = ["RanumCallback"]
