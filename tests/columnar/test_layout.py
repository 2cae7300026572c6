"""Positions and labels, against literal rows."""

import pytest
import torch

from parallelmind.columnar import IGNORE_INDEX, PAD_BRANCH, branch_starts, pack_row, pos2d_ids, shift_labels


def test_a_row_is_main_then_each_branch_from_the_end_of_main() -> None:
    row = pack_row([10, 11, 12], [[20, 21], [30], []])
    assert row.input_ids.tolist() == [10, 11, 12, 20, 21, 30]
    assert row.branch_ids.tolist() == [0, 0, 0, 1, 1, 2]
    assert row.time_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert row.pos2d(128).tolist() == [[0, 0], [0, 1], [0, 2], [128, 3], [128, 4], [256, 3]]
    assert len(row) == 6


def test_without_a_main_branches_start_at_time_0() -> None:
    assert pack_row([], [[1, 2], [3]]).time_ids.tolist() == [0, 1, 0]


def test_branches_keep_their_number_when_a_record_is_split() -> None:
    row = pack_row([1], [[2], [3]], branch_numbers=[5, 7])
    assert row.pos2d(10).tolist() == [[0, 0], [50, 1], [70, 1]]


@pytest.mark.parametrize("numbers", [[1], [1, 1], [0, 1], [-1, 2], [1, 2, 3]])
def test_wrong_branch_numbers_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="branch_numbers"):
        pack_row([1], [[2], [3]], branch_numbers=numbers)


def test_padding_keeps_branch_position_minus_1() -> None:
    pos2d = pos2d_ids(torch.tensor([0, 2, PAD_BRANCH]), torch.tensor([0, 1, 0]), 64)
    assert pos2d.tolist() == [[0, 0], [128, 1], [-1, 0]]


def test_labels_are_the_next_token_of_the_same_branch() -> None:
    row = pack_row([10, 11, 12], [[20, 21], [30], [40, 41, 42]])
    none = IGNORE_INDEX
    expected = [11, 12, none, 21, none, none, 41, 42, none]
    assert shift_labels(row.input_ids, row.branch_ids).tolist() == expected
    loss_mask = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 1])
    expected = [none, none, none, 21, none, none, none, 42, none]
    assert shift_labels(row.input_ids, row.branch_ids, loss_mask).tolist() == expected


def test_padding_is_never_a_label() -> None:
    ids, branches = torch.tensor([[5, 6, 0, 0]]), torch.tensor([[1, 1, PAD_BRANCH, PAD_BRANCH]])
    assert shift_labels(ids, branches).tolist() == [[6, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]


def test_first_tokens_of_branches_follow_from_the_last_of_main() -> None:
    first = pack_row([1, 2, 3], [[4, 5], [6], [7, 8]], branch_numbers=[3, 1, 2])
    second = pack_row([], [[9, 10], [11]])
    third = pack_row([12], [[13]])
    rows = [first, second, third]
    ids = torch.zeros(3, 8, dtype=torch.long)
    branches = torch.full((3, 8), PAD_BRANCH)
    for index, row in enumerate(rows):
        ids[index, : len(row)], branches[index, : len(row)] = row.input_ids, row.branch_ids
    assert branch_starts(ids, branches).tolist() == [[0, 2, 4], [0, 2, 6], [0, 2, 7], [2, 0, 13]]
    loss_mask = torch.ones_like(ids, dtype=torch.bool)
    loss_mask[0, 3] = False
    assert branch_starts(ids, branches, loss_mask).tolist() == [[0, 2, 6], [0, 2, 7], [2, 0, 13]]
    assert branch_starts(ids[1:2], branches[1:2]).shape == (0, 3)
