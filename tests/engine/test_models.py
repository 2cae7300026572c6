"""Which models an engine takes and which it refuses, and that a model is as before outside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from parallelmind import Engine, Request, SamplingParams
from parallelmind.columnar import FULL, Reach
from parallelmind.errors import UnsupportedModelError
from parallelmind.models.layer_reach import read_reaches, short_reaches
from tests.cases import few
from tests.engine.asking import GREEDY, MAIN, answer
from tests.families import DEVICE, WITHOUT_ROPE, char_tokenizer, tiny_model


def test_the_model_is_as_before_outside_the_engine(model: Any, engine: Engine) -> None:
    ids = torch.tensor([[5, 6, 7]], device=DEVICE)
    before = model(ids).logits
    implementation = model.config._attn_implementation
    answer(engine)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(ids).logits, before)


def test_two_engines_share_a_model(model: Any, engine: Engine) -> None:
    other = Engine(model, char_tokenizer(), visibility="strict")
    request = Request(main=MAIN, branches=["abc"])
    expected = engine.generate([request], GREEDY)[0].branches[0].token_ids
    first, second = engine.add_request(request, GREEDY), other.add_request(request, GREEDY)
    tokens: dict[str, list[int]] = {"first": [], "second": []}
    while engine.has_unfinished() or other.has_unfinished():
        for event in engine.step():
            tokens["first"] += event.token_ids if event.request_index == first else ()
        for event in other.step():
            tokens["second"] += event.token_ids if event.request_index == second else ()
    assert tokens["first"] == expected
    assert tokens["second"] != expected


@pytest.mark.parametrize("family", ["mamba", "jamba", "qwen3_next", "bloom", "mpt", "gpt_neo", "doge"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_cannot_branch_are_refused(family: str, dtype: torch.dtype) -> None:
    if family == "doge" and DEVICE != "cpu":
        pytest.skip("all its keys weigh the same without training, and topk breaks ties otherwise on a GPU")
    settings: dict[str, Any] = {"gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2}}
    with pytest.raises(UnsupportedModelError, match=r"full or sliding attention|decoder-only transformer"):
        Engine(tiny_model(family, dtype, **settings.get(family, {})), char_tokenizer())


_MIXED_CHUNKS = {
    "attention_chunk_size": 6,
    "layer_types": ["chunked_attention", "full_attention"],
    "num_local_experts": 4,
    "head_dim": 16,
    "intermediate_size_mlp": 32,
}


@pytest.mark.parametrize(
    ("family", "settings", "reaches"),
    [
        ("phimoe", {}, {Reach(window=6)}),
        ("qwen2_moe", {}, {Reach(window=6), FULL}),
        ("gemma3_text", {"sliding_window": 1000}, {Reach(window=1000), FULL}),
        ("llama4_text", _MIXED_CHUNKS, {Reach(chunk=6), FULL}),
        ("qwen2", {"sliding_window": 6, "use_sliding_window": False}, {FULL}),
        ("mistral", {"sliding_window": 5000}, {FULL}),  # the model takes 4,096 tokens
    ],
)
def test_what_a_layer_sees_is_what_its_mask_says(family: str, settings: dict[str, Any], reaches: set[Reach]) -> None:
    model = tiny_model(family, **settings)
    before = model.config.to_dict()
    with short_reaches(model, read_reaches(model)) as short:
        assert max(reach.window or reach.chunk or 0 for reach in short) < 6
        assert len(short) == len(reaches)
    assert read_reaches(model) == reaches
    assert model.config.to_dict() == before
    engine = Engine(model, char_tokenizer(), page_tokens=4)
    main, prompts = [3 + i * 7 % 90 for i in range(21)], [[5], [6, 7, 8], [9] * 8, [10, 11]]
    found = engine.generate([Request(main=main, branches=prompts)] * 2, GREEDY)
    for prompt, branch in zip(prompts, found[0].branches, strict=True):
        assert branch.token_ids == alone(model, [*main, *prompt], len(branch.token_ids))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {}),
        ("mistral", {"sliding_window": 300}),
        ("gemma2", {"sliding_window": 400}),
        ("gpt_oss", {"sliding_window": 257}),
        ("llama4_text", _MIXED_CHUNKS | {"attention_chunk_size": 300}),
    ],
)
@pytest.mark.parametrize("budget", few([700, 2048, 37]))
def test_long_prompts_are_those_of_the_models_own_forward(family: str, settings: dict[str, Any], budget: int) -> None:
    """Blocks that hundreds of tokens read, behind windows and chunks, in forwards of many and of few tokens."""
    model = tiny_model(family, **settings)
    mains = [[3 + (i * i % 11 + i * step) % 90 for i in range(count)] for count, step in ((1700, 7), (900, 5))]
    requests = [Request(main=main, branches=[main[:300], [5, 6]]) for main in mains]
    params = SamplingParams(max_new_tokens=1, temperature=0, ignore_eos=True, logprobs=1)
    found = Engine(model, char_tokenizer(), max_batched_tokens=budget).generate(requests, params)
    for request, result in zip(requests, found, strict=True):
        for prompt, branch in zip(request.branches, result.branches, strict=True):
            row = torch.tensor([[*request.main, *prompt]], device=DEVICE)  # type: ignore[misc, list-item]
            with torch.no_grad():
                expected = torch.log_softmax(model(row).logits[0, -1].float(), -1).max()
            assert branch.logprobs[0].logprob == pytest.approx(float(expected), abs=1e-4)


def test_scales_by_the_place_in_the_row_limit_the_length() -> None:
    """llama4 without rotary embedding scales queries by their place in the row, which is not their time."""
    model = tiny_model("llama4_text", **_MIXED_CHUNKS, no_rope_layers=[1, 0], floor_scale=24)
    engine = Engine(model, char_tokenizer(), page_tokens=4)
    assert engine.max_model_len == 23
    requests = [Request(main=[3 + (i + start) * 7 % 90 for i in range(9)], branches=[[start]]) for start in range(5)]
    found = engine.generate(requests, GREEDY)
    for start, (request, result) in enumerate(zip(requests, found, strict=True)):
        assert result.branches[0].token_ids == alone(model, [*request.main, start], 12)


@torch.no_grad()
def alone(model: Any, ids: list[int], count: int) -> list[int]:
    """The next tokens by whole forwards."""
    for _ in range(count):
        row = torch.tensor([ids], device=DEVICE)
        ids = [*ids, int(model(row, attention_mask=torch.ones_like(row)).logits[0, -1].argmax())]
    return ids[-count:]


def test_a_wrong_model_is_caught_by_the_parity_check() -> None:
    """A rotary embedding that ignores positions of a cached step differs from the model's own forward."""
    model = tiny_model("llama")
    original = model.model.rotary_emb.forward

    def forward(x: Any, position_ids: Any) -> Any:
        return original(x, torch.arange(position_ids.shape[1], device=DEVICE)[None])

    model.model.rotary_emb.forward = forward
    with pytest.raises(UnsupportedModelError, match="logits differ"):
        Engine(model, char_tokenizer())


