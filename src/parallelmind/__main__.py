"""`python -m parallelmind` is the `parallelmind` command."""

import sys

from parallelmind.cli.main import main

sys.exit(main())
