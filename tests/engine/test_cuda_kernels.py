"""The GPU's kernels, run by Triton's interpreter on a CPU (see tests/conftest.py), against the attention of the CPU.

On a GPU (PARALLELMIND_TEST_DEVICE=cuda) all tests of the engine run them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from parallelmind import Branch, Engine, Request, SamplingParams
from parallelmind.engine import attention
from parallelmind.engine.cuda.graphs import ForwardGraphs
from parallelmind.engine.cuda.inputs import KernelInputs, StepInputs
from tests.cases import few
from tests.families import CHUNKED, CHUNKED_FAMILY, DEVICE, char_tokenizer, tiny_model

pytest.importorskip("triton", minversion="3.7")
if DEVICE != "cpu":
    pytest.skip("the other tests run the kernels", allow_module_level=True)

PARAMS = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True, logprobs=1)
REQUESTS = [
    Request(main=[5 + i % 31 for i in range(21)], branches=[Branch(prompt=[7, 8]), Branch(prompt=[9])]),
    Request(main=[5 + i % 31 for i in range(13)], branches=[Branch(prompt=[11, 40, 12])]),
]
CASES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "gemma2": {},  # windows and a soft cap
    "gpt_oss": {},  # sinks
    CHUNKED_FAMILY: CHUNKED,
    "deepseek_v3": {},  # values of another size than keys
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
@pytest.mark.parametrize("family", few(CASES))
def test_kernels_equal_the_attention_of_the_cpu(family: str, visibility: Any) -> None:
    if visibility == "columnar" and family != "qwen2":
        pytest.skip("one family suffices for branches that see each other")
    engine = Engine(tiny_model(family, **CASES[family]), char_tokenizer(), page_tokens=4, visibility=visibility)
    found: list[tuple[Tensor, Tensor]] = []

    def both(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
        (step, _), rows = attention._forward.get(), query.shape[2]
        token = attention._forward.set((step, StepInputs(step, rows)))
        mine, _ = attention.engine_attention_forward(module, query, key, value, mask, **settings)
        attention._forward.reset(token)
        own, _ = attention.engine_attention_forward(module, query, key, value, mask, **settings)
        found.append((mine[:, : step.num_tokens], own[:, : step.num_tokens]))
        return own, None

    AttentionInterface.register(attention.ATTENTION_NAME, both)
    try:
        engine.generate(REQUESTS, PARAMS)
    finally:
        AttentionInterface.register(attention.ATTENTION_NAME, attention.engine_attention_forward)
    assert len(found) > 8
    for mine, own in found:
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_steps_that_share_buffers_give_what_others_give() -> None:
    """Rounded up sizes, rows that are idle, and buffers that keep what the step before had in them."""
    engine = Engine(tiny_model("qwen2"), char_tokenizer(), page_tokens=4)
    expected = engine.generate(REQUESTS, PARAMS)
    runner, used = engine._runner, 0

    def counted(*arguments: Any) -> Tensor | None:
        nonlocal used
        logits = ForwardGraphs.run(graphs, *arguments)
        used += logits is not None
        return logits

    def run(step: Any, ids: Tensor, positions: Tensor, inputs: KernelInputs) -> Tensor:
        assert ids.shape[1] == positions.shape[1] == 4
        return runner._recordable(step, ids, positions, inputs)

    graphs = ForwardGraphs(runner.model, torch.device("cpu"), run)
    graphs.run = counted  # type: ignore[method-assign]
    runner._has_kernels, runner._graphs = True, graphs
    found = engine.generate(REQUESTS, PARAMS)
    assert used >= 2
    for one, other in zip(found, expected, strict=True):
        for mine, own in zip(one.branches, other.branches, strict=True):
            assert mine.token_ids == own.token_ids
            for a, b in zip(mine.logprobs or (), own.logprobs or (), strict=True):
                assert a.logprob == pytest.approx(b.logprob, abs=1e-5)
