"""The options that every callback has, each checked by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ranum.callbacks._session import checked
from ranum.guards.symptoms import Symptom


def analyze_option(value: Any) -> Any:
    """Whether to analyse the first step."""
    return checked("analyze", value, "'step' or 'off'", lambda one: one in ("step", "off"))


def remedies_option(value: Any, known: Sequence[str]) -> tuple[Any, ...]:
    """Names of remedies, out of those that an adapter has."""
    rule = f"a sequence of names out of {', '.join(known)}"
    return tuple(
        checked(
            "on_fault",
            value,
            rule,
            lambda one: not isinstance(one, str) and set(one) <= set(known),
        )
    )


def symptoms_option(value: Any) -> tuple[Symptom, ...] | None:
    """Rules; None for the default ones."""
    if value is None:
        return None
    return tuple(
        checked(
            "symptoms",
            value,
            "a sequence of symptoms or None",
            lambda one: all(isinstance(item, Symptom) for item in one),
        )
    )


def states_option(name: str, value: Any) -> tuple[Any, ...]:
    """Things that have a state."""
    return tuple(
        checked(
            name,
            value,
            "a sequence of modules, or of what has state_dict and load_state_dict",
            lambda one: all(hasattr(item, "load_state_dict") for item in one),
        )
    )


def steps_option(name: str, value: Any) -> int:
    """A number of steps."""
    found: int = checked(
        name,
        value,
        "a whole number of at least 1",
        lambda one: isinstance(one, int) and not isinstance(one, bool) and one >= 1,
    )
    return found


def interval_option(name: str, value: Any) -> int | str:
    """A number of steps, or "auto"."""
    return value if value == "auto" else steps_option(name, value)


def seconds_option(name: str, value: Any) -> float:
    """A time; 0 for none."""
    found: float = checked(name, value, "0 or more seconds", lambda one: one >= 0)
    return found


def path_option(name: str, value: Any) -> str | Path | None:
    """A path; None for the default one."""
    found: str | Path | None = checked(
        name, value, "a path or None", lambda one: one is None or isinstance(one, (str, Path))
    )
    return found
