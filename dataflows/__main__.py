"""`python -m dataflows` and the console script `headrace`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code: 0 done, 2 bad use or settings, 1 failed."""
    from dataflows.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
