"""A small question to an engine, with an answer of 12 tokens."""

from __future__ import annotations

from typing import Any

from parallelmind import Engine, Request, SamplingParams

GREEDY = SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True)
MAIN = "some-shared-text"


def answer(engine: Engine, prompt: str = "abc", **settings: Any) -> Any:
    params = SamplingParams(**({"max_new_tokens": 12, "temperature": 0, "ignore_eos": True} | settings))
    return engine.generate([Request(main=MAIN, branches=[prompt])], params)[0].branches[0]
