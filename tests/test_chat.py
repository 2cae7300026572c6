"""A conversation: what the model is shown, what is kept, several questions at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from parallelmind import Branch, Engine, Event, Request, SamplingParams
from parallelmind.chat import ChatSession, stream_text
from parallelmind.errors import RequestError
from tests.families import char_tokenizer, tiny_model

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


class Recording(Engine):
    """Keeps what it is asked for."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.texts: list[str] = []
        """What the model was given to continue, main and branch together."""
        self.sampling: list[SamplingParams | None] = []

    def stream(self, requests: Iterable[Request], sampling: SamplingParams | None = None) -> Iterator[Event]:
        requests = list(requests)
        for request in requests:
            for branch in request.branches or [()]:
                ids = [*request.main, *(branch.prompt if isinstance(branch, Branch) else branch)]
                self.texts.append(self.tokenizer.decode(ids).replace("<pad>", ""))
        self.sampling.append(sampling)
        return super().stream(requests, sampling)


@pytest.fixture
def engine() -> Recording:
    return Recording(tiny_model("qwen2"), char_tokenizer())


@pytest.fixture
def shown(engine: Recording) -> list[str]:
    return engine.texts


def collect(events: Iterable[Event], count: int) -> list[str]:
    texts = [""] * count
    for event in events:
        texts[event.branch_index] += event.text
    return texts


def test_turns_are_written_out_without_a_template(engine: Engine, shown: list[str]) -> None:
    session = ChatSession(engine, GREEDY)
    first = "".join(session.reply("hi"))
    "".join(session.reply("more"))
    # The test tokenizer has no spaces and no line ends.
    assert shown[0].endswith("User:hiAssistant:")
    assert f"User:hiAssistant:{first}User:moreAssistant:" in shown[1]


def test_an_answer_that_is_written_out_ends_where_the_next_turn_begins(engine: Recording) -> None:
    session = ChatSession(engine, SamplingParams(max_new_tokens=2, stop="x"))
    "".join(session.reply("hi"))
    session.set_main("text")
    "".join(session.reply("hi"))
    assert [sampling.stop for sampling in engine.sampling if sampling] == [("x", "\nUser:"), ("x",)]


def test_under_a_shared_text_a_base_model_sees_what_batch_would_show_it(engine: Engine, shown: list[str]) -> None:
    session = ChatSession(engine, GREEDY)
    session.set_main("abc")
    first = "".join(session.reply("hi"))
    "".join(session.reply("more"))
    assert shown == ["abchi", f"abchi{first}more"]


def test_a_chat_template_is_used(engine: Engine, shown: list[str]) -> None:
    engine.tokenizer.chat_template = TEMPLATE
    session = ChatSession(engine, GREEDY)
    session.conversation.system = "be"
    session.set_main("abc")
    first = "".join(session.reply("hi"))
    "".join(session.reply("more"))
    assert shown == ["[s]beabc[u]hi[a]", f"[s]beabc[u]hi[a]{first}[u]more[a]"]


def test_a_template_without_system_messages_gets_the_shared_text_with_the_first_message(
    engine: Engine, shown: list[str]
) -> None:
    engine.tokenizer.chat_template = NO_SYSTEM
    session = ChatSession(engine, GREEDY)
    session.set_main("abc")
    "".join(session.reply("hi"))
    assert shown == ["[u]abchi[a]"]


def test_a_template_that_refuses_is_a_request_error(engine: Engine) -> None:
    engine.tokenizer.chat_template = "{{ raise_exception('never') }}"
    session = ChatSession(engine, GREEDY)
    with pytest.raises(RequestError, match="chat template refuses the conversation: never"):
        "".join(session.reply("hi"))
    assert session.conversation.exchanges == []


def test_earlier_turns_come_from_the_cache(engine: Engine) -> None:
    session = ChatSession(engine, GREEDY)
    "".join(session.reply("hi"))
    "".join(session.reply("more"))
    assert engine.stats.cached_main_tokens > 0


