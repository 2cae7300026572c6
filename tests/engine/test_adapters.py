"""Several adapters in one forward: each answers as it would alone on the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parallelmind import Branch, Engine, Request, RequestResult, SamplingParams, load_model_with_lora
from parallelmind.columnar import Visibility, auto_pair_indices, patch_model_with_interleaved_2d_rope
from parallelmind.errors import AdapterError, RequestError, SettingsError
from parallelmind.models.adapters import AdapterSet, attach_adapters
from parallelmind.models.lora import apply_lora, load_lora, save_lora
from parallelmind.models.lora_layers import lora_layers
from parallelmind.models.sidecar import RopeSettings, Sidecar
from tests.cases import few
from tests.families import DEVICE, char_tokenizer, tiny_model
from tests.random_model import save_random_model

GREEDY = SamplingParams(max_new_tokens=8, temperature=0, ignore_eos=True, logprobs=0)
MAIN = "the-shared-text"
PROMPTS = ["abc", "d", "efghijkl", ""]
ROPE = RopeSettings(branch_stride=16)
SETTINGS: dict[str, RopeSettings | None] = {
    "first": ROPE,
    "second": RopeSettings(branch_stride=5),
    "plain": None,
}
"""Strides of their own, and one adapter trained without 2D RoPE."""


def save_adapter(path: Path, family: str, seed: int, **settings: Any) -> Path:
    model = apply_lora(tiny_model(family), rank=3 + seed, seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora.B.weight.copy_(0.2 * torch.randn(layer.lora.B.weight.shape, generator=generator))
    return save_lora(model, path)


def patched(model: Any, settings: RopeSettings | None) -> Any:
    if settings is not None:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, settings.ratio), settings.mode)
    return model


def alone(family: str, path: Path | None, settings: RopeSettings | None, visibility: Visibility) -> Engine:
    """The usual way: one adapter on one model."""
    model = patched(tiny_model(family), settings)
    if path is not None:
        load_lora(model, path)
    stride = 128 if settings is None else settings.branch_stride
    return Engine(model, char_tokenizer(), visibility=visibility, branch_stride=stride)


def together(family: str, paths: dict[str, Path], **limits: Any) -> Engine:
    model = patched(tiny_model(family), ROPE)
    adapters = AdapterSet()
    for name in paths:
        adapters.register(name, SETTINGS[name])
    attach_adapters(model, adapters, paths)
    return Engine(model, char_tokenizer(), adapters=adapters, **limits)


@pytest.mark.parametrize(
    "family", few(["qwen2", "falcon", "mixtral", "llama", "gemma2", "phi3", "gpt_neox", "cohere", "deepseek_v3"], 3)
)
def test_each_adapter_answers_as_alone(family: str, tmp_path: Path) -> None:
    """Mixed with each other and with the base model in the same forwards, under the same main."""
    paths = {name: save_adapter(tmp_path / name, family, seed) for seed, name in enumerate(SETTINGS)}
    engine = together(family, paths)
    names = ["", *SETTINGS]
    requests = [Request(main=MAIN, branches=PROMPTS, adapter=name) for name in names]
    requests += [Request(main=MAIN, adapter=name) for name in names]
    results = engine.generate(requests, GREEDY)
    answers = set()
    for request, result in zip(requests, results, strict=True):
        name = request.adapter
        reference = alone(family, paths.get(name), SETTINGS.get(name), "isolated")
        expected = reference.generate([Request(main=MAIN, branches=request.branches)], GREEDY)[0]
        for mine, theirs in zip(result.branches, expected.branches, strict=True):
            assert mine.token_ids == theirs.token_ids, (name, mine, theirs)
            likelihoods = [token.logprob for token in mine.logprobs]
            assert likelihoods == pytest.approx([token.logprob for token in theirs.logprobs], abs=1e-3)
        answers.add(tuple(result.branches[0].token_ids))
    assert len(answers) > 4, "the adapters must matter for this to test anything"


@pytest.mark.parametrize("visibility", few(["columnar", "isolated", "strict"]))
def test_adapters_and_visibilities_mix_in_one_engine(visibility: Visibility, tmp_path: Path) -> None:
    paths = {name: save_adapter(tmp_path / name, "qwen2", seed) for seed, name in enumerate(SETTINGS)}
    engine = together("qwen2", paths, max_batched_tokens=9, max_running_branches=6)
    prompts = ["abc", "d", "efghi"]
    requests = [
        Request(main=MAIN, branches=prompts, adapter=name, visibility=seen)
        for name in SETTINGS
        for seen in (visibility, "isolated")
    ]
    for request, result in zip(requests, engine.generate(requests, GREEDY), strict=True):
        name = request.adapter
        assert request.visibility is not None
        reference = alone("qwen2", paths[name], SETTINGS[name], request.visibility)
        expected = reference.generate([Request(main=MAIN, branches=prompts)], GREEDY)[0]
        assert [b.token_ids for b in result.branches] == [b.token_ids for b in expected.branches]


def test_the_branches_of_a_request_may_use_different_adapters(tmp_path: Path) -> None:
    paths = {name: save_adapter(tmp_path / name, "qwen2", seed) for seed, name in enumerate(SETTINGS)}
    engine = together("qwen2", paths)
    branches = [Branch(prompt="abc", adapter=name, branch_id=1 + place) for place, name in enumerate(["", *SETTINGS])]
    result = engine.generate([Request(main=MAIN, branches=branches)], GREEDY)[0]
    for branch, answer in zip(branches, result.branches, strict=True):
        name = str(branch.adapter)
        one = Branch(prompt="abc", branch_id=branch.branch_id)
        reference = alone("qwen2", paths.get(name), SETTINGS.get(name), "isolated")
        assert (
            answer.token_ids
            == reference.generate([Request(main=MAIN, branches=[one])], GREEDY)[0].branches[0].token_ids
        )
    with pytest.raises(RequestError, match=r"columnar.*read one another"):
        engine.add_request(Request(main=MAIN, branches=branches, visibility="columnar"))


def test_a_cached_main_belongs_to_its_adapter(tmp_path: Path) -> None:
    paths = {"first": save_adapter(tmp_path / "first", "qwen2", 0)}
    engine = together("qwen2", paths)

    def cached(adapter: str) -> int:
        result = engine.generate([Request(main=MAIN, branches=["a"], adapter=adapter)], GREEDY)[0]
        return result.branches[0].cached_main_tokens

    assert [cached(name) for name in ("", "first", "", "first")] == [0, 0, len(MAIN), len(MAIN)]


@pytest.mark.parametrize("settings", [{"use_rslora": True, "alpha": 7}, {"use_dora": True}, {"alpha": 2}], ids=str)
def test_the_kinds_of_lora(settings: dict[str, Any], tmp_path: Path) -> None:
    for family in ("qwen2", "olmo2"):  # with and without biases
        path = save_adapter(tmp_path / family, family, 1, **settings)
        engine = together(family, {"plain": path})
        request = Request(main=MAIN, branches=PROMPTS)
        mine = engine.generate([Request(main=MAIN, branches=PROMPTS, adapter="plain")], GREEDY)[0]
        expected = alone(family, path, None, "isolated").generate([request], GREEDY)[0]
        assert [b.token_ids for b in mine.branches] == [b.token_ids for b in expected.branches]


def test_an_adapter_on_the_output_head(tmp_path: Path) -> None:
    model = apply_lora(tiny_model("qwen2"), rank=4, seed=0, target_modules=["lm_head", "q_proj"])
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora.B.weight, generator=torch.Generator(DEVICE).manual_seed(0))
    path = save_lora(model, tmp_path / "head")
    engine = together("qwen2", {"plain": path})
    requests = [Request(main=MAIN, branches=PROMPTS, adapter=name) for name in ("plain", "")]
    adapted, base = engine.generate(requests, GREEDY)
    expected = alone("qwen2", path, None, "isolated").generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)[0]
    assert [b.token_ids for b in adapted.branches] == [b.token_ids for b in expected.branches]
    expected = alone("qwen2", None, None, "isolated").generate([Request(main=MAIN, branches=PROMPTS)], GREEDY)[0]
    assert [b.token_ids for b in base.branches] == [b.token_ids for b in expected.branches]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base model, and adapters with sidecars of several settings."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models")
    base = save_random_model(folder / "base")
    paths = {"base": str(base)}
    ropes = {"a": ROPE, "b": RopeSettings(branch_stride=7, visibility="columnar"), "none": None}
    ropes |= {"ratio": RopeSettings(ratio=0.25), "additive": RopeSettings(mode="additive")}
    for seed, (name, rope) in enumerate(ropes.items()):
        model = apply_lora(AutoModelForCausalLM.from_pretrained(base), rank=2 + seed, seed=seed)
        for layer in lora_layers(model).values():
            torch.nn.init.normal_(layer.lora.B.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
        sidecar = Sidecar(rope=rope, rank=2 + seed, base_model=str(base))
        paths[name] = str(save_lora(model, folder / f"{name}.pth", sidecar=sidecar))
    return paths


def test_loading_several_adapters(folders: dict[str, str]) -> None:
    named = {name: folders[name] for name in ("a", "b", "none")}
    engine = Engine.from_pretrained(folders["base"], lora_path=named, device="cpu", dtype="float32")
    prompts = ["How?", "Why is that?"]
    requests = [Request(main="Once upon a time", branches=prompts, adapter=name) for name in ("", "a", "b", "none")]
    for request, result in zip(requests, engine.generate(requests, GREEDY), strict=True):
        path = folders[request.adapter] if request.adapter else None
        single = load_model_with_lora(folders["base"], path, device="cpu", dtype="float32")
        reference = Engine(
            single.model,
            single.tokenizer,
            visibility=single.settings.visibility,
            branch_stride=single.settings.branch_stride,
        )
        expected = reference.generate([Request(main="Once upon a time", branches=prompts)], GREEDY)[0]
        assert [b.text for b in result.branches] == [b.text for b in expected.branches], request.adapter


@pytest.mark.parametrize(("other", "field"), [("ratio", "rope_2d_ratio"), ("additive", "rope_2d_mode")])
def test_adapters_that_contradict_each_other_are_refused(folders: dict[str, str], other: str, field: str) -> None:
    named = {"mine": folders["a"], "yours": folders[other]}
    with pytest.raises(SettingsError, match=rf"mine and yours contradict.*{field}"):
        Engine.from_pretrained(folders["base"], lora_path=named, device="cpu", dtype="float32")


def test_flags_and_adapters_that_do_not_fit_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    def load(adapters: dict[str, str], **flags: Any) -> None:
        Engine.from_pretrained(folders["base"], lora_path=adapters, device="cpu", dtype="float32", **flags)

    with pytest.raises(SettingsError, match=r"(?s)adapter a .*branch_stride 3 given, 16 stored"):
        load({"a": folders["a"]}, branch_stride=3)
    with pytest.raises(SettingsError, match=r"no_patch_rope contradicts the adapter a"):
        load({"a": folders["a"]}, patch_rope=False)
    with pytest.raises(AdapterError, match="rank is 2, but rank 5"):
        load({"a": folders["a"]}, lora_rank=5)
    with pytest.raises(AdapterError, match="no such file"):
        load({"a": str(tmp_path / "missing.pth")})
    foreign = save_adapter(tmp_path / "foreign.pth", "qwen2", 0)
    with pytest.raises(AdapterError, match="another base model"):
        load({"a": folders["a"], "foreign": str(foreign)})


def test_an_unknown_adapter_is_refused(tmp_path: Path) -> None:
    engine = together("qwen2", {"first": save_adapter(tmp_path / "first", "qwen2", 0)})
    with pytest.raises(RequestError, match=r"'third' is not loaded; the loaded ones: 'first'"):
        engine.add_request(Request(main=MAIN, adapter="third"))


def test_the_weights_served_are_no_view_of_the_file(tmp_path: Path) -> None:
    path = save_adapter(tmp_path / "first.pth", "qwen2", 0)
    engine = together("qwen2", {"plain": path})
    request = Request(main=MAIN, branches=["abc"], adapter="plain")
    expected = engine.generate([request], GREEDY)[0].branches[0].token_ids
    with path.open("rb+") as file:  # as cp does, other than a rename
        file.write(bytes(path.stat().st_size))
    engine.reset_prefix_cache()
    assert engine.generate([request], GREEDY)[0].branches[0].token_ids == expected


def test_a_request_with_two_adapters_is_one_request(tmp_path: Path) -> None:
    paths = {name: save_adapter(tmp_path / name, "qwen2", seed) for seed, name in enumerate(("first", "second"))}
    engine = together("qwen2", paths, max_running_requests=1)
    branches = [Branch(prompt="a", adapter="first"), Branch(prompt="b", adapter="second")]
    engine.add_request(Request(main=MAIN, branches=branches), GREEDY)
    engine.add_request(Request(main=MAIN, branches=["c"], adapter="first"), GREEDY)
    for _ in range(3):
        engine.step()
    assert (engine.num_running_branches, engine.num_waiting_branches) == (2, 1)


@pytest.mark.parametrize("family", few(["cohere", "qwen2", "deepseek_v3"]))
def test_forks_and_joins_with_turned_keys_are_those_of_the_adapter_alone(family: str, tmp_path: Path) -> None:
    """Also without an adapter, whose positions are the unpatched model's, and for an adapter of another stride."""
    paths = {name: save_adapter(tmp_path / name, family, seed) for seed, name in enumerate(SETTINGS)}
    engine = together(family, paths)
    requests = [Request(main=MAIN, branches=PROMPTS[:3], adapter=name) for name in ["", *SETTINGS]]
    engine.generate(requests, GREEDY)
    forks: dict[int, int] = {}
    results: dict[tuple[int, int], Any] = {}
    for event in engine.stream(requests, GREEDY):
        if event.result is not None:
            results[event.request_index, event.branch_index] = event.result
        elif event.branch_index == 1 and event.request_index not in forks:
            [forks[event.request_index]] = engine.fork(event.request_id, 1, prompts=["xyz"], sampling=[GREEDY])
    for index, request in enumerate(requests):
        name = request.adapter
        expected = alone(family, paths.get(name), SETTINGS.get(name), "isolated")
        fork = results[index, forks[index]]
        prompt = [*char_tokenizer()(PROMPTS[1])["input_ids"], *fork.prefix_token_ids]
        again = Request(main=MAIN, branches=[Branch(prompt=prompt, branch_id=2)])
        assert fork.token_ids == expected.generate([again], GREEDY)[0].branches[0].token_ids
        answers = RequestResult(branches=[results[index, place] for place in range(3)])
        joined = engine.join(request, answers, branches=["next"], join="turned")
        same = expected.join(replace(request, adapter=""), answers, branches=["next"], join="turned")
        found, reference = engine.generate([joined], GREEDY)[0], expected.generate([same], GREEDY)[0]
        assert found.branches[0].token_ids == reference.branches[0].token_ids
        logprobs = [p.logprob for p in reference.branches[0].logprobs]
        assert [p.logprob for p in found.branches[0].logprobs] == pytest.approx(logprobs, abs=1e-3)
    assert engine.stats.turned_tokens > 0
