"""Entry point of `python -m embedmask`."""

import sys

from embedmask.cli.entry import main

sys.exit(main())
