"""The pictures of a row say what the model gets: positions, visibility, tokens."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from parallelmind.columnar import PAD_BRANCH, VISIBILITIES, PackedRow, pack_row, visible
from parallelmind.errors import SettingsError
from parallelmind.visuals import row_picture
from parallelmind.visuals.fonts import Fonts
from parallelmind.visuals.grid import branch_colour, row_grid
from parallelmind.visuals.row_picture import draw_masks, draw_row
from parallelmind.visuals.token_grid import mask_text, terminal_picture
from parallelmind.visuals.tokens import readable, token_texts
from tests.families import char_tokenizer
from tests.random_model import save_random_model

ROW = pack_row([1, 2, 3], [[4, 5], [6, 7, 8]], branch_numbers=[2, 5])
TOKENS = ["the", "·main", "⏎", "a", "红烧肉", "c", "d", "e"]


def grid(visibility="isolated", row=ROW, tokens=TOKENS, **options):
    return row_grid(row, tokens, stride=128, visibility=visibility, **options)


def printed(renderable, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_the_grid_has_the_positions_of_the_row():
    drawn = grid(loss_mask=torch.tensor([0, 0, 0, 0, 1, 0, 0, 1]))
    assert [cell.text for cell in drawn.main] == TOKENS[:3]
    assert [(column.number, column.position) for column in drawn.columns] == [(2, 256), (5, 640)]
    assert [cell.time for cell in drawn.columns[1].cells] == [3, 4, 5]
    assert [cell.text for column in drawn.columns for cell in column.cells if cell.supervised] == ["红烧肉", "e"]
    assert drawn.summary == "8 tokens = 3 of main + 5 in 2 branches"
    with pytest.raises(ValueError, match="8 tokens need as many texts, got 2"):
        grid(tokens=["a", "b"])


def test_padding_is_left_out():
    padded = PackedRow(
        input_ids=torch.cat([ROW.input_ids, torch.tensor([0, 0])]),
        branch_ids=torch.cat([ROW.branch_ids, torch.tensor([PAD_BRANCH] * 2)]),
        time_ids=torch.cat([ROW.time_ids, torch.tensor([0, 0])]),
    )
    drawn = grid(row=padded, tokens=[*TOKENS, "<pad>", "<pad>"])
    assert drawn.branch_of == grid().branch_of
    assert torch.equal(drawn.seen(), grid().seen())


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_the_mask_of_the_png_is_the_mask_of_the_model(visibility):
    drawn = grid(visibility)
    image = row_picture._mask_image(drawn, 8 * 4)  # four pixels a cell
    expected = visible(ROW.branch_ids, ROW.time_ids, ROW.branch_ids, ROW.time_ids, visibility)
    shown = [[image.getpixel((4 * key, 4 * query)) != row_picture._HIDDEN for key in range(8)] for query in range(8)]
    assert shown == expected.tolist()


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("width", [40, 18])
def test_the_mask_of_the_terminal_is_the_mask_of_the_model(visibility, width):
    """As blocks and, where the room is too small for them, as braille dots."""
    row = pack_row(range(4), [range(3), range(6)])
    drawn = grid(visibility, row, [str(i) for i in range(13)])
    lines = printed(mask_text(drawn, width=width), width=60).splitlines()
    lines = [line[7:] for line in lines[-(7 if width == 40 else 4) :]]
    shown = []
    for line in lines:
        if width == 40:
            codes = [" ▀▄█".index(c) for c in line.ljust(13)]
            shown += [[bool(code >> place & 1) for code in codes] for place in range(2)]
        else:
            codes = [ord(c) - 0x2800 if c != " " else 0 for c in line.ljust(7)]
            for left, right in ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80)):
                shown.append([bool(code & bit) for code in codes for bit in (left, right)][:13])
    assert shown[:13] == drawn.seen().tolist()


def test_the_terminal_picture_reads_without_colours():
    text = printed(terminal_picture(grid(loss_mask=[0, 0, 0, 0, 1, 0, 0, 1])))
    for part in ("the│·main│⏎", "branch 2", "position 256", "position 640", "红烧肉 *", "branch id 0"):
        assert part in text
    assert [line.split("│")[1:4] for line in text.splitlines() if " 5 │" in line] == [
        ["     5 ", " " * 18, " e *              "]
    ]


def test_long_rows_are_shortened_and_say_so():
    row = pack_row(range(500), [range(100), range(3)])
    text = printed(terminal_picture(grid(row=row, tokens=["t"] * 603)))
    assert "… 340 more tokens …" in text
    assert "… 52 more" in text
    assert "4 tokens a dot" in text or "5 tokens a dot" in text


@pytest.mark.parametrize("branches", [1, 14])
def test_pngs_of_small_and_large_rows(tmp_path, branches):
    row = pack_row(range(230), [range(2 + 40 * (number == 0)) for number in range(branches)])
    drawn = [grid(visibility, row, ["token"] * len(row)) for visibility in VISIBILITIES]
    assert draw_row(drawn[0], tmp_path / "new" / "row.png", title="A title " * 30) is None
    assert draw_masks(drawn, tmp_path / "masks.png", title="m") is None
    from PIL import Image

    for name in ("new/row.png", "masks.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width == 1800
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.png", "new"]


def test_a_short_branch_in_a_long_row(tmp_path):
    """Its mark beside the mask is less than a pixel wide."""
    row = pack_row(range(1500), [[1], range(3)])
    drawn = grid(row=row, tokens=["token"] * len(row))
    draw_row(drawn, tmp_path / "row.png", title="long")
    assert (tmp_path / "row.png").stat().st_size > 10_000
    few = drawn.pooled(500)
    assert few.tolist() == [[True, False, False, False], [True, True, False, False], [True] * 3 + [False], [True] * 4]


def test_no_main(tmp_path):
    row = pack_row([], [[1, 2], [3, 4]])
    drawn = grid(row=row, tokens=list("abcd"))
    draw_row(drawn, tmp_path / "row.png", title="no main")
    assert "branch id 0" not in printed(terminal_picture(drawn))


def test_characters_that_no_font_has_are_numbers_and_named(tmp_path):
    hieroglyph = "\U00013000"
    found = Fonts()
    if not found._files[False]:
        pytest.skip("no font at all")
    assert [piece for piece, _ in found.runs(f"a{hieroglyph}", 12)] == ["aU+13000"]
    assert hieroglyph in found.note()
    assert "--font" in found.note()
    drawn = grid(tokens=[*TOKENS[:-1], hieroglyph])
    assert "apt install" in draw_row(drawn, tmp_path / "row.png", title="t")
    with pytest.raises(SettingsError, match="--font"):
        Fonts(str(tmp_path / "none.ttf"))


def test_an_unwritable_place_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"row.png cannot be written"):
        draw_row(grid(), tmp_path / "file" / "row.png", title="t")


def test_token_texts_are_readable(tmp_path):
    from transformers import AutoTokenizer

    assert token_texts(char_tokenizer(), [3, 2]) == ["!", "<eos>"]
    assert readable(" a\n\x07\u3000") == "·a⏎‹7›□"
    tokenizer = AutoTokenizer.from_pretrained(save_random_model(tmp_path))
    ids = tokenizer("a 小")["input_ids"]
    assert token_texts(tokenizer, ids) == ["a", "·", "‹e5›", "‹b0›", "‹8f›"]


def test_colours_repeat_but_main_has_its_own():
    assert branch_colour(1) == branch_colour(9) != branch_colour(2)
    assert branch_colour(0) not in {branch_colour(number) for number in range(1, 9)}
