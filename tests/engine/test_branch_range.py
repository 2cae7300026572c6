"""Branch numbers beyond those a model was trained on take the position of one within."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind import Branch, Engine, Request, RequestResult, SamplingParams
from parallelmind.columnar import ids_in_range, number_in_range, numbers_in_range
from parallelmind.errors import SettingsError
from parallelmind.models.adapters import AdapterSet, attach_adapters
from parallelmind.models.sidecar import RopeSettings
from tests.engine.test_adapters import patched, save_adapter
from tests.families import char_tokenizer, tiny_model

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True, logprobs=0)
MAIN = "the-shared-text"
PROMPTS = ["abc", "d", "efghijkl", "mn", "o-p", "qq", "r", "stu", "v"]
ROPE = RopeSettings(branch_stride=16)


def engine_of(**settings: Any) -> Engine:
    return Engine(patched(tiny_model("qwen2"), ROPE), char_tokenizer(), **({"branch_stride": 16} | settings))


def tokens(result: RequestResult) -> list[list[int]]:
    return [answer.token_ids for answer in result.branches]


def numbered(numbers: list[int], prompts: list[str] = PROMPTS) -> list[Branch]:
    return [Branch(prompt=prompt, branch_id=number) for prompt, number in zip(prompts, numbers, strict=True)]


def test_a_number_in_range_stays_and_others_go_round() -> None:
    assert [number_in_range(number, 3) for number in range(8)] == [0, 1, 2, 3, 1, 2, 3, 1]
    assert number_in_range(5000, None) == 5000
    assert numbers_in_range([4, 9], None) == [4, 9]
    with pytest.raises(ValueError, match="2 branches, 1 positions"):
        numbers_in_range([1, 2], 1)
    ids = torch.tensor([-1, 0, 1, 3, 4, 9])
    assert ids_in_range(ids, 3).tolist() == [-1, 0, 1, 3, 1, 3]
    assert ids_in_range(ids, None) is ids


@pytest.mark.parametrize("trained", [1, 2, 4])
def test_isolated_branches_share_the_trained_positions(trained: int) -> None:
    """Each is, to the last bit, the branch of that number under its main alone."""
    [result] = engine_of(branch_range=trained).generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)
    anyone = engine_of()
    for place, (prompt, answer) in enumerate(zip(PROMPTS, result.branches, strict=True)):
        number = place % trained + 1
        [alone] = anyone.generate([Request(main=MAIN, branches=[Branch(prompt=prompt, branch_id=number)])], GREEDY)
        assert answer.token_ids == alone.branches[0].token_ids
        assert answer.logprobs == alone.branches[0].logprobs
    [unlimited] = anyone.generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)
    assert tokens(unlimited) != tokens(result), "the positions must matter for this to test anything"


def test_a_later_row_of_branches_that_see_one_another_stands_where_the_first_does() -> None:
    engine = engine_of(branch_range=9, visibility="columnar")
    first, later, again = engine.generate(
        [Request(main=MAIN, branches=numbered(list(range(start, start + 9)))) for start in (1, 10, 19)],
        GREEDY,
    )
    assert tokens(first) == tokens(later) == tokens(again)


def test_branches_that_see_one_another_are_refused_one_position() -> None:
    engine = engine_of(branch_range=8, visibility="columnar")
    [result] = engine.generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)
    assert {answer.finish_reason for answer in result.branches} == {"error"}
    error = result.branches[0].error or ""
    assert "the row has 9 branches" in error
    assert "--branch_range 9" in error
    assert "--branches_per_sample 8" in error


@pytest.mark.parametrize(
    "numbers", [[5, 6, 7, 8, 9, 10, 11, 12], [1, 2, 3, 4, 5, 6, 7, 9], [1, 9, 17, 25, 33, 41, 49, 57]]
)
def test_a_row_that_has_room_is_not_refused(numbers: list[int]) -> None:
    """Branches of a record were left out, as those that are too long: those that would meet are numbered anew."""
    engine, prompts = engine_of(branch_range=8, visibility="columnar"), PROMPTS[:8]
    [result] = engine.generate([Request(main=MAIN, branches=numbered(numbers, prompts))], GREEDY)
    placed = [5, 6, 7, 8, 1, 2, 3, 4] if numbers[0] == 5 else list(range(1, 9))
    [expected] = engine_of(visibility="columnar").generate(
        [Request(main=MAIN, branches=numbered(placed, prompts))], GREEDY
    )
    assert tokens(result) == tokens(expected)


def test_each_adapter_has_the_range_it_was_trained_on(tmp_path: Path) -> None:
    model = patched(tiny_model("qwen2"), ROPE)
    adapters = AdapterSet()
    ranges = {"narrow": 2, "wide": 64, "unknown": None}
    paths = {name: save_adapter(tmp_path / name, "qwen2", 0) for name in ranges}  # of the same weights
    for name, trained in ranges.items():
        adapters.register(name, RopeSettings(branch_stride=16, branch_range=trained))
    attach_adapters(model, adapters, paths)
    engine = Engine(model, char_tokenizer(), adapters=adapters)
    found = {
        name: tokens(engine.generate([Request(main=MAIN, branches=PROMPTS, adapter=name)], GREEDY)[0])
        for name in ranges
    }
    twos = [number_in_range(number, 2) for number in range(1, 10)]
    expected = [
        tokens(engine.generate([Request(main=MAIN, branches=[one], adapter="wide")], GREEDY)[0])[0]
        for one in numbered(twos)
    ]
    assert found["narrow"] == expected
    assert found["wide"] == found["unknown"] != found["narrow"]
    assert [engine.branch_range_of(name) for name in ("narrow", "wide", "unknown", "")] == [2, 64, None, None]


def test_a_fork_and_a_join_keep_to_the_range() -> None:
    """A turned join moves the keys of branch 5 of 4 as it moves those of branch 1."""
    sampling = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)
    results = []
    for engine, number in ((engine_of(branch_range=4), 5), (engine_of(), 1)):
        request = Request(main=MAIN, branches=[Branch(prompt="abc", branch_id=number)])
        [result] = engine.generate([request], sampling)
        after = engine.join(request, result, branches=numbered([number], ["go-on"]), join="turned")
        results.append((tokens(result), tokens(engine.generate([after], sampling)[0])))
    assert results[0] == results[1]


def test_without_positions_of_branches_any_number_is_as_good() -> None:
    plain = Engine(tiny_model("qwen2"), char_tokenizer(), branch_range=2, visibility="columnar")
    assert plain.branch_range_of() is None
    still = engine_of(branch_range=2, branch_stride=0, visibility="columnar")
    for engine in (plain, still):
        [result] = engine.generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)
        assert {answer.finish_reason for answer in result.branches} == {"length"}


def test_a_range_is_a_number_from_1() -> None:
    with pytest.raises(SettingsError, match="branch_range is 0"):
        engine_of(branch_range=0)
