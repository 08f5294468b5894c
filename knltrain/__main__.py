"""`python -m knltrain` is the `knltrain` command."""

import sys

from .cli import main

sys.exit(main())
