"""What Ranum raises and warns with."""

from __future__ import annotations


class RanumError(Exception):
    """Base of every error that Ranum raises on purpose."""


class ArgumentError(RanumError, ValueError):
    """An argument broke its rule; the message names it, the value got, and what is right."""


class CaptureError(RanumError, RuntimeError):
    """The training step could not be recorded; training itself is not affected."""


class PatchError(RanumError, RuntimeError):
    """An edit could not be applied to running code or source; nothing was changed."""


class MissingExtraError(RanumError, ImportError):
    """An optional dependency is not installed; the message holds the pip line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'ranum[{extra}]'."
        )


class RanumWarning(UserWarning):
    """Something Ranum could not do; says what it does instead."""
