"""Exercises: write LoRA and the layers around it by hand, with a teacher that names your mistake.

from minilora.practice import check

check("04", lora_backward)
"""

from .catalogue import exercise, exercises
from .checking import case, check, check_file
