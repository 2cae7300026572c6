"""`python -m parallelmind` is the `parallelmind` command."""

from parallelmind.cli.main import program

program()
