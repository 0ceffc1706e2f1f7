"""Faults put into running trainings, and what becomes of the runs."""
