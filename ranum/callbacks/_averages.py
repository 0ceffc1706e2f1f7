"""Averages of the weights that Lightning's own callbacks keep, as things that go back."""

from __future__ import annotations

from typing import Any

from torch import nn


class _Updates:
    """Up to where a callback has averaged: it leaves out steps whose number it has had."""

    def __init__(self, callback: Any) -> None:
        self._callback = callback

    def state_dict(self) -> dict[str, int]:
        """The number of the last step, and of the last epoch."""
        return {name: getattr(self._callback, name) for name in _NUMBERS}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes them back."""
        for name, value in state.items():
            setattr(self._callback, name, value)


_NUMBERS = ("_latest_update_step", "_latest_update_epoch")


def averages(trainer: Any) -> list[Any]:
    """The averages of `WeightAveraging` and its kin, and how far each has come."""
    found: list[Any] = []
    for callback in trainer.callbacks:
        average = getattr(callback, "_average_model", None)
        if isinstance(average, nn.Module):
            found.append(average)
            if all(hasattr(callback, name) for name in _NUMBERS):
                found.append(_Updates(callback))
    return found
