"""Every parameter, byte and FLOP of a training step: of a model without weights, or of a live one."""

from . import audit, report
from .count import Account, count
from .flops import association_orders, break_even_rank, flops
from .live import adapter_parameters, count_parameters, executed_flops, memory, nbytes
from .memory import adapter_bytes, ledger, nf4_bits, step_costs, weight_bytes
from .methods import METHODS
from .named import NAMED, without_weights
from .report import to_dict

__all__ = [
    "METHODS",
    "NAMED",
    "Account",
    "adapter_bytes",
    "adapter_parameters",
    "association_orders",
    "audit",
    "break_even_rank",
    "count",
    "count_parameters",
    "executed_flops",
    "flops",
    "ledger",
    "memory",
    "nbytes",
    "nf4_bits",
    "report",
    "step_costs",
    "to_dict",
    "weight_bytes",
    "without_weights",
]
