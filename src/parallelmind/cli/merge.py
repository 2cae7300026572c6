"""`parallelmind merge`: a base model and its adapter as one model folder."""

from __future__ import annotations

import argparse
import dataclasses
import logging

from parallelmind.cli.flags import add_settings, given
from parallelmind.models.merge_options import MergeOptions

EPILOG = """\
The merged weights still need 2D RoPE if the adapter was trained with it. The folder says so:
parallelmind.json has the settings, which ParallelMind reads from --base_model, and README.md tells people.
"""

_LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_settings(parser, MergeOptions)


def run(args: argparse.Namespace) -> int:
    """Merge, and say what the folder needs."""
    from parallelmind.models.merge import merge_to_folder

    report = merge_to_folder(MergeOptions(**given(args, MergeOptions)))
    for note in report.notes:
        _LOGGER.info("%s", note)
    _LOGGER.info("%s parameters in %s are in %s", f"{report.parameters:,}", report.dtype, report.output_dir)
    if report.rope is None:
        _LOGGER.info("the adapter was trained without 2D RoPE: an ordinary model")
    else:
        settings = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(report.rope).items())
        _LOGGER.info("the model needs 2D RoPE (%s); --base_model %s turns it on by itself", settings, report.output_dir)
    return 0
