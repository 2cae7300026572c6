"""Biases, penalties and processors of one's own: what they do, alone and in company, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor, SuppressTokensLogitsProcessor

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.errors import RequestError
from tests.cases import few
from tests.engine.asking import GREEDY, MAIN, answer
from tests.families import DEVICE, char_tokenizer, tiny_model

Processor = Callable[[Tensor, Tensor], Tensor]
MAIN_IDS: list[int] = char_tokenizer()(MAIN)["input_ids"]
PROMPT_IDS: list[int] = char_tokenizer()("abc")["input_ids"]


def penalised(presence: float, frequency: float) -> Processor:
    """OpenAI's definition: mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting the answer's tokens."""

    def process(ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for token, count in Counter(ids[0, len(MAIN_IDS) + len(PROMPT_IDS) :].tolist()).items():
            scores[0, token] -= count * frequency + presence
        return scores

    return process


def reference(model: Any, processors: list[Processor], length: int = 12) -> list[int]:
    """Greedy decoding by full forwards, with processors in their order."""
    ids = [*MAIN_IDS, *PROMPT_IDS]
    for _ in range(length):
        context = torch.tensor([ids], device=DEVICE)
        with torch.no_grad():
            scores = model(context).logits[:, -1].float()
        for process in processors:
            scores = process(context, scores)
        ids.append(int(scores[0].argmax()))
    return ids[-length:]


def likeliest(model: Any) -> int:
    return reference(model, [], 1)[0]


CASES: dict[str, tuple[dict[str, Any], Callable[[Any], list[Processor]]]] = {
    "presence": ({"presence_penalty": 1.5}, lambda model: [penalised(1.5, 0)]),
    "frequency": ({"frequency_penalty": 0.3}, lambda model: [penalised(0, 0.3)]),
    "encouraged": ({"frequency_penalty": -2, "presence_penalty": -1}, lambda model: [penalised(-1, -2)]),
    "both": ({"presence_penalty": 0.2, "frequency_penalty": 0.1}, lambda model: [penalised(0.2, 0.1)]),
    "repetition": ({"repetition_penalty": 1.7}, lambda model: [RepetitionPenaltyLogitsProcessor(1.7)]),
    "rewarded": ({"repetition_penalty": 0.5}, lambda model: [RepetitionPenaltyLogitsProcessor(0.5)]),
    "bias": (
        {"logit_bias": {5: 0.4, 17: -100}},
        lambda model: [SequenceBiasLogitsProcessor({(5,): 0.4, (17,): -100.0})],
    ),
    "processor": (
        {"logits_processor": SuppressTokensLogitsProcessor([3, 4, 5])},
        lambda model: [SuppressTokensLogitsProcessor([3, 4, 5])],
    ),
    "all": (
        {
            "logit_bias": {"9": 0.3},
            "repetition_penalty": 1.3,
            "presence_penalty": 0.1,
            "frequency_penalty": 0.2,
            "logits_processor": [SuppressTokensLogitsProcessor([8]), lambda ids, scores: scores.roll(1)],
        },
        lambda model: [
            SequenceBiasLogitsProcessor({(9,): 0.3}),
            RepetitionPenaltyLogitsProcessor(1.3),
            penalised(0.1, 0.2),
            SuppressTokensLogitsProcessor([8]),
            lambda ids, scores: scores.roll(1),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_parameter_is_what_transformers_or_openai_says(model: Any, engine: Engine, case: str) -> None:
    settings, processors = CASES[case]
    found = answer(engine, **settings).token_ids
    assert found == reference(model, processors(model))
    if case not in ("bias", "processor"):
        assert found != answer(engine).token_ids, "it must matter for this to test anything"


def test_a_bias_bans_and_forces(model: Any, engine: Engine) -> None:
    banned = likeliest(model)
    assert banned not in answer(engine, logit_bias={banned: -100}, max_new_tokens=30).token_ids
    assert answer(engine, logit_bias={banned: 100}).token_ids == [banned] * 12
    text = answer(engine, logit_bias={str(banned): -100}, logprobs=1)
    assert text.logprobs[0].top[0][0] == banned, "log-probabilities are the model's own"


@pytest.mark.parametrize("visibility", ["isolated", "columnar", "strict"])
@pytest.mark.parametrize("temperature", few([1.2, 0.0]))
def test_alone_and_in_company(visibility: Any, temperature: float) -> None:
    """Every parameter beside every other, and none: no branch knows of the others' parameters."""
    engine = Engine(tiny_model("qwen2"), char_tokenizer(), visibility=visibility)

    def branch(place: int, settings: dict[str, Any]) -> Branch:
        common = {"max_new_tokens": 10, "temperature": temperature, "seed": place, "ignore_eos": True}
        return Branch(prompt="abc"[: place % 4], branch_id=place + 1, sampling=SamplingParams(**(common | settings)))

    kinds = [{}, *(settings for settings, _ in CASES.values()), {"stop_token_ids": list(range(0, 97, 9))}]
    branches = [branch(place, settings) for place, settings in enumerate(kinds * 2)]
    if visibility == "columnar":  # whose branches do see each other: requests are the company
        requests = [Request(main=MAIN, branches=[one]) for one in branches]
    else:
        requests = [Request(main=MAIN, branches=branches)]
    together = [one.token_ids for result in engine.generate(requests) for one in result.branches]
    for one, ids in zip(branches, together, strict=True):
        if visibility == "strict" and not one.prompt:
            assert ids == []
            continue
        assert engine.generate(Request(main=MAIN, branches=[one]))[0].branches[0].token_ids == ids


