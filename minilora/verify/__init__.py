"""Is a hand-written gradient right, and if not, what is wrong with it?"""

from .case import Case
from .check import check_backward, check_gradient, check_model
from .diagnose import diagnose
from .diagnosis import Diagnosis
from .explanations.finding import Finding
from .problem import Factor, Fault, Problem
from .report import Report, Row

__all__ = [
    "Case",
    "Diagnosis",
    "Factor",
    "Fault",
    "Finding",
    "Problem",
    "Report",
    "Row",
    "check_backward",
    "check_gradient",
    "check_model",
    "diagnose",
]
