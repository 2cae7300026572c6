"""Sampling, against transformers' own processors over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallelmind import SamplingParams
from parallelmind.engine.sampler import SamplerRow, _candidates, processors, sample

SETTINGS: list[dict[str, Any]] = [
    {"top_p": 0.9},
    {"top_p": 0.3, "top_k": 50},
    {"top_p": 1.0, "top_k": 7},
    {"top_p": 1.0, "min_p": 0.2},
    {"top_p": 0.8, "top_k": 2000, "min_p": 0.01},
    {"top_p": 0.95, "temperature": 3.0},
    {"top_p": 1.0},
]


def row(params: SamplingParams, seed: int = 0) -> SamplerRow:
    return SamplerRow(params=params, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("vocabulary", [50, 5000])
def test_candidates_have_the_probabilities_the_processors_give(settings: dict[str, Any], vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(1)
    params = SamplingParams(**({"temperature": 1.0} | settings))
    scores = torch.randn(6, vocabulary, generator=generator) * torch.tensor([0.1, 1, 2, 4, 8, 16])[:, None]
    expected = processors(params)(None, scores).softmax(-1)
    ids, weights, settled = _candidates(scores, params)
    probabilities = torch.zeros_like(scores).scatter(1, ids, weights / weights.sum(-1, keepdim=True))
    assert settled.any() or (vocabulary > 1024 and params.top_p == 1.0)
    torch.testing.assert_close(probabilities[settled], expected[settled], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    params = SamplingParams(**({"temperature": 0.9} | settings))
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(2)) * 4
    expected = processors(params)(None, logits / params.temperature).softmax(-1)[0]
    draws = 3000
    rows = [row(params, seed) for seed in range(draws)]
    counts = torch.bincount(torch.tensor(sample(logits.expand(draws, -1), rows)), minlength=3000) / draws
    # The mean distance of as many fair draws is at most sqrt(2 K / pi draws) for K possible tokens.
    possible = int((expected > 0).sum())
    assert (counts - expected).abs().sum() < 1.5 * (2 * possible / (torch.pi * draws)) ** 0.5
    assert counts[expected == 0].sum() == 0


def test_greedy_takes_the_likeliest_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 4.0]])
    greedy = SamplingParams(temperature=0)
    assert sample(logits, [SamplerRow(greedy, None), SamplerRow(greedy, None)]) == [1, 0]


@pytest.mark.parametrize("temperature", [1e-5 / 2, 1e-20, 1e-38, 5e-324])
def test_a_very_small_temperature_is_its_limit(temperature: float) -> None:
    """Also between tokens that are equally likely, and however far the logits are apart."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 1e-30, 2e-30, 0.0], [-1e30, 0.0, 1e30, -torch.inf]])
    rows = [row(SamplingParams(temperature=temperature, top_p=1)) for _ in range(3)]
    assert sample(logits, rows) == [1, 2, 2] == sample(logits, [row(SamplingParams(temperature=0))] * 3)


def test_a_small_temperature_draws_by_it() -> None:
    """Just above: tokens as near as the temperature says are drawn both."""
    near = torch.tensor([[0.0, 1e-4, -1.0]]).expand(200, -1)
    drawn = sample(near, [row(SamplingParams(temperature=1e-4, top_p=1), seed) for seed in range(200)])
    assert 25 < drawn.count(0) < 85, "e / (1 + e) of the draws are of the likelier token"
    assert drawn.count(0) + drawn.count(1) == 200


def test_whole_numbers_are_numbers() -> None:
    """transformers' processors take no temperature or penalty of type int."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(5))
    for whole, real in (
        (SamplingParams(temperature=2, top_p=1), SamplingParams(temperature=2.0, top_p=1.0)),
        (SamplingParams(repetition_penalty=2), SamplingParams(repetition_penalty=2.0)),
        (SamplingParams(presence_penalty=2), SamplingParams(presence_penalty=2.0)),
    ):
        assert whole == real
        assert sample(logits, [row(whole, 1)]) == sample(logits, [row(real, 1)])


def test_a_draw_does_not_depend_on_its_company() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(9, 4000, generator=generator) * 3
    params = [SamplingParams(**({"temperature": 0.8} | SETTINGS[i % len(SETTINGS)])) for i in range(9)]
    together = sample(logits, [row(p, seed) for seed, p in enumerate(params)])
    alone = [sample(logits[i : i + 1], [row(params[i], i)])[0] for i in range(9)]
    assert together == alone