def test_put_back_branches_keep_what_they_counted(model: Any) -> None:
    params = SamplingParams(
        max_new_tokens=30,
        temperature=0,
        ignore_eos=True,
        repetition_penalty=1.2,
        frequency_penalty=0.2,
        logit_bias={4: 1},
    )
    request = Request(main=MAIN, branches=["ab", "c", "def", "g"])
    expected = [one.token_ids for one in Engine(model, char_tokenizer()).generate(request, params)[0].branches]
    tight = Engine(model, char_tokenizer(), page_tokens=4, kv_cache_bytes=80 * 512)
    assert [one.token_ids for one in tight.generate(request, params)[0].branches] == expected
    assert tight.stats.preemptions


@pytest.mark.parametrize("stop", [True, False])
def test_stop_token_ids_end_an_answer(engine: Engine, stop: bool) -> None:
    whole = answer(engine)
    token = whole.token_ids[4]
    place = whole.token_ids.index(token)
    found = answer(engine, stop_token_ids=[token, 96] if stop else [])
    if not stop:
        assert found.token_ids == whole.token_ids
        return
    assert found.finish_reason == "stop"
    assert found.token_ids == whole.token_ids[: place + 1]
    assert found.text == whole.text[: place + 1], "as vLLM: the token is part of the answer"
    assert answer(engine, stop_token_ids=token).token_ids == found.token_ids


def test_a_processor_sees_what_generate_of_transformers_shows_it(engine: Engine) -> None:
    seen: list[list[int]] = []

    def note(ids: Tensor, scores: Tensor) -> Tensor:
        assert scores.shape == (1, 97)
        seen.append(ids.tolist()[0])
        scores.fill_(0)  # a processor may change what it is given
        scores[0, 6] = 1
        return scores

    found = answer(engine, logits_processor=note, max_new_tokens=3, logprobs=0)
    assert found.token_ids == [6, 6, 6]
    assert seen == [[*MAIN_IDS, *PROMPT_IDS, *[6] * count] for count in range(3)]
    assert len({one.logprob for one in found.logprobs}) == 3, "log-probabilities are the model's own"


def broken(ids: Tensor, scores: Tensor) -> Tensor:
    raise KeyError("mine")


FAILING: dict[str, tuple[Processor, str]] = {
    "raises": (broken, r"failed \(KeyError: 'mine'\)"),
    "nothing left": (lambda ids, scores: torch.full_like(scores, -torch.inf), "no scores to draw from"),
    "not a number": (lambda ids, scores: scores * torch.nan, "no scores to draw from"),
    "shape": (lambda ids, scores: scores[:, :5], r"shape \[1, 5\]|failed"),
    "type": (lambda ids, scores: None, "failed"),  # type: ignore[arg-type, return-value]
}


@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_processor_that_fails_ends_its_branch_alone(engine: Engine, case: str, temperature: float) -> None:
    processor, reason = FAILING[case]
    expected = answer(engine).token_ids
    bad = SamplingParams(temperature=temperature, logits_processor=processor)
    branches = [Branch(prompt="abc", sampling=GREEDY), Branch(prompt="abc", sampling=bad)]
    first, second = engine.generate(Request(main=MAIN, branches=branches))[0].branches
    assert first.token_ids == expected
    assert (second.finish_reason, second.error_kind) == ("error", "invalid")
    assert second.error is not None
    with pytest.raises(RequestError, match=reason):
        raise RequestError(second.error)
    assert answer(engine).token_ids == expected


def test_a_processor_must_not_use_its_engine(engine: Engine) -> None:
    def nested(ids: Tensor, scores: Tensor) -> Tensor:
        engine.generate("again", GREEDY)
        return scores

    found = answer(engine, logits_processor=nested)
    assert "in the middle of its own step" in str(found.error)
    assert answer(engine).finish_reason == "length"
    assert not engine.has_unfinished()


def test_a_bias_outside_the_vocabulary_is_refused(engine: Engine) -> None:
    found = answer(engine, logit_bias={97: 1})
    assert (found.error_kind, found.finish_reason) == ("vocabulary", "error")
    assert "97" in str(found.error)
    assert answer(engine, logit_bias={96: 1}).finish_reason == "length"


class Elements(TorchDispatchMode):
    """Counts the numbers that tensor operations give."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += out.numel() if isinstance(out, Tensor) else 0
        return out


def test_a_step_does_not_go_through_main_again(model: Any) -> None:
    """Counts, not time: with penalties a step handles as much more for a main of 3,000 tokens as for one of 97."""

    def handled(length: int, **settings: Any) -> int:
        engine = Engine(model, char_tokenizer(), max_batched_tokens=4096)
        engine.max_model_len = 4000
        params = SamplingParams(**({"max_new_tokens": 9, "temperature": 0, "ignore_eos": True} | settings))
        engine.add_request(Request(main=[place % 97 for place in range(length)], branches=[[5]] * 16), params)
        for _ in range(4):
            engine.step()
        with Elements() as elements:
            engine.step()
        return elements.count

    penalties = {"repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "logit_bias": {3: 1}}
    short = handled(97, **penalties) - handled(97)
    long = handled(3000, **penalties) - handled(3000)
    assert short > 0
    assert abs(long - short) <= 16 * 97, "what the branches wrote makes a difference, the length of main none"
