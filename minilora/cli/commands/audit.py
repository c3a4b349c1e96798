"""Papers' printed numbers against their own formulas: which follow, and why the others may not."""

from ..models import print_json
from ..options import Add, Options

EXAMPLE = "minilora audit"


def arguments(add: Add) -> None:
    add("--json", action="store_true", help="print the rows as JSON")


def run(options: Options) -> None:
    from ...accounting.audit import rows, show_audit

    found = list(rows())
    if options.json:
        print_json([row.to_dict() for row in found])
    else:
        show_audit(found)
