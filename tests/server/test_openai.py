"""OpenAI's own client, unchanged, on our endpoints."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from parallelmind import Branch, Engine, Request, SamplingParams
from tests.server.serving import ANSWERS, QUESTIONS, STORY, Running

CHAT: list[Any] = [{"role": "system", "content": STORY}, {"role": "user", "content": QUESTIONS[0]}]


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "parallelmind"
    with pytest.raises(openai.NotFoundError, match="no model 'huge'; this server has: tiny"):
        client.models.retrieve("huge")


def test_a_completion_is_what_the_engine_generates(client: openai.OpenAI, offline: Engine) -> None:
    prompt = STORY + QUESTIONS[0]
    for settings in ({"temperature": 0.0}, {"temperature": 1.4, "top_p": 0.8, "seed": 5}):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=20, **settings)  # type: ignore[arg-type]
        params = SamplingParams(**({"max_new_tokens": 20, "top_p": 1.0} | settings))  # type: ignore[arg-type]
        expected = offline.generate([Request(main=prompt)], params)[0].branches[0]
        assert answer.choices[0].text == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(expected.token_ids)
        assert answer.usage.prompt_tokens == expected.main_tokens


def test_several_prompts_and_choices_are_each_as_alone(client: openai.OpenAI) -> None:
    prompts = [STORY + question for question in QUESTIONS] + ["", "Quite another text"][1:]
    settings: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 1.3, "seed": 11, "n": 3}
    together = client.completions.create(prompt=prompts, **settings)
    assert [choice.index for choice in together.choices] == list(range(12))
    for place, prompt in enumerate(prompts):
        alone = client.completions.create(prompt=prompt, **settings)
        assert [c.text for c in together.choices[3 * place : 3 * place + 3]] == [c.text for c in alone.choices]
    first = client.completions.create(prompt=prompts[0], **settings | {"n": 1})
    assert first.choices[0].text == together.choices[0].text


def test_prompts_as_token_ids(client: openai.OpenAI, offline: Engine) -> None:
    ids = [offline.tokenizer(STORY + question)["input_ids"] for question in QUESTIONS]
    answers = client.completions.create(model="tiny", prompt=ids, temperature=0)
    assert [choice.text for choice in answers.choices] == ANSWERS
    one = client.completions.create(model="tiny", prompt=ids[1], temperature=0, echo=True)
    assert one.choices[0].text == STORY + QUESTIONS[1] + ANSWERS[1]


def test_a_stream_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "max_tokens": 25, "temperature": 1.5, "seed": 3, "n": 2, "stop": "9"}
    whole = client.completions.create(prompt=STORY, **settings)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in client.completions.create(
        prompt=STORY, stream=True, stream_options={"include_usage": True}, **settings
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_of_a_completion(client: openai.OpenAI, offline: Engine) -> None:
    prompt = STORY + QUESTIONS[2]
    answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, logprobs=2).choices[0]
    params = SamplingParams(max_new_tokens=16, temperature=0, logprobs=2)
    expected = offline.generate([Request(main=prompt)], params)[0].branches[0].logprobs
    found = answer.logprobs
    assert found is not None
    assert found.tokens == [" blue", "<|endoftext|>"]
    assert found.token_logprobs == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert found.text_offset == [0, 5]
    assert found.top_logprobs is not None
    assert len(found.top_logprobs[0]) == 2


def test_chat(client: openai.OpenAI, offline: Engine) -> None:
    answer = client.chat.completions.create(model="tiny", messages=CHAT, temperature=0, max_completion_tokens=9)
    prompt = f"System: {STORY}\nUser: {QUESTIONS[0]}\nAssistant:"
    params = SamplingParams(max_new_tokens=9, temperature=0)
    expected = offline.generate([Request(main=prompt)], params)[0].branches[0]
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"


def test_chat_streams_with_logprobs(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 9, "logprobs": True}
    whole = client.chat.completions.create(top_logprobs=4, **settings).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    text, tokens = "", []
    for chunk in client.chat.completions.create(top_logprobs=4, stream=True, **settings):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tokens += (choice.logprobs.content or []) if choice.logprobs else []
    assert text == whole.message.content
    assert [token.token for token in tokens] == [token.token for token in whole.logprobs.content]
    for token in tokens:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert bytes(token.bytes or []).decode() == token.token


def test_bytes_of_logprobs_join_to_characters(client: openai.OpenAI) -> None:
    """A character may be spread over tokens, none of which is text by itself."""
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "🙂"}],
        logprobs=True,
        top_logprobs=20,
        max_tokens=20,
        temperature=1.9,
        seed=1,
        extra_body={"ignore_eos": True},
    ).choices[0]
    assert answer.logprobs is not None
    raw = b"".join(bytes(token.bytes or []) for token in answer.logprobs.content or [])
    visible = raw.replace(b"<|endoftext|>", b"").decode("utf-8", "replace")
    assert visible == answer.message.content


def test_branches_under_a_conversation(client: openai.OpenAI, offline: Engine) -> None:
    main: list[Any] = [{"role": "user", "content": STORY}]
    branches = [{"prompt": question} for question in QUESTIONS] + [{"prompt": "", "max_tokens": 2}]
    answer = client.chat.completions.create(
        model="tiny", messages=main, temperature=0, max_tokens=6, extra_body={"branches": branches}
    )
    shared = f"User: {STORY}"
    prompts = [f"\nUser: {question}\nAssistant:" for question in QUESTIONS] + ["\nAssistant:"]
    params = [SamplingParams(max_new_tokens=n, temperature=0) for n in (6, 6, 6, 2)]
    request = Request(
        main=shared, branches=[Branch(prompt=prompt, sampling=p) for prompt, p in zip(prompts, params, strict=True)]
    )
    expected = [branch.text for branch in offline.generate([request])[0].branches]
    assert [choice.message.content for choice in answer.choices] == expected
    streamed = [""] * 4
    for chunk in client.chat.completions.create(
        model="tiny", messages=main, temperature=0, max_tokens=6, stream=True, extra_body={"branches": branches}
    ):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == expected


def test_the_async_client(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:

            async def one(question: str) -> str:
                stream = await client.completions.create(
                    model="tiny", prompt=STORY + question, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(question) for question in QUESTIONS * 4))

    assert asyncio.run(ask()) == ANSWERS * 4


def test_our_sampling_settings_pass_through_the_client(client: openai.OpenAI, offline: Engine) -> None:
    extra = {"top_k": 3, "min_p": 0.05, "repetition_penalty": 1.3, "ignore_eos": True}
    answer = client.completions.create(
        model="tiny", prompt=STORY, temperature=1.2, seed=2, max_tokens=12, extra_body=extra
    )
    params = SamplingParams(max_new_tokens=12, temperature=1.2, top_p=1.0, seed=2, **extra)  # type: ignore[arg-type]
    assert answer.choices[0].text == offline.generate([Request(main=STORY)], params)[0].branches[0].text


def test_openais_penalties_and_biases(client: openai.OpenAI, offline: Engine) -> None:
    """As OpenAI writes them, for completions and in chat; choice i of n is the engine's answer i of n."""
    given: dict[str, Any] = {"presence_penalty": 0.6, "frequency_penalty": 1.2, "seed": 3, "n": 3, "temperature": 1.1}
    space = offline.tokenizer(" ", add_special_tokens=False)["input_ids"][-1]
    bias = {str(space): -100, "5": 2}
    answer = client.completions.create(model="tiny", prompt=STORY, max_tokens=20, logit_bias=bias, **given)
    params = SamplingParams(max_new_tokens=20, top_p=1.0, logit_bias=bias, **given)
    expected = [one.text for one in offline.generate(STORY, params)[0].branches]
    assert [choice.text for choice in answer.choices] == expected
    assert len(set(expected)) == 3
    plain = client.completions.create(model="tiny", prompt=STORY, max_tokens=20, seed=3, n=3, temperature=1.1)
    assert [choice.text for choice in plain.choices] != expected
    chat = client.chat.completions.create(
        model="tiny", messages=CHAT, max_completion_tokens=9, logit_bias={"5": 100}, **given
    )
    ids = offline.tokenizer(chat.choices[2].message.content, add_special_tokens=False)["input_ids"]
    assert len(chat.choices) == 3
    assert set(ids) <= {5}


