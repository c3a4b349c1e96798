"""python -m minilora"""

import sys

from .cli import main

sys.exit(main())
