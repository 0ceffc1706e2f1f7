"""The defect rules, one family a file, and the search for defects in a graph."""

from ranum.analysis.defects.base import CODES, DefectRule, Problem, defect_rule
from ranum.analysis.defects.division import DivisionByZero
from ranum.analysis.defects.emptiness import EmptyReduction
from ranum.analysis.defects.exponential import ExpOverflow
from ranum.analysis.defects.find import find_defects
from ranum.analysis.defects.function import FunctionDomain
from ranum.analysis.defects.gradient import InfiniteGradient
from ranum.analysis.defects.infinities import MeetingInfinities
from ranum.analysis.defects.logarithm import LogDomain
from ranum.analysis.defects.masking import FullyMasked
from ranum.analysis.defects.overflow import Overflow
from ranum.analysis.defects.power import PowerDomain
from ranum.analysis.defects.root import RootDomain

__all__ = [
    "CODES",
    "DefectRule",
    "DivisionByZero",
    "EmptyReduction",
    "ExpOverflow",
    "FullyMasked",
    "FunctionDomain",
    "InfiniteGradient",
    "LogDomain",
    "MeetingInfinities",
    "Overflow",
    "PowerDomain",
    "Problem",
    "RootDomain",
    "defect_rule",
    "find_defects",
]
