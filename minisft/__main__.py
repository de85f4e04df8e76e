"""The command `minisft`, and `python -m minisft` for a plain checkout."""

import sys

from minisft.cli import main

if __name__ == "__main__":
    sys.exit(main())
