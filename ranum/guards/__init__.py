"""During training: readings, symptoms, the culprit, snapshots and recovery."""

from __future__ import annotations

from ranum.guards.base import GuardBase
from ranum.guards.culprit import find_culprit
from ranum.guards.decision import Decision, TrainingStopped
from ranum.guards.guard import Guard, Step
from ranum.guards.incident_file import IncidentFile, load_incident, save_incident
from ranum.guards.readings import TorchReader
from ranum.guards.recovery import (
    ClipGradients,
    Fault,
    Ladder,
    Outcome,
    Remedy,
    Retry,
    Rollback,
    Skip,
    Stop,
    default_remedies,
)
from ranum.guards.snapshot import Snapshots
from ranum.guards.symptoms import Monitor, Symptom, default_symptoms
from ranum.guards.types import (
    ActivationReading,
    Culprit,
    Extremes,
    Finding,
    History,
    Incident,
    Reading,
)

__all__ = [
    "ActivationReading",
    "ClipGradients",
    "Culprit",
    "Decision",
    "Extremes",
    "Fault",
    "Finding",
    "Guard",
    "GuardBase",
    "History",
    "Incident",
    "IncidentFile",
    "Ladder",
    "Monitor",
    "Outcome",
    "Reading",
    "Remedy",
    "Retry",
    "Rollback",
    "Skip",
    "Snapshots",
    "Step",
    "Stop",
    "Symptom",
    "TorchReader",
    "TrainingStopped",
    "default_remedies",
    "default_symptoms",
    "find_culprit",
    "load_incident",
    "save_incident",
]
