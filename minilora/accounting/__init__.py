"""Every parameter, byte and FLOP: by formula for any model, by counting for a live one."""

from . import audit, report
from .architecture import Architecture
from .count import Account, count
from .flops import association_orders, break_even_rank, flops
from .live import count_parameters, describe, executed_flops, lora_parameters, memory, nbytes
from .memory import adapter_bytes, ledger, nf4_bits, weight_bytes
from .methods import METHODS, Plan, plan
from .named import NAMED, architecture
from .report import to_dict

__all__ = [
    "METHODS",
    "NAMED",
    "Account",
    "Architecture",
    "Plan",
    "adapter_bytes",
    "architecture",
    "association_orders",
    "break_even_rank",
    "count",
    "count_parameters",
    "describe",
    "executed_flops",
    "flops",
    "ledger",
    "lora_parameters",
    "memory",
    "nbytes",
    "nf4_bits",
    "plan",
    "to_dict",
    "weight_bytes",
]
