"""`python -m rnnfast`: the same as the console script `rnnfast`."""

import sys

from rnnfast.cli import main

sys.exit(main())
