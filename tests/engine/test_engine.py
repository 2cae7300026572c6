"""What a user of the engine sees: streaming, stop texts, cancellation, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from parallelmind import Branch, Engine, Event, Request, SamplingParams
from parallelmind.errors import RequestError, SettingsError
from tests.broken_models import failing
from tests.engine.asking import GREEDY, MAIN, answer
from tests.families import char_tokenizer, tiny_model


def test_streamed_text_adds_up_to_the_result(engine: Engine) -> None:
    requests = [Request(main=MAIN, branches=["a", "bc", ""]), Request(main="x", branches=["d"])]
    texts: dict[tuple[int, int], str] = {}
    tokens: dict[tuple[int, int], list[int]] = {}
    last: dict[tuple[int, int], Event] = {}
    for event in engine.stream(requests, GREEDY):
        key = (event.request_index, event.branch_index)
        assert key not in last, "nothing follows the last event of a branch"
        texts[key] = texts.get(key, "") + event.text
        tokens.setdefault(key, []).extend(event.token_ids)
        if event.finish_reason is not None:
            last[key] = event
    assert sorted(last) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    for key, event in last.items():
        assert event.result is not None
        assert event.result.text == texts[key]
        assert event.result.token_ids == tokens[key]
        assert event.result.finish_reason == event.finish_reason == "length"


def test_branches_stream_side_by_side(engine: Engine) -> None:
    order = [event.branch_index for event in engine.stream([Request(main=MAIN, branches=["a", "b"])], GREEDY)]
    assert order == [0, 1] * 12


def test_stop_texts_end_the_branch_and_are_never_shown(engine: Engine) -> None:
    whole = answer(engine).text
    stop = whole[4:6]
    stopped = answer(engine, stop=[stop, "never-there"])
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole[: whole.index(stop)]
    shown = "".join(
        event.text
        for event in engine.stream(
            [Request(main=MAIN, branches=["abc"])],
            SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True, stop=stop),
        )
    )
    assert shown == stopped.text
    assert answer(engine, stop="never-there").text == whole


def test_the_end_token_stops_unless_ignored(model: Any, engine: Engine) -> None:
    tokens = answer(engine).token_ids
    eos = tokens[5]
    end = tokens.index(eos)
    tokenizer = char_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(eos)
    stopping = Engine(model, tokenizer)
    result = stopping.generate([Request(main=MAIN, branches=["abc"])], SamplingParams(max_new_tokens=12, temperature=0))
    assert result[0].branches[0].finish_reason == "stop"
    assert result[0].branches[0].token_ids == tokens[: end + 1]
    assert answer(stopping).token_ids == tokens


def test_each_branch_has_its_own_parameters(engine: Engine) -> None:
    branches = [
        Branch(prompt="abc", sampling=SamplingParams(max_new_tokens=3, temperature=0, ignore_eos=True)),
        Branch(prompt="abc", sampling=SamplingParams(max_new_tokens=7, temperature=5.0, seed=1, ignore_eos=True)),
        Branch(prompt="abc", sampling=SamplingParams(max_new_tokens=7, temperature=5.0, seed=1, ignore_eos=True)),
        Branch(prompt="abc", sampling=SamplingParams(max_new_tokens=7, temperature=5.0, seed=2, ignore_eos=True)),
        "abc",
    ]
    first, second, third, fourth, fifth = engine.generate([Request(main=MAIN, branches=branches)], GREEDY)[0].branches
    assert len(first.token_ids) == 3
    assert second.token_ids == third.token_ids != fourth.token_ids
    assert fifth.token_ids[:3] == first.token_ids
    assert len(fifth.token_ids) == 12


def test_without_a_seed_every_run_differs(engine: Engine) -> None:
    runs = {tuple(answer(engine, temperature=5.0).token_ids) for _ in range(4)}
    assert len(runs) > 1


def test_text_and_token_ids_are_the_same_request(engine: Engine) -> None:
    ids = char_tokenizer()(MAIN)["input_ids"]
    prompt = char_tokenizer()("abc")["input_ids"]
    by_ids = engine.generate([Request(main=ids, branches=[prompt, Branch(prompt=prompt)])], GREEDY)[0].branches
    assert by_ids[0].token_ids == by_ids[1].token_ids == answer(engine).token_ids
    assert by_ids[0].prompt_tokens == 3
    assert by_ids[0].main_tokens == len(MAIN)


def test_a_bad_branch_fails_alone(engine: Engine) -> None:
    limit = engine.max_model_len
    long = "x" * (limit - len(MAIN))
    request = Request(main=MAIN, branches=["ok", long, [5, 10**6], "also ok"])
    branches = engine.generate([request, Request(main="", branches=["fine", ""]), Request()], GREEDY)
    reasons = [[branch.finish_reason for branch in result.branches] for result in branches]
    assert reasons == [["length", "error", "error", "length"], ["length", "error"], ["error"]]
    too_long, unknown = branches[0].branches[1], branches[0].branches[2]
    assert too_long.error is not None
    assert str(limit) in too_long.error
    assert str(len(MAIN)) in too_long.error
    assert unknown.error is not None
    assert "1000000" in unknown.error
    assert "both empty" in str(branches[2].branches[0].error)


@pytest.mark.parametrize("family", ["qwen2", "falcon"])
def test_a_bad_branch_of_a_columnar_request_is_seen_by_no_other(family: str) -> None:
    engine = Engine(tiny_model(family), char_tokenizer(), visibility="columnar")
    alone = Request(main=MAIN, branches=[Branch(prompt="abcd", branch_id=1), Branch(prompt="d", branch_id=3)])
    expected = [branch.token_ids for branch in engine.generate([alone], GREEDY)[0].branches]
    bad = Request(main=MAIN, branches=["abcd", [5, 6, 7, 10**6], "d"])
    first, second, third = engine.generate([bad], GREEDY)[0].branches
    assert (second.finish_reason, second.error_kind) == ("error", "vocabulary")
    assert [first.token_ids, third.token_ids] == expected


def test_a_stream_may_run_inside_another(engine: Engine) -> None:
    outer = [Request(main=MAIN, branches=["a", "b"]), Request(main="other", branches=["c"])]
    expected = [[branch.token_ids for branch in result.branches] for result in engine.generate(outer, GREEDY)]
    alone = answer(engine).token_ids
    found: dict[tuple[int, int], list[int]] = {}
    for event in engine.stream(outer, GREEDY):
        assert answer(engine).token_ids == alone
        if event.result is not None:
            found[event.request_index, event.branch_index] = event.result.token_ids
    assert found == {(i, k): ids for i, request in enumerate(expected) for k, ids in enumerate(request)}


def test_a_stream_whose_requests_another_one_ended_says_so(engine: Engine, model: Any) -> None:
    stream = engine.stream([Request(main=MAIN, branches=["a"])], GREEDY)
    next(stream)
    with failing(model, RuntimeError("lost the device")), pytest.raises(RuntimeError, match="lost the device"):
        answer(engine)
    with pytest.raises(RequestError, match="another use of the engine"):
        list(stream)


def test_generation_ends_where_the_models_length_ends(model: Any) -> None:
    engine = Engine(model, char_tokenizer())
    engine.max_model_len = 20
    result = answer(engine, "ab")
    assert result.finish_reason == "length"
    assert len(result.token_ids) == 20 - len(MAIN) - 2


def test_wrong_parameters_are_refused(model: Any) -> None:
    for wrong in (
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": 2.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": None},
        {"seed": 2**64},
        {"stop": [""]},
    ):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            SamplingParams(**wrong)  # type: ignore[arg-type]
    for branches in ("one text", Branch(prompt="a")):
        with pytest.raises(RequestError, match="must be a list"):
            Request(main="x", branches=branches)  # type: ignore[arg-type]
    for wrong in (
        {"visibility": "all"},
        {"branch_stride": -1},
        {"max_running_branches": 0},
        {"kv_cache_bytes": -1},
        {"prefix_cache_bytes": -1},
    ):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            Engine(model, char_tokenizer(), **wrong)  # type: ignore[arg-type]
    engine = Engine(model, char_tokenizer())
    for ids in ([1, 1], [0, 1], [-1]):
        with pytest.raises(RequestError, match="branch_id"):
            engine.add_request(Request(main="x", branches=[Branch(prompt="a", branch_id=i) for i in ids]))


def test_cancelling_ends_one_branch_or_all_and_frees_memory(engine: Engine) -> None:
    long = SamplingParams(max_new_tokens=1000, temperature=0, ignore_eos=True)
    request_id = engine.add_request(Request(main=MAIN, branches=["a", "b", "c"]), long)
    other = engine.add_request(Request(main="other", branches=["d"]), GREEDY)
    for _ in range(3):
        engine.step()
    engine.cancel(request_id, 1)
    events = engine.step()
    cancelled = [event for event in events if event.finish_reason == "cancelled"]
    assert [(event.request_index, event.branch_index) for event in cancelled] == [(request_id, 1)]
    assert cancelled[0].result is not None
    assert len(cancelled[0].result.token_ids) == 3
    engine.cancel(request_id)
    engine.cancel(12345)
    finished = {}
    while engine.has_unfinished():
        finished.update({e.request_index: e.finish_reason for e in engine.step() if e.finish_reason})
    assert finished == {request_id: "cancelled", other: "length"}
    engine.reset_prefix_cache()
    assert engine.kv_cache_tokens == 0
    assert engine.kv_cache_bytes == 0


def test_closing_a_stream_cancels_its_requests(engine: Engine) -> None:
    stream = engine.stream([Request(main=MAIN, branches=["a", "b"])], GREEDY)
    next(stream)
    stream.close()
    assert not engine.has_unfinished()


def test_a_stream_that_another_one_ended_says_so_also_while_a_third_runs(engine: Engine, model: Any) -> None:
    first = engine.stream([Request(main=MAIN, branches=["a"])], GREEDY)
    next(first)
    with failing(model, RuntimeError("lost the device")), pytest.raises(RuntimeError, match="lost the device"):
        answer(engine)
    third = engine.stream([Request(main=MAIN, branches=["c", "d"])], GREEDY)
    found = [next(third)]
    with pytest.raises(RequestError, match="another use of the engine"):
        next(first)
    found += third
    assert sum(event.result is not None for event in found) == 2


def test_requests_are_taken_only_as_far_as_they_can_run(model: Any) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request(main=f"main-{taken}", branches=["a"])

    engine = Engine(model, char_tokenizer(), max_running_branches=4)
    stream = engine.stream(endless(), GREEDY)
    done = 0
    while done < 20:
        done += next(stream).finish_reason is not None
    stream.close()
    assert taken <= 20 + 2 * 4 + 1


def test_a_failing_forward_leaves_the_engine_usable(engine: Engine, model: Any) -> None:
    expected = answer(engine).token_ids
    with failing(model, RuntimeError("lost the device")), pytest.raises(RuntimeError, match="lost the device"):
        answer(engine)
    assert not engine.has_unfinished()
    assert answer(engine).token_ids == expected


def test_a_strict_branch_does_not_depend_on_main(model: Any) -> None:
    """Not even by the penalty on what was written before."""
    engine = Engine(model, char_tokenizer(), visibility="strict", branch_stride=0)
    expected = answer(engine, repetition_penalty=3).token_ids
    likely = answer(engine).token_ids
    params = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True, repetition_penalty=3)
    result = engine.generate([Request(main=likely + expected, branches=["abc"])], params)[0].branches[0]
    assert result.token_ids == expected
