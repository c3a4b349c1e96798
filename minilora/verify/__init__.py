"""Is a hand-written gradient right?"""

from .check import Report, Row, check_gradient, check_model

__all__ = ["Report", "Row", "check_gradient", "check_model"]
