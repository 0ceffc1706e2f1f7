"""Undoing what a repair did not need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def minimize(
    repaired: Mapping[str, Any],
    faulty: Mapping[str, Any],
    names: Sequence[str],
    is_good: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """Sets changed values back to the faulty ones, one by one, as long as all stays good.

    One pass, greedy: with n changed values it asks at most n times, and never for the faulty
    configuration itself. The result is a smallest patch only if the values do not interact.

    Args:
        repaired: A configuration that works.
        faulty: The one it came from.
        names: What may differ, in the order in which to set it back.
        is_good: Trains a configuration and says if it may stay.

    Returns:
        A configuration with at most the changes of `repaired`.
    """
    current = dict(repaired)
    for name in names:
        undone = {**current, name: faulty[name]}
        if undone in (current, dict(faulty)):
            continue
        if is_good(undone):
            current = undone
    return current
