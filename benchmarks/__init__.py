"""How fast is this next to PyTorch? Measured on the machine that asks, side by side, and each op beside its bound.

report = bench(["tiny", "small"], ["lora"], cores=[1])
show(report)
"""

from .figures import figure
from .report import bench, lengths, show
