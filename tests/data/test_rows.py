import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelmind.data.rows import RowLimits, split_rows


def sizes(count: int, limits: RowLimits) -> list[int]:
    return [len(row) for row in split_rows([1] * count, limits, main_tokens=5)]


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(9, 4, [4, 4, 1]), (4, 4, [4]), (3, 4, [3]), (3, 1, [1, 1, 1])]
)
def test_fixed_mode_fills_rows(count: int, most: int, expected: list[int]) -> None:
    assert sizes(count, RowLimits(most=most)) == expected


@pytest.mark.parametrize(
    ("count", "most", "least", "expected"),
    [
        (9, 4, 3, [3, 3, 3]),
        (9, 4, 1, [3, 3, 3]),
        (5, 4, 3, [3, 2]),
        (2, 8, 3, [2]),
        (16, 16, 1, [16]),
        (17, 16, 1, [9, 8]),
    ],
)
def test_dynamic_mode_balances(count: int, most: int, least: int, expected: list[int]) -> None:
    assert sizes(count, RowLimits(most=most, least=least, balanced=True)) == expected


def test_the_token_limit_closes_a_row_early() -> None:
    assert split_rows([4, 4, 4, 9, 1], RowLimits(most=4, max_tokens=20), main_tokens=10) == [
        [0, 1],
        [2],
        [3, 4],
    ]


def test_the_minimum_decides_between_the_splits_a_token_limit_leaves() -> None:
    prompts = [5, 1, 1, 1, 1, 5]
    loose = RowLimits(most=4, balanced=True, max_tokens=8)
    assert split_rows(prompts, loose, main_tokens=0) == [[0, 1, 2], [3, 4, 5]]
    prompts = [6, 1, 1, 1, 1, 1, 1]
    assert split_rows(prompts, RowLimits(most=5, balanced=True, max_tokens=8), main_tokens=0) == [
        [0, 1, 2],
        [3, 4, 5, 6],
    ]
    tight = RowLimits(most=6, least=2, balanced=True, max_tokens=6)
    assert split_rows([6, 1, 1, 1, 1, 1], tight, main_tokens=0) == [[0], [1, 2, 3, 4, 5]]


def test_a_branch_that_cannot_fit_alone_is_in_no_row() -> None:
    assert split_rows([1, 11, 2], RowLimits(most=4, max_tokens=20), main_tokens=10) == [[0, 2]]
    assert split_rows([1, 2], RowLimits(most=4, max_tokens=20), main_tokens=21) == []


def test_no_branches_no_rows() -> None:
    assert split_rows([], RowLimits(most=4, balanced=True), main_tokens=3) == []


lengths = st.lists(st.integers(0, 12), max_size=9)
limits = st.builds(
    lambda most, least, balanced, max_tokens: RowLimits(
        most=most, least=min(least, most), balanced=balanced, max_tokens=max_tokens
    ),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([0, 8, 15, 25]),
)


@given(lengths, limits, st.integers(0, 10))
def test_every_branch_that_fits_is_in_one_row_in_order(prompts: list[int], limit: RowLimits, main: int) -> None:
    rows = split_rows(prompts, limit, main_tokens=main)
    budget = limit.max_tokens - main if limit.max_tokens else 10**9
    assert [branch for row in rows for branch in row] == [b for b, n in enumerate(prompts) if n <= budget]
    assert all(1 <= len(row) <= limit.most for row in rows)
    assert all(sum(prompts[branch] for branch in row) <= budget for row in rows)


@given(lengths, limits)
def test_dynamic_mode_is_the_best_of_all_splits(prompts: list[int], limit: RowLimits) -> None:
    limit = RowLimits(most=limit.most, least=limit.least, balanced=True, max_tokens=limit.max_tokens)
    budget = limit.max_tokens or 10**9
    prompts = [n for n in prompts if n <= budget]

    def cost(row_sizes: list[int]) -> tuple[int, int, int]:
        short = sum(max(0, limit.least - size) for size in row_sizes)
        return short, len(row_sizes), sum(size**2 for size in row_sizes)

    possible = []
    for cuts in itertools.product([False, True], repeat=max(0, len(prompts) - 1)):
        rows = [[prompts[0]]] if prompts else []
        for cut, n in zip(cuts, prompts[1:], strict=True):
            rows.append([n]) if cut else rows[-1].append(n)
        if all(len(row) <= limit.most and sum(row) <= budget for row in rows):
            possible.append(cost([len(row) for row in rows]))
    assert cost([len(row) for row in split_rows(prompts, limit, main_tokens=0)]) == min(possible)
