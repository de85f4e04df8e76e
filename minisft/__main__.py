"""`python -m minisft`, for a plain checkout."""

import sys

from minisft.cli import main

sys.exit(main())
