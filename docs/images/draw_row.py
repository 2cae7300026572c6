"""Draw docs/images/row.png and docs/images/masks.png: one packed row, and its mask under each visibility."""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from parallelmind.columnar import VISIBILITIES, PackedRow, Visibility, pack_row
from parallelmind.models.identity import bundled_model_path
from parallelmind.prompts.encode import closed, encode_branch, encode_main
from parallelmind.visuals.grid import RowGrid, row_grid
from parallelmind.visuals.row_picture import draw_masks, draw_row
from parallelmind.visuals.tokens import token_texts

MAIN = "Notes: Anna likes red. Ben lives in Paris. The lamp costs 35 dollars. 小明住在北京。小红养了一只猫。\n"
ASKED = (
    ("Which colour does Anna like?", " red"),
    ("Where does Ben live?", " Paris"),
    ("小明住在哪里?", "北京"),
    ("小红养了什么动物?", "猫"),
)
STRIDE = 128


def example_row() -> tuple[PackedRow, list[str], list[bool]]:
    """The row, the text of each token, and whether it is supervised."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    main = encode_main(tokenizer, MAIN)
    branches, loss_mask = [], [False] * len(main)
    for question, answer in ASKED:
        prompt = encode_branch(tokenizer, question, has_main=True)
        completion = closed(tokenizer, encode_branch(tokenizer, answer, has_main=True))
        branches.append(prompt + completion)
        loss_mask += [False] * len(prompt) + [True] * len(completion)
    row = pack_row(main, branches)
    return row, token_texts(tokenizer, row.input_ids.tolist()), loss_mask


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out_dir", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    row, tokens, loss_mask = example_row()

    def grid(visibility: Visibility) -> RowGrid:
        return row_grid(row, tokens, stride=STRIDE, visibility=visibility, loss_mask=loss_mask)

    notes = {
        draw_row(grid("isolated"), args.out_dir / "row.png", title="One packed row: a main and four branches"),
        draw_masks(
            [grid(visibility) for visibility in VISIBILITIES],
            args.out_dir / "masks.png",
            title="Who sees whom: the same row under the three visibilities",
        ),
    }
    for note in notes - {None}:
        print(note)


if __name__ == "__main__":
    main()
