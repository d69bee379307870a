"""`python -m tfp_bprune`: the command line."""

from __future__ import annotations

import sys

from tfp_bprune.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
