"""The collator on literal tensors."""

from __future__ import annotations

import pytest
import torch

from parallelmind.columnar import build_columnar_causal_mask, pack_row
from parallelmind.data.collator import MicroBatch, ParallelPretrainCollator, TrainingRow

PAD = 99
FIRST = TrainingRow(
    pack_row([1, 2], [[3, 4, 5], [6]], branch_numbers=[2, 5]),
    torch.tensor([False, False, False, True, True, True]),
    ("data.jsonl line 1",),
)
SECOND = TrainingRow(pack_row([], [[7, 8], [9]]), torch.tensor([True, True, True]), ("data.jsonl line 2",))


def test_a_batch_of_two_rows() -> None:
    batch = ParallelPretrainCollator(PAD, stride=10)(MicroBatch([FIRST, SECOND], {"epoch": 0}, last=True))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, PAD, PAD, PAD]]
    assert batch["position_ids"].tolist() == [
        [[0, 0], [0, 1], [20, 2], [20, 3], [20, 4], [50, 2]],
        [[10, 0], [10, 1], [20, 0], [-1, 0], [-1, 0], [-1, 0]],
    ]
    assert batch["attention_mask"].dtype == torch.int32
    assert batch["attention_mask"].tolist() == [
        [[[0, 0, 0], [0, 1, 0], [2, 2, 0], [2, 3, 0], [2, 4, 0], [5, 2, 0]]],
        [[[1, 0, 0], [1, 1, 0], [2, 0, 0], [-1, 0, 0], [-1, 0, 0], [-1, 0, 0]]],
    ]
    assert batch["labels"].tolist() == [[-100, -100, -100, 4, 5, 6], [7, 8, 9, -100, -100, -100]]
    # 7 and 9 are supervised, but follow from nothing. 3 and 6 follow from main's last token; 3 is not supervised.
    assert batch["shift_labels"].tolist() == [[-100, -100, 4, 5, -100, -100], [8, -100, -100, -100, -100, -100]]
    assert batch["branch_starts"].tolist() == [[0, 1, 6]]
    info = batch["info"]
    assert (info.useful_tokens, info.padded_tokens, info.supervised_tokens) == (9, 12, 4)
    assert info.sources == ("data.jsonl line 1", "data.jsonl line 2")
    assert (info.state, info.last) == ({"epoch": 0}, True)


def test_first_tokens_follow_from_main_only_where_it_is_seen() -> None:
    batch = ParallelPretrainCollator(PAD, visibility="strict")([FIRST, SECOND])
    assert batch["branch_starts"].tolist() == []
    assert batch["branch_starts"].shape == (0, 3)
    assert batch["info"].supervised_tokens == 3


def test_one_axis_and_a_length_that_blocks_divide() -> None:
    batch = ParallelPretrainCollator(PAD, two_axes=False, pad_to_multiple_of=8)([FIRST])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 0, 0]]
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, PAD, PAD]]


def test_the_dense_mask_is_the_columnar_one() -> None:
    for visibility in ("isolated", "columnar", "strict"):
        collator = ParallelPretrainCollator(PAD, stride=10, visibility=visibility, dense_mask=True)  # type: ignore[arg-type]
        batch = collator([FIRST, SECOND])
        expected = build_columnar_causal_mask(batch["position_ids"], visibility=visibility)  # type: ignore[arg-type]
        assert torch.equal(batch["attention_mask"], expected)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        ParallelPretrainCollator(PAD)([])


def test_rows_behind_one_another_in_a_sequence() -> None:
    """Each begins anew in time and branch; a branch that has the number of the one before it, too."""
    third = TrainingRow(pack_row([], [[3, 4]], branch_numbers=[5]), torch.tensor([True, True]))
    last = TrainingRow(pack_row([6, 7], [[8]]), torch.tensor([False, False, True]))
    batch = ParallelPretrainCollator(PAD, stride=10)(MicroBatch([FIRST, third, last, SECOND], sequences=[3, 1]))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 3, 4, 6, 7, 8], [7, 8, 9] + [PAD] * 8]
    assert batch["position_ids"][0].tolist() == [
        *([0, 0], [0, 1], [20, 2], [20, 3], [20, 4], [50, 2]),
        *([50, 0], [50, 1]),
        *([0, 0], [0, 1], [10, 2]),
    ]
    assert batch["attention_mask"][0, 0, :, 2].tolist() == [0] * 6 + [1] * 2 + [2] * 3
    assert batch["shift_labels"][0].tolist() == [-100, -100, 4, 5, -100, -100, 4, -100, -100, -100, -100]
    assert batch["branch_starts"].tolist() == [[0, 1, 6], [0, 9, 8]]
    dense = ParallelPretrainCollator(PAD, stride=10, dense_mask=True)(MicroBatch([FIRST, third, last], sequences=[3]))
    seen = dense["attention_mask"][0, 0] == 0
    assert not seen[6:8, :6].any()
    assert not seen[8:, :8].any()
    assert seen[8:, 8:].tolist() == torch.ones(3, 3).tril().bool().tolist()
