"""`python -m parallelmind` is the `parallelmind` command."""

import os
import sys

# Python searches the current folder first then, and a json.py in there would take the place of its own.
if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from parallelmind.cli.main import program

program()
