"""``python -m cluster``: the same program as ``lookalike``."""

import sys

from cluster.cli import main

sys.exit(main())
