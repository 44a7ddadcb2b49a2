"""`python -m tamt` is `tamt`."""

import sys

from tamt.cli import main

sys.exit(main())
