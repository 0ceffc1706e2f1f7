"""Adapters: the guard in somebody else's training loop.

`RanumCallback` here fits the Lightning namespace that is imported already, or both; the
modules `lightning` and `pytorch_lightning` have one for each by name. `huggingface` has the one for
its Trainer, `keras` the one for `fit`, `fabric` a guard for loops on Lightning Fabric.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RanumCallback"]


def __getattr__(name: str) -> Any:
    if name == "RanumCallback":
        from ranum.callbacks._lightning import default_callback

        return default_callback()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
