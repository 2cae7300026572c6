"""`parallelmind serve`: a model behind an HTTP API and a web page."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from parallelmind.cli.flags import add_settings, given
from parallelmind.errors import SettingsError
from parallelmind.server.options import ServeOptions
from parallelmind.settings.setting import ENVIRONMENT_PREFIX

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, ServeOptions)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted or terminated; 0 if no request was cut off."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"serve needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; "
            "run: pip install 'parallelmind[serve]'"
        )
    from parallelmind.server.run import serve

    settings = given(args, ServeOptions)
    # Read here, so that --help shows no key.
    settings.setdefault("api_key", os.environ.get(f"{ENVIRONMENT_PREFIX}API_KEY") or None)
    return serve(ServeOptions(**settings))
