"""`parallelmind show`: draw the packed row of a record."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallelmind.cli.args import documented_default
from parallelmind.errors import DataError, SettingsError, first_line
from parallelmind.models.options import DEFAULT_BRANCH_STRIDE, model_path

if TYPE_CHECKING:
    from parallelmind.columnar import Visibility
    from parallelmind.data.encoder import DataCounts
    from parallelmind.data.samples import Sample
    from parallelmind.visuals.grid import RowGrid


EPILOG = """\
The row is drawn as training packs it: main, then every branch; answers are closed with the end-of-text token.
Records may have any form that training takes: {"main", "branches"} with texts, {"prompt", "completion"} or
{"messages"}; {"text"}; {"conversations"}. In the picture · is a space and ⏎ a line end; a token that is only
a part of a character is shown by its bytes, such as ‹e5 b0›.
"""
_ALL = "all"
_LOGGER = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("records", type=Path, metavar="RECORDS", help="the records, JSONL")
    parser.add_argument(
        "--index", type=int, default=0, metavar="N", help=documented_default("number of the record, from 0", 0)
    )
    parser.add_argument(
        "--base_model",
        default="tiny",
        metavar="MODEL",
        help=documented_default("the model whose tokenizer splits the text: hub name or folder", "tiny"),
    )
    parser.add_argument(
        "--branch_stride",
        "--stride",
        type=int,
        default=DEFAULT_BRANCH_STRIDE,
        metavar="N",
        help=documented_default("branch position = branch id x stride", DEFAULT_BRANCH_STRIDE),
    )
    parser.add_argument(
        "--visibility",
        choices=["isolated", "columnar", "strict", _ALL],
        default="isolated",
        help=documented_default("what a branch sees; all: the three masks", "isolated"),
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the picture to this file as well")
    parser.add_argument("--font", metavar="FILE", help="font for the PNG (default: the system's)")


def run(args: argparse.Namespace) -> int:
    """Draw on the terminal, and as PNG if asked."""
    from rich.console import Console

    from parallelmind.visuals.token_grid import mask_text, terminal_picture

    if args.branch_stride < 0:
        raise SettingsError(f"--branch_stride is {args.branch_stride}; it must be 0 or more.")
    if args.png is not None and find_spec("PIL") is None:
        raise SettingsError("--png needs Pillow, which is not installed; run: pip install 'parallelmind[show]'")
    grids = _grids(args)
    console = Console(highlight=False)
    title = f"record {args.index} of {args.records.name}"
    console.print(f"[bold]{title}[/bold]: {grids[0].summary}, stride {args.branch_stride}")
    console.print(terminal_picture(grids[0], width=console.width))
    for grid in grids[1:]:
        console.print(mask_text(grid, width=console.width))
    if args.png is not None:
        from parallelmind.visuals.row_picture import draw_masks, draw_row

        if len(grids) > 1:
            note = draw_masks(grids, args.png, title=f"Who sees whom: {title}", font=args.font)
        else:
            note = draw_row(grids[0], args.png, title=title, font=args.font)
        if note:
            _LOGGER.warning("%s", note)
        _LOGGER.info("the picture is in %s", args.png)
    return 0


def _grids(args: argparse.Namespace) -> list[RowGrid]:
    from parallelmind.columnar import VISIBILITIES
    from parallelmind.data.encoder import DataCounts
    from parallelmind.data.samples import parse_sample

    fields, where = _record(args.records, args.index)
    sample = parse_sample(fields, where)
    tokenizer = _tokenizer(args.base_model)
    counts = DataCounts()
    chosen = VISIBILITIES if args.visibility == _ALL else (args.visibility,)
    grids = [_grid(sample, tokenizer, args.branch_stride, visibility, counts) for visibility in chosen]
    for note in dict.fromkeys(counts.notes):
        _LOGGER.warning("%s", note)
    return grids


def _grid(sample: Sample, tokenizer: Any, stride: int, visibility: Visibility, counts: DataCounts) -> RowGrid:
    from parallelmind.columnar import pack_row, sees_main
    from parallelmind.data.encoder import SampleEncoder
    from parallelmind.visuals.grid import row_grid
    from parallelmind.visuals.tokens import token_texts

    encoder = SampleEncoder(tokenizer, max_seq_len=2**31, sees_main=sees_main(visibility))
    encoded = encoder.encode(sample, counts)
    if encoded is None:
        raise DataError(f"{sample.where}: no branch has a token to learn, so there is nothing to draw.")
    row = pack_row(
        encoded.main,
        [branch.ids for branch in encoded.branches],
        branch_numbers=[branch.number for branch in encoded.branches],
    )
    learned = [False] * len(encoded.main)
    for branch in encoded.branches:
        learned += [bool(mark) for mark in branch.learned]
    tokens = token_texts(tokenizer, row.input_ids.tolist())
    return row_grid(row, tokens, stride=stride, visibility=visibility, learned=learned)


def _record(path: Path, index: int) -> tuple[Mapping[str, Any], str]:
    from parallelmind.data.sources import JsonlSource
    from parallelmind.io.jsonl import scan

    if index < 0:
        raise SettingsError(f"--index is {index}; it must be 0 or more.")
    row = next(JsonlSource(path).read(index), None)
    if row is None:
        raise SettingsError(f"--index is {index}, but {path} has {scan(path).records} records, the first being 0.")
    return row.fields, row.where


def _tokenizer(base_model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_path(base_model))
    except Exception as error:  # tokenizers has no type of its own
        raise SettingsError(
            f"--base_model {base_model}: its tokenizer cannot be loaded ({first_line(error)}). Check the spelling and "
            "the network, or give a folder; --base_model tiny is the bundled one."
        ) from error