def _replace(model: Any) -> None:
    layer = model.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight * 3)


def _load(model: Any) -> None:
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def _merge(model: Any) -> None:
    model.model.layers[1].self_attn.v_proj.weight.data += 0.5


def _train(model: Any) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.tensor([[5, 6, 7, 8]], device=DEVICE)
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def _move(model: Any) -> None:
    """As to another device and back: what was recorded for a GPU would read where the weights were."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


@pytest.mark.parametrize("change", [_replace, _load, _merge, _train, _move])
def test_keys_of_former_weights_are_not_read_again(change: Callable[[Any], None]) -> None:
    model = tiny_model("qwen2")
    engine = Engine(model, char_tokenizer())
    answer(engine)
    assert answer(engine).cached_main_tokens > 0
    change(model)
    training = model.training
    found = answer(engine)
    assert model.training is training, "the mode is as it was"
    assert found.cached_main_tokens == 0
    assert found.token_ids == answer(Engine(model, char_tokenizer())).token_ids
    assert answer(engine).cached_main_tokens > 0


def test_a_model_in_training_mode_answers_without_dropout() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    expected = answer(Engine(model, char_tokenizer())).token_ids
    model.train()
    engine = Engine(model, char_tokenizer())
    assert answer(engine).token_ids == expected
    assert all(module.training for module in model.modules())


def test_gpt2_runs_without_2d_rope() -> None:
    assert "gpt2" in WITHOUT_ROPE
    assert len(answer(Engine(tiny_model("gpt2"), char_tokenizer())).token_ids) == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(dtype: torch.dtype) -> None:
    for family in ("qwen2", "gemma2", "falcon"):
        engine = Engine(tiny_model(family, dtype), char_tokenizer(), visibility="columnar")
        result = engine.generate([Request(main=MAIN, branches=["ab", "c"])], GREEDY)[0]
        assert [len(branch.token_ids) for branch in result.branches] == [12, 12]
