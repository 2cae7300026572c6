"""`parallelmind show`: draw the packed row of a record."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from parallelmind.cli.flags import add_settings, given
from parallelmind.errors import DataError, SettingsError
from parallelmind.settings.model import DEFAULT_STRIDE, TINY_MODEL
from parallelmind.settings.setting import Flag, Setting, Settings
from parallelmind.settings.visibility import VISIBILITIES, Visibility

if TYPE_CHECKING:
    from parallelmind.data.encoder import DataCounts
    from parallelmind.data.samples import Sample
    from parallelmind.visuals.grid import RowGrid


EPILOG = """\
The row is drawn as training packs it: main, then every branch; answers are closed with the end-of-text token.
Records may have any form that training takes: {"main", "branches"} with texts, {"prompt", "completion"} or
{"messages"}; {"text"}; {"conversations"}. In the picture · is a space and ⏎ a line end; a token that is only
a part of a character is shown by its bytes, such as ‹e5 b0›.
"""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Settings):
    """What is drawn and how; the names are the flags.

    Raises:
        SettingsError: a value is out of range.
    """

    index: Annotated[int, Ge(0), Setting("number of the record, from 0")] = 0
    base_model: Annotated[
        str, Setting("the model whose tokenizer splits the text: Hub name or folder", flag=Flag(metavar="MODEL"))
    ] = TINY_MODEL
    branch_stride: Annotated[
        int, Ge(0), Setting("branch position = branch id x stride", flag=Flag(also=("--stride",)))
    ] = DEFAULT_STRIDE
    visibility: Annotated[Literal[Visibility, "all"], Setting("what a branch sees; all: the masks of all of them")] = (
        "isolated"
    )
    png: Annotated[Path | None, Setting("write the picture to this file as well")] = None
    font: Annotated[str | None, Setting("font for the PNG", default="the system's", flag=Flag(metavar="FILE"))] = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("records", type=Path, metavar="RECORDS", help="the records, JSONL")
    add_settings(parser, ShowOptions)


def run(args: argparse.Namespace) -> int:
    """Draw on the terminal, and as PNG if asked."""
    from rich.console import Console

    from parallelmind.visuals.token_grid import mask_text, terminal_picture

    options = ShowOptions(**given(args, ShowOptions))
    if options.png is not None and find_spec("PIL") is None:
        raise SettingsError("--png needs Pillow, which is not installed; run: pip install 'parallelmind[show]'")
    grids = _grids(args.records, options)
    console = Console(highlight=False)
    title = f"record {options.index} of {args.records.name}"
    console.print(f"[bold]{title}[/bold]: {grids[0].summary}, stride {options.branch_stride}")
    console.print(terminal_picture(grids[0], width=console.width))
    for grid in grids[1:]:
        console.print(mask_text(grid, width=console.width))
    if options.png is not None:
        from parallelmind.visuals.row_picture import draw_masks, draw_row

        if len(grids) > 1:
            note = draw_masks(grids, options.png, title=f"Who sees whom: {title}", font=options.font)
        else:
            note = draw_row(grids[0], options.png, title=title, font=options.font)
        if note:
            _LOGGER.warning("%s", note)
        _LOGGER.info("the picture is in %s", options.png)
    return 0


def _grids(records: Path, options: ShowOptions) -> list[RowGrid]:
    from parallelmind.data.encoder import DataCounts
    from parallelmind.data.samples import parse_sample
    from parallelmind.models.loader import load_tokenizer_from

    fields, where = _record(records, options.index)
    sample = parse_sample(fields, where)
    tokenizer = load_tokenizer_from(options.base_model)
    counts = DataCounts()
    chosen = VISIBILITIES if options.visibility == "all" else (options.visibility,)
    grids = [_grid(sample, tokenizer, options.branch_stride, visibility, counts) for visibility in chosen]
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
        raise DataError(f"{sample.where}: no branch has a supervised token, so there is nothing to draw.")
    row = pack_row(
        encoded.main,
        [branch.ids for branch in encoded.branches],
        branch_numbers=[branch.number for branch in encoded.branches],
    )
    loss_mask = [False] * len(encoded.main)
    for branch in encoded.branches:
        loss_mask += [bool(mark) for mark in branch.loss_mask]
    tokens = token_texts(tokenizer, row.input_ids.tolist())
    return row_grid(row, tokens, stride=stride, visibility=visibility, loss_mask=loss_mask)


def _record(path: Path, index: int) -> tuple[Mapping[str, Any], str]:
    from parallelmind.data.sources import JsonlSource
    from parallelmind.io.jsonl import scan

    row = next(JsonlSource(path).read(index), None)
    if row is None:
        raise SettingsError(f"--index is {index}, but {path} has {scan(path).records} records, the first being 0.")
    return row.fields, row.where
