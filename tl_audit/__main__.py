"""``python -m tl_audit``: the same as ``tl-audit``."""

import sys

from tl_audit.cli import main

if __name__ == "__main__":
    sys.exit(main())