def test_a_stopped_answer_is_kept_as_far_as_it_went(engine: Engine) -> None:
    session = ChatSession(engine, GREEDY)
    reply = session.reply("hi")
    piece = next(reply)
    reply.close()
    assert [(turn.message, turn.answer) for turn in session.conversation.exchanges] == [("hi", piece)]
    assert not engine.has_unfinished()


def test_a_message_that_is_too_long_is_refused_and_nothing_is_forgotten(engine: Engine) -> None:
    session = ChatSession(engine, GREEDY)
    "".join(session.reply("hi"))
    turns = list(session.conversation.exchanges)
    with pytest.raises(RequestError, match="too long"):
        "".join(session.reply("x" * 5000))
    assert session.conversation.exchanges == turns
    with pytest.raises(RequestError, match="nothing to continue"):
        "".join(stream_text(engine, "", GREEDY))


def test_a_conversation_longer_than_the_model_loses_its_oldest_turns(engine: Engine, shown: list[str]) -> None:
    notices: list[str] = []
    session = ChatSession(engine, GREEDY, notify=notices.append)
    size = engine.max_model_len // 5
    for letter in "abcdef":
        "".join(session.reply(letter * size))
    assert len(notices) >= 1
    assert f"longer than the {engine.max_model_len} tokens" in notices[0]
    assert "a" * size not in shown[-1]
    assert "e" * size in shown[-1]
    assert "f" * size in shown[-1]


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("main", ["", "shared"])
def test_branches_answer_as_each_question_alone_would(engine: Engine, template: str | None, main: str) -> None:
    engine.tokenizer.chat_template = template
    questions = ["how", "how old", "0a", "who"]

    def session() -> ChatSession:
        fresh = ChatSession(engine, GREEDY)
        fresh.set_main(main)
        "".join(fresh.reply("hi"))
        return fresh

    together = session()
    before = list(together.conversation.exchanges)
    texts = collect(together.branch(questions), len(questions))
    assert texts == ["".join(session().reply(question)) for question in questions]
    assert together.conversation.exchanges == before


def test_joined_branches_are_turns_of_the_conversation(engine: Engine, shown: list[str]) -> None:
    session = ChatSession(engine, GREEDY)
    session.set_main("abc")
    first, second = collect(session.branch(["one", "two"]), 2)
    assert session.join() == 2
    assert session.join() == 0
    "".join(session.reply("three"))
    assert shown[-1] == f"abcone{first}two{second}three"


def test_stopped_branches_are_joined_as_far_as_they_went(engine: Engine) -> None:
    session = ChatSession(engine, GREEDY)
    events: Iterator[Event] = session.branch(["one", "two"])
    texts = ["", ""]
    for _ in range(3):
        event = next(events)
        texts[event.branch_index] += event.text
    events.close()  # type: ignore[attr-defined]
    session.join()
    assert [turn.answer for turn in session.conversation.exchanges] == texts
    assert not engine.has_unfinished()


def test_equal_questions_under_one_seed_draw_apart_and_repeat(engine: Engine) -> None:
    session = ChatSession(engine, SamplingParams(max_new_tokens=12, temperature=1.5, top_p=1, seed=7, ignore_eos=True))
    texts = collect(session.branch(["same"] * 3), 3)
    assert len(set(texts)) == 3
    assert collect(session.branch(["same"] * 3), 3) == texts


def test_no_question_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="no question"):
        list(ChatSession(engine, GREEDY).branch([]))


def test_what_the_last_answer_cost(engine: Engine) -> None:
    session = ChatSession(engine, GREEDY)
    assert session.last_stats is None
    "".join(session.reply("hi"))
    stats = session.last_stats
    assert stats is not None
    assert stats.tokens == 6
    assert 0 < stats.seconds_to_first <= stats.seconds
