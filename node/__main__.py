"""`python -P -m node` is the same program as `carechain`."""

import sys

from node.cli.main import main

sys.exit(main())
