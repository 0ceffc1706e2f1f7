"""Cures: clips, live patches and their diffs, and the search for a configuration that trains."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ranum.repair.patch import (
        AppliedPatch,
        Edit,
        apply_edits,
        clip_edit,
        merged_diff,
        module_clip,
        rewrite_edit,
    )

_HOMES = {
    "AppliedPatch": "ranum.repair.patch",
    "Edit": "ranum.repair.patch",
    "apply_edits": "ranum.repair.patch",
    "clip_edit": "ranum.repair.patch",
    "merged_diff": "ranum.repair.patch",
    "module_clip": "ranum.repair.patch",
    "rewrite_edit": "ranum.repair.patch",
}

__all__ = [
    "AppliedPatch",
    "Edit",
    "apply_edits",
    "clip_edit",
    "merged_diff",
    "module_clip",
    "rewrite_edit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
