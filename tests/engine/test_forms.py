"""What may be asked for, in which form, and that a wrong request is an error of its own."""

from __future__ import annotations

import re
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from parallelmind import Branch, Engine, Request, RequestResult, SamplingParams
from parallelmind.errors import RequestError
from parallelmind.prompts.prompt_encoder import PromptEncoder
from tests.engine.asking import GREEDY, MAIN
from tests.families import char_tokenizer, tiny_model

IDS: list[int] = char_tokenizer()(MAIN)["input_ids"]
CHAT = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokens(results: list[RequestResult]) -> list[list[list[int]]]:
    return [[branch.token_ids for branch in result.branches] for result in results]


@pytest.fixture
def expected(engine: Engine) -> list[list[list[int]]]:
    return tokens(engine.generate([Request(main=MAIN)], GREEDY))


ONE: dict[str, Any] = {
    "text": MAIN,
    "NumPy text": np.str_(MAIN),
    "request": Request(main=MAIN),
    "list": IDS,
    "tuple": tuple(IDS),
    "range of numbers": [np.int64(one) for one in IDS],
    "list of scalars": [torch.tensor(one) for one in IDS],
    "[1, S] list": [IDS],
    "tensor": torch.tensor(IDS),
    "[1, S] tensor": torch.tensor([IDS], dtype=torch.int32),
    "array": np.array(IDS),
    "[1, S] array": np.array([IDS], dtype=np.uint16),
    "main of ids": Request(main=torch.tensor([IDS])),
    "prompt of ids": Request(branches=[Branch(prompt=np.array(IDS), branch_id=0)]),
    "no main": Request(main=None, branches=[Branch(prompt=MAIN, branch_id=0)]),
}


@pytest.mark.parametrize("form", ONE)
def test_one_prompt_in_any_form(engine: Engine, expected: list[list[list[int]]], form: str) -> None:
    assert tokens(engine.generate(ONE[form], GREEDY)) == expected, "always a list of results"
    shown = [event.token_ids for event in engine.stream(ONE[form], GREEDY)]
    assert [token for ids in shown for token in ids] == expected[0][0]


def test_several_prompts_of_any_form(engine: Engine, expected: list[list[list[int]]]) -> None:
    assert tokens(engine.generate(list(ONE.values()), GREEDY)) == expected * len(ONE)
    assert tokens(engine.generate((one for one in ONE.values()), GREEDY)) == expected * len(ONE)
    assert tokens(engine.generate(np.array([MAIN, MAIN]), GREEDY)) == expected * 2
    assert engine.generate([], GREEDY) == []


