"""Which samples share a record: none lost, none twice, and never more waiting than allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallelmind.data.grouping import Group, GroupBy, Grouping, GroupingLimits
from parallelmind.data.sft_forms import BranchSample


def groups_of(
    samples: Iterable[BranchSample], group_by: GroupBy, most: int, limits: GroupingLimits | None = None
) -> list[Group]:
    groups = Grouping(group_by, most, limits)
    found = [group for sample in samples for group in groups.add(sample)]
    return [*found, *groups.rest()]


def numbered(mains: list[str]) -> list[BranchSample]:
    return [BranchSample(main, {"prompt": "q", "completion": str(n)}) for n, main in enumerate(mains)]


@given(
    mains=st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=40),
    group_by=st.sampled_from(["all", "main", "none"]),
    most=st.integers(1, 9),
)
def test_every_sample_stands_in_one_record_under_its_main(mains: list[str], group_by: GroupBy, most: int) -> None:
    groups = groups_of(numbered(mains), group_by, most)
    seen = Counter(
        (group.main + branch.get("main", ""), branch["completion"]) for group in groups for branch in group.branches
    )
    assert seen == Counter((main, str(n)) for n, main in enumerate(mains))
    assert all(1 <= len(group.branches) <= most for group in groups)
    assert groups == groups_of(numbered(mains), group_by, most)
    if group_by == "none" or most == 1:
        assert len(groups) == len(mains)
    for group in groups:  # an own main is for records that have none, and for no main that a full record could have
        assert not (group.main and any("main" in branch for branch in group.branches))
        assert len(group.branches) > 1 or "main" not in group.branches[0]
    if group_by == "all" and most > 1:
        fillers = [len(group.branches) for group in groups if not group.main]
        assert all(size == most for size in fillers[:-1])
        single = [group for group in groups if len(group.branches) == 1]
        assert len(single) <= 1


def test_a_text_and_a_branch_that_has_a_main_already() -> None:
    owned = BranchSample("m", {"main": "own", "prompt": "q", "completion": "a"})
    assert groups_of([owned, BranchSample("n", "text"), BranchSample("", "u")], "all", 4) == [
        Group("m", [owned.branch]),
        Group("", ["u", {"main": "n", "prompt": "", "completion": "text"}]),
    ]


SIZE = len(str({"prompt": "q", "completion": "0"})) + 2


@pytest.mark.parametrize("limits", [GroupingLimits(waiting_samples=5), GroupingLimits(waiting_characters=5 * SIZE)])
def test_what_waits_is_limited(limits: GroupingLimits) -> None:
    groups = Grouping("main", 8, limits)
    waiting, closed = 0, []
    for sample in numbered([f"m{n % 9}" for n in range(90)]):
        waiting += 1
        for group in groups.add(sample):
            closed.append(group.main)
            waiting -= len(group.branches)
        assert waiting <= 5
    closed += [group.main for group in groups.rest()]
    assert closed == [f"m{n % 9}" for n in range(90)]  # every main is closed before it comes again


def test_a_record_stays_a_line_that_can_be_read_back() -> None:
    limits = GroupingLimits(record_characters=50)
    texts = [BranchSample(main, letter * 20) for main in ("", "m") for letter in "abcde"]
    sizes = [(group.main, len(group.branches)) for group in groups_of(texts, "all", 8, limits)]
    # The last of "m" is left alone and joins the last of those without a main.
    assert sizes == [("", 2), ("", 2), ("m", 2), ("m", 2), ("", 2)]
    assert [len(group.branches) for group in groups_of([BranchSample("", "x" * 99)] * 3, "all", 8, limits)] == [1, 1, 1]
