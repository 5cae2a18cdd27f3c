"""Entry point of `python -m embedmask.cli`."""

import sys

from embedmask.cli.entry import main

sys.exit(main())