def test_stop_token_ids_over_http(client: openai.OpenAI, offline: Engine) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=0)
    whole = offline.generate(STORY, params)[0].branches[0]
    extra = {"stop_token_ids": [whole.token_ids[3]]}
    answer = client.completions.create(model="tiny", prompt=STORY, temperature=0, max_tokens=12, extra_body=extra)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == whole.token_ids.index(whole.token_ids[3]) + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frequency_penalty", 2.5),
        ("presence_penalty", "much"),
        ("logit_bias", {"50": 101}),
        ("logit_bias", {"fifty": 1}),
        ("logit_bias", {"50": True}),
        ("stop_token_ids", ["x"]),
        ("response_format", {"type": "json_object"}),
        ("tools", [{"type": "function"}]),
        ("user", "somebody"),
        ("banana", 1),
        ("best_of", 3),
        ("stream_options", {"include_usage": True}),
        ("n", 0),
        ("top_p", 1.5),
        ("stop", ["x"] * 65),
        ("temperature", -1),
        ("temperature", "hot"),
        ("max_tokens", 10**6),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="tiny", prompt="x", extra_body={field: value})
    assert field in str(refused.value)


def test_values_without_effect_are_accepted(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=CHAT,
        max_tokens=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        n=1,
        stop=None,
        tools=[],
        store=False,
    )


def test_errors_are_the_clients_own(client: openai.OpenAI, offline: Engine) -> None:
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * offline.max_model_len)
    assert long.value.code == "context_length_exceeded"
    assert str(offline.max_model_len) in str(long.value)
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model="tiny", prompt=[10**9])
    with pytest.raises(openai.BadRequestError, match="nothing to continue"):
        client.completions.create(model="tiny", prompt="")
    with pytest.raises(openai.APIError, match="too long for the model"):
        list(client.completions.create(model="tiny", prompt=[5] * offline.max_model_len, stream=True))
