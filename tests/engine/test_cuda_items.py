"""What the kernels of a step are told to read: each key that a token sees once, and no other."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from parallelmind import (
    Branch,
    Engine,
    Request,
    SamplingParams,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
)
from parallelmind.columnar import FULL, VISIBILITIES, Reach, Visibility
from parallelmind.engine.cuda.items import Items, Shape, items_of
from parallelmind.engine.dense_cache import dense_mask
from parallelmind.engine.model_runner import ModelRunner
from parallelmind.engine.step import Step
from tests.families import char_tokenizer, tiny_model

REACHES = [FULL, Reach(window=5), Reach(chunk=8)]
SHAPES = [Shape(narrow_tokens=2, wide_tokens=9, num_heads=2, num_programs=1), Shape(1, 1, 4, 10**6)]


def read_by(step: Step, items: Items, reach: Reach) -> torch.Tensor:
    """How often each token reads each place of the pages, [T, N·P], as `kernels.read_items` does."""
    size = step.store.page_tokens
    found = torch.zeros(step.num_tokens, step.store.num_places, dtype=torch.long)
    slots: Counter[tuple[int, int]] = Counter()
    for page, skip, keys, first_time, token, count, slot, branch in [*items.narrow.tolist(), *items.wide.tolist()]:
        assert keys > 0
        place = skip + torch.arange(keys)
        where = torch.from_numpy(items.pages).long()[page + place // size] * size + place % size
        for index in range(count):
            slots[token + index, slot + index] += 1
            time = int(step.times[token + index])
            is_other = branch >= 0 and int(step.branch_ids[token + index]) != branch
            times = first_time + torch.arange(keys)
            seen = (times <= time - is_other) & (times >= reach.earliest_at(time))
            found[token + index, where[seen]] += 1
    ends = [0, *items.ends.tolist()]
    told = Counter(
        (token, int(slot)) for token in range(step.num_tokens) for slot in items.slots[ends[token] : ends[token + 1]]
    )
    assert told == slots
    assert sorted(slot for _, slot in slots) == list(range(len(items.slots)))
    return found


def seen_by(step: Step, reach: Reach) -> torch.Tensor:
    """The same from the dense mask, with the times of the places."""
    seen = dense_mask(step, torch.float32)[0, 0] == 0
    size = step.store.page_tokens
    times = torch.full((step.store.num_places,), -1)
    for span in step.spans:
        runs = [(span.run, span.end), *([] if span.run.base is None else [(span.run.base, len(span.run.base))])]
        runs += [] if span.company is None else [(run, length) for run, _, length in span.company.members]
        for run, length in runs:
            for index in range(run.first_page * size, length):
                times[run.pages[index // size].number * size + index % size] = run.place.first_time + index
    if not reach.is_full:
        seen &= times >= reach.earliest(step.time_ids)[:, None]
    return seen.long()


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("patched", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "mistral"])  # mistral lets the pages go that are out of its window of 6
def test_items_cover_what_is_seen(
    monkeypatch: pytest.MonkeyPatch, visibility: Visibility, patched: bool, family: str
) -> None:
    chance = random.Random(0)
    model = tiny_model(family)
    reaches = REACHES if family == "qwen2" else [Reach(window=6), Reach(window=3)]
    if patched:
        patch_model_with_interleaved_2d_rope(model, auto_pair_indices(model, 0.5))
    engine = Engine(
        model, char_tokenizer(), visibility=visibility, page_tokens=3, max_batched_tokens=17, max_running_branches=9
    )
    forward, num_shared = ModelRunner.forward, 0

    def checked(self: ModelRunner, step: Step, logits_at: torch.Tensor) -> torch.Tensor:
        nonlocal num_shared
        logits = forward(self, step, logits_at)
        for reach in reaches:
            for shape in SHAPES:
                assert torch.equal(read_by(step, items_of(step, reach, shape), reach), seen_by(step, reach))
        whole = items_of(step, reaches[0], Shape(1000, 1000, 1, 1)).narrow
        num_shared += sum(keys * (count - 1) for _, _, keys, _, _, count, _, _ in whole.tolist())
        return logits

    monkeypatch.setattr(ModelRunner, "forward", checked)
    base = [chance.randrange(3, 97) for _ in range(20)]
    requests = []
    for _ in range(6):
        main = base[: chance.randrange(0, 20)] + [chance.randrange(3, 97) for _ in range(chance.randrange(1, 9))]
        prompts = [
            [chance.randrange(3, 6) for _ in range(chance.randrange(1, 8))] for _ in range(chance.randrange(1, 5))
        ]
        sampling = SamplingParams(max_new_tokens=chance.randrange(1, 7), temperature=0, ignore_eos=True)
        requests.append(Request(main=main, branches=[Branch(prompt=prompt, sampling=sampling) for prompt in prompts]))
    engine.generate(requests)
    assert num_shared > 100, "keys that several tokens read are read together"
