"""Runs symptoms over the readings of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from ranum.errors import ArgumentError, RanumWarning
from ranum.guards.symptoms.base import Symptom
from ranum.guards.symptoms.window import Window
from ranum.guards.types import Finding, Reading

_AGAIN = 200


class Monitor:
    """Runs symptoms over a stream of readings.

    Faults are reported every time. A warning is reported once for a place and again only
    after it had been away for 200 readings. A symptom that raises is reported once, as a
    `RanumWarning` and in `internal_faults`, and not asked again.

    Args:
        symptoms: The rules to run.
        strict: Raise what a symptom raises, instead of switching it off.

    Raises:
        ArgumentError: If something in `symptoms` is not a symptom.
    """

    def __init__(self, symptoms: Iterable[Symptom], *, strict: bool = False) -> None:
        self.symptoms: tuple[Symptom, ...] = tuple(symptoms)
        for symptom in self.symptoms:
            if not isinstance(symptom, Symptom):
                raise ArgumentError(
                    f"symptoms must be Symptom instances; got {symptom!r}. "
                    "Pass objects, as in NonFinite()."
                )
        self.strict = strict
        self.window = Window()
        self.internal_faults: list[str] = []
        self._active = list(self.symptoms)
        self._seen: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"Monitor({list(self.symptoms)!r}, strict={self.strict})"

    def silence(self, code: str) -> None:
        """Runs the symptoms of a code no more."""
        self._active = [symptom for symptom in self._active if symptom.code != code]

    def observe(self, reading: Reading) -> tuple[Finding, ...]:
        """Takes up a reading and returns what is new about it, faults first."""
        window = self.window
        window.add(reading)
        findings: list[Finding] = []
        broken: list[Symptom] = []
        for symptom in self._active:
            if symptom.needs == "sample":
                if not reading.is_sampled:
                    continue
            elif symptom.every > 1 and window.count % symptom.every:
                continue
            try:
                finding = symptom.check(window)
            except Exception as error:
                if self.strict:
                    raise
                broken.append(symptom)
                self._report(symptom, error)
                continue
            if finding is not None and self._is_new(finding):
                findings.append(finding)
        if broken:
            self._active = [s for s in self._active if not any(s is b for b in broken)]
        return tuple(sorted(findings, key=lambda finding: finding.severity != "fault"))

    def reset(self, to_step: int) -> None:
        """Forgets the readings of `to_step` and later, as after a rollback to it."""
        self.window.reset(to_step)

    def _is_new(self, finding: Finding) -> bool:
        key, now = (finding.code, finding.where), self.window.count
        before = self._seen.get(key)
        self._seen[key] = now
        return finding.severity == "fault" or before is None or now - before > _AGAIN

    def _report(self, symptom: Symptom, error: Exception) -> None:
        name = type(symptom).__name__
        line = f"{name} ({symptom.code}) is switched off: {type(error).__name__}: {error}"
        self.internal_faults.append(line)
        warnings.warn(f"{line}. Training is not affected.", RanumWarning, stacklevel=3)
