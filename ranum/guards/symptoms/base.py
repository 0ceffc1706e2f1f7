"""What a symptom is: a pure rule over a bounded window of readings."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from ranum.errors import ArgumentError
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Severity


def so_far(progress: float) -> str:
    """How far the loss has come, in words: the progress of `Window.progress`."""
    if progress < -1:
        return "the loss is far above its start"
    return f"the loss has made {progress:.0%} of its way"


@dataclass(frozen=True, slots=True)
class Symptom:
    """A rule over readings; its fields are its thresholds.

    A subclass is a frozen dataclass with a `check` that depends on the window alone, and a
    docstring with the headings What it finds, Why it matters, Thresholds and their source,
    Known misses, Remedies, Example, References. `register` puts it under its code.
    """

    code: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[Literal["step", "sample"]] = "step"
    """"step": can judge every reading; "sample": only those with per-layer statistics."""
    every: ClassVar[int] = 1
    """Readings between two checks; more than 1 for rules over slow trends."""
    is_of_run: ClassVar[bool] = False
    """True if leaving out one batch cannot help: the finding is about the run, not a step."""

    def check(self, window: Window) -> Finding | None:
        """The finding for the latest reading, or None."""
        raise NotImplementedError

    def find(self, window: Window, message: str, *, where: str = "", **evidence: float) -> Finding:
        """A finding of this symptom for the latest reading; evidence is kept where finite."""
        return Finding(
            code=self.code,
            symptom=type(self).__name__,
            step=window.latest.step,
            severity=self.severity,
            message=message,
            where=where,
            evidence={name: value for name, value in evidence.items() if math.isfinite(value)},
        )

    def require(self, *names: str, above: float = 0.0, to: float = math.inf) -> None:
        """Checks that the fields are numbers in (above, to].

        Raises:
            ArgumentError: If one is not.
        """
        for name in names:
            value = getattr(self, name)
            rule = f"greater than {above:g}" + ("" if to == math.inf else f" and at most {to:g}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ArgumentError(f"{name} must be a number {rule}; got {value!r}.")
            if not above < value <= to:
                raise ArgumentError(f"{name} must be {rule}; got {value!r}.")

    def require_count(self, *names: str, to: int) -> None:
        """Checks that the fields are integers from 1 to `to`.

        Raises:
            ArgumentError: If one is not.
        """
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= to:
                raise ArgumentError(f"{name} must be an integer from 1 to {to}; got {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: code, name and thresholds."""
        thresholds = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"code": self.code, "symptom": type(self).__name__, **thresholds}


CODES: dict[str, type[Symptom]] = {}
"""Every symptom by its code."""

_S = TypeVar("_S", bound=type[Symptom])


def register(symptom: _S) -> _S:
    """Class decorator: enters a symptom under its code.

    Raises:
        ArgumentError: If the code is not "RN2" (training) or "RN3" (data and configuration) and
            two digits, is taken, or the class has no docstring.
    """
    code = getattr(symptom, "code", "")
    if len(code) != 5 or not code.startswith(("RN2", "RN3")) or not code[3:].isdigit():
        raise ArgumentError(
            f"code of {symptom.__name__} must be RN2 or RN3 and two digits; got {code!r}."
        )
    if code in CODES:
        raise ArgumentError(f"code {code} is taken by {CODES[code].__name__}; choose a new one.")
    if not symptom.__doc__ or symptom.__doc__.startswith(f"{symptom.__name__}("):
        raise ArgumentError(f"{symptom.__name__} has no docstring; it is the page of {code}.")
    CODES[code] = symptom
    return symptom
