"""`python -m modeling_ofa.cli` is the `ofa` command."""

import sys

from . import main


sys.exit(main())
