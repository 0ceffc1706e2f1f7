"""`RanumCallback` for Keras 3 `fit`, on TensorFlow and torch."""

from __future__ import annotations

from ranum.callbacks._keras.callback import RanumCallback

__all__ = ["RanumCallback"]
