"""A conversation: what the model is shown, what is kept."""

from __future__ import annotations

from typing import Any

import pytest

from parallelmind import Engine, SamplingParams
from parallelmind.errors import RequestError
from parallelmind.pipelines.chat import ChatSession, stream_text
from tests.families import char_tokenizer, tiny_model

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)


@pytest.fixture
def engine() -> Engine:
    return Engine(tiny_model("qwen2"), char_tokenizer())


def shown(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts: list[str] = []
    stream = engine.stream

    def spy(requests: Any, sampling: Any) -> Any:
        texts.extend(engine.tokenizer.decode(request.main) for request in requests)
        return stream(requests, sampling)

    monkeypatch.setattr(engine, "stream", spy)
    return texts


def test_turns_are_written_out_without_a_template(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = shown(engine, monkeypatch)
    session = ChatSession(engine, GREEDY)
    first = "".join(session.reply("hi"))
    "".join(session.reply("more"))
    # The test tokenizer has no spaces and no line ends.
    assert texts[0].replace("<pad>", "").endswith("User:hiAssistant:")
    assert f"User:hiAssistant:{first}User:moreAssistant:" in texts[1].replace("<pad>", "")


def test_a_chat_template_is_used(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[a]{% endif %}"
    )
    texts = shown(engine, monkeypatch)
    session = ChatSession(engine, GREEDY)
    first = "".join(session.reply("hi"))
    "".join(session.reply("more"))
    assert texts == ["[u]hi[a]", f"[u]hi[a]{first}[u]more[a]"]


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
    assert session._turns[-1] == {"role": "assistant", "content": piece.strip()}
    assert not engine.has_unfinished()


def test_a_message_that_is_too_long_is_refused_and_forgotten(engine: Engine) -> None:
    session = ChatSession(engine, GREEDY)
    with pytest.raises(RequestError, match="too long"):
        "".join(session.reply("x" * 5000))
    assert session._turns == []
    with pytest.raises(RequestError, match="nothing to continue"):
        "".join(stream_text(engine, "", GREEDY))
