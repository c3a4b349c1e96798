"""Is a hand-written gradient right, and if not, what is wrong with it?"""

from .check import Report, Row, check_backward, check_gradient, check_model
from .diagnose import Diagnosis, Finding, diagnose
from .problem import Case, Fault, Problem, Words

__all__ = [
    "Case",
    "Diagnosis",
    "Fault",
    "Finding",
    "Problem",
    "Report",
    "Row",
    "Words",
    "check_backward",
    "check_gradient",
    "check_model",
    "diagnose",
]
