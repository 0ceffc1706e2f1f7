"""The drawings of the HTML report, from the values that analysis, guards and repair give."""

from ranum.report.charts.bounds import BoundRow, bound_rows, observed_extremes
from ranum.report.charts.layers import gradients, symptoms
from ranum.report.charts.timeline import timeline
from ranum.report.charts.trials import trials

__all__ = [
    "BoundRow",
    "bound_rows",
    "gradients",
    "observed_extremes",
    "symptoms",
    "timeline",
    "trials",
]
