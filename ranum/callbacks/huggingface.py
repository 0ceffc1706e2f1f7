"""`RanumCallback` for the Hugging Face `Trainer`."""

from __future__ import annotations

from ranum.callbacks._huggingface import RanumCallback

__all__ = ["RanumCallback"]