def test_a_form_does_not_matter_to_add_request(engine: Engine, expected: list[list[list[int]]]) -> None:
    request_id = engine.add_request(torch.tensor([IDS]), GREEDY)
    found = []
    while engine.has_unfinished():
        found += [event.result for event in engine.step() if event.request_index == request_id and event.result]
    assert [result.token_ids for result in found] == expected[0]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_conversation_is_what_the_template_renders(model: Any, template: str | None) -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = template
    engine = Engine(model, tokenizer)
    ids = PromptEncoder(tokenizer).conversation(CHAT)
    expected = tokens(engine.generate(Request(main=ids.main + ids.branches[0]), GREEDY))
    assert tokens(engine.generate(CHAT, GREEDY)) == expected
    assert tokens(engine.generate([CHAT, tuple(CHAT)], GREEDY)) == expected * 2
    parts = [CHAT[0], {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert tokens(
        engine.generate([Request(main=parts), Request(branches=[Branch(prompt=CHAT, branch_id=0)])], GREEDY)
    ) == (expected * 2)


@pytest.mark.parametrize("visibility", ["isolated", "columnar", "strict"])
def test_branches_of_a_conversation_are_the_users_next_messages(model: Any, visibility: Any) -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = TEMPLATE
    engine = Engine(model, tokenizer)
    main = [*CHAT, {"role": "assistant", "content": "hi"}]
    asked = ["why", [{"role": "user", "content": "how"}], ""]
    turns = [[{"role": "user", "content": text}] if text else [] for text in ("why", "how", "")]
    ids = PromptEncoder(tokenizer).conversation(main, turns, visibility=visibility)
    expected = engine.generate(Request(main=ids.main, branches=ids.branches, visibility=visibility), GREEDY)
    assert tokens(engine.generate(Request(main=main, branches=asked, visibility=visibility), GREEDY)) == tokens(
        expected
    )


def test_one_wrong_branch_of_a_conversation_fails_alone(model: Any) -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[-1]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    engine = Engine(model, tokenizer)
    good = engine.generate(Request(main=CHAT, branches=["why", "how"]), GREEDY)[0].branches
    asked = [Branch(prompt="why", branch_id=1), Branch(prompt="bad", branch_id=3), Branch(prompt=IDS, branch_id=4)]
    found = engine.generate(Request(main=CHAT, branches=[*asked, Branch(prompt="how", branch_id=2)]), GREEDY)[
        0
    ].branches
    assert [found[0].token_ids, found[3].token_ids] == [one.token_ids for one in good]
    assert [one.error_kind for one in found] == [None, "invalid", "invalid", None]
    assert "template refuses" in str(found[1].error)
    assert "token ids under a conversation" in str(found[2].error)
    [refused] = engine.generate(Request(main=[{"role": "user", "content": "bad"}]), GREEDY)[0].branches
    assert "template refuses" in str(refused.error)


class Unspeakable:
    def __repr__(self) -> str:
        return "Unspeakable()"


WRONG: list[tuple[Any, str]] = [
    (5, "the request is 5; it must be a text, a list of token ids"),
    (None, "the request is None"),
    (b"abc", "the request is b'abc'"),
    (Unspeakable(), "Unspeakable"),
    ([True, False], r"the request\[0\] is True; token ids are whole numbers"),
    ([3, np.bool_(True)], r"the request\[1\]"),
    ([3, 4.0], r"the request\[1\] is 4.0"),
    ([3, "x"], r"the request\[1\] is 'x'"),
    ([3, torch.tensor(2.5)], r"the request\[1\]"),
    ([3, torch.tensor(True)], r"the request\[1\]"),
    (torch.tensor([True]), "array of bool"),
    (np.array([1.5]), "array of float64"),
    (torch.tensor(3), r"shape \[\]"),
    (torch.ones(2, 3, dtype=torch.long), r"shape \[2, 3\]; .* without the padding"),
    ({"main": "x"}, "object with .*'main'.*; give a Request"),
    (UserDict(input_ids=IDS), "input_ids"),
    ([{"role": "user"}], 'has no "content"'),
    ([{"role": "user", "content": "a"}, 3], r"the request\[1\] is a number \(3\); expected .*role"),
    (Branch(prompt="x"), "a Branch was given as a request"),
    (Request(main=MAIN, adapter="nope"), "adapter 'nope' is not loaded"),
    (Request(main=MAIN, visibility="all"), "visibility is 'all'"),  # type: ignore[arg-type]
    (Request(main=MAIN, branches=[Branch(branch_id=1), Branch(branch_id=1)]), "branch_id must be 1 or more"),
    (Request(main=MAIN, branches=[Branch(branch_id="1")]), "branch_id of branch 0 is '1'"),  # type: ignore[arg-type]
    (Request(main=MAIN, branches=[Branch(branch_id=True)]), "branch_id of branch 0 is True"),
    (Request(main=MAIN, sampling={"n": 2}), "the request's sampling is {'n': 2}; it must be SamplingParams"),  # type: ignore[arg-type]
    (Request(main=MAIN, branches=[Branch(sampling="x")]), "sampling of branch 0 is 'x'"),  # type: ignore[arg-type]
    (Request(main=b"x"), "main is"),  # type: ignore[arg-type]
    (Request(main="half of a pair \ud800"), "main cannot be tokenised"),
    (Request(), "both empty"),
    ("", "both empty"),
    (Request(main=[10**6]), "1000000 is outside the model's vocabulary"),
    (Request(main="x" * 5000), "too long for the model"),
]


@pytest.mark.parametrize(("wrong", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_a_wrong_request_is_an_error_of_its_own(
    engine: Engine, expected: list[list[list[int]]], wrong: Any, reason: str
) -> None:
    first, bad, last = engine.generate([MAIN, wrong, IDS], GREEDY)
    assert tokens([first, last]) == expected * 2
    for found in (bad, *engine.generate((one for one in [wrong]), GREEDY)):
        assert found.branches
        for branch in found.branches:
            assert branch.finish_reason == "error"
            assert branch.error_kind in ("invalid", "empty", "vocabulary", "too_long")
            assert branch.error is not None
            assert re.search(reason, branch.error)
    assert not engine.has_unfinished()


@pytest.mark.parametrize("wrong", [5, b"abc", [True], {"main": "x"}, torch.tensor([1.0])], ids=repr)
def test_one_wrong_request_alone(engine: Engine, wrong: Any) -> None:
    """It is not taken for several, one a byte or a key."""
    [result] = engine.generate(wrong, GREEDY)
    assert [branch.error_kind for branch in result.branches] == ["invalid"]


def test_every_answer_of_a_wrong_request_has_its_error(engine: Engine) -> None:
    branches = ["a", Branch(prompt="b", sampling=SamplingParams(n=3)), "c"]
    [result] = engine.generate(Request(main=MAIN, branches=branches, adapter="nope"), SamplingParams(n=2))
    assert [branch.error_kind for branch in result.branches] == ["invalid"] * 7


def test_a_wrong_branch_fails_alone(engine: Engine) -> None:
    wrong = [None, 5, b"x", [True], [1.5], CHAT, Branch(prompt="x", adapter="nope"), [[1, 2], [3, 4]], "\ud800"]
    for place, one in enumerate(wrong):
        branches: list[Any] = ["abc", one, "d"]
        found = engine.generate(Request(main=MAIN, branches=branches), GREEDY)[0].branches
        good = [Branch(prompt="abc"), Branch(prompt="d", branch_id=3)]
        assert [found[0].token_ids, found[2].token_ids] == tokens(
            engine.generate(Request(main=MAIN, branches=good), GREEDY)
        )[0], place
        assert (found[1].finish_reason, found[1].error_kind) == ("error", "invalid")
        assert "branch 1" in str(found[1].error) or "nope" in str(found[1].error)


def test_add_request_refuses_at_once(engine: Engine) -> None:
    for wrong in (5, [True], Request(main=MAIN, adapter="nope")):
        with pytest.raises(RequestError):
            engine.add_request(wrong, GREEDY)
    assert not engine.has_unfinished()


@pytest.mark.parametrize("use", ["generate", "stream", "add_request"])
def test_parameters_of_another_type_are_refused(engine: Engine, use: str) -> None:
    with pytest.raises(RequestError, match=r"sampling is \{"):
        list(getattr(engine, use)(MAIN, {"temperature": 0}))


@pytest.mark.parametrize("branches", [5, None, b"ab", {"a": 1}])
def test_branches_of_another_type_are_refused(branches: Any) -> None:
    with pytest.raises(RequestError, match="must be a list"):
        Request(main="x", branches=branches)


def test_branches_may_be_any_iterable(engine: Engine) -> None:
    def prompts() -> Iterator[str]:
        yield from ("a", "b")

    expected = engine.generate(Request(main=MAIN, branches=["a", "b"]), GREEDY)
    assert tokens(engine.generate(Request(main=MAIN, branches=prompts()), GREEDY)) == tokens(expected)  # type: ignore[arg-type]


def test_an_error_of_the_callers_own_iterable_is_theirs(engine: Engine) -> None:
    def requests() -> Iterator[str]:
        yield MAIN
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine.generate(requests(), GREEDY)
    assert not engine.has_unfinished()


def test_the_requests_own_parameters_hold_for_its_branches() -> None:
    engine = Engine(tiny_model("qwen2"), char_tokenizer())
    own = SamplingParams(max_new_tokens=3, temperature=0, ignore_eos=True)
    branch = Branch(prompt="b", sampling=SamplingParams(max_new_tokens=5, temperature=0, ignore_eos=True))
    results = engine.generate([Request(main=MAIN, branches=["a", branch], sampling=own), MAIN], GREEDY)
    assert [[len(ids) for ids in result] for result in tokens(results)] == [[3, 5], [12]]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(main="a", branches=[Branch(prompt="x", branch_id=2**63)]), "branch_id of branch 0"),
        (Request(main="a", adapter=["x"]), "adapter of main"),  # type: ignore[arg-type]
        (Request(main="a", branches=[Branch(prompt="b", adapter={})]), "adapter of branch 0"),  # type: ignore[arg-type]
        (Request(main=[3, 4, 5], joined=3), "joined does not fit main"),  # type: ignore[arg-type]
        (Request(main=[3, 4, 5], joined=(None,)), "joined does not fit main"),  # type: ignore[arg-type]
        (torch.zeros(3, dtype=torch.long, device="meta"), "meta device"),
    ],
)
def test_what_cannot_be_is_an_error_of_its_own(request_: Any, words: str) -> None:
    engine = Engine(tiny_model("qwen2"), char_tokenizer())
    wrong, right = engine.generate([request_, "abc"], SamplingParams(max_new_tokens=2, ignore_eos=True))
    assert wrong.branches[0].error_kind == "invalid"
    assert words in str(wrong.branches[0].error)
    assert right.branches[0].error is None
