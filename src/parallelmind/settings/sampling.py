"""How the next token of a branch is chosen, and when the branch ends.

A new parameter is a field of `SamplingSettings` and what `engine/sampler.py` does with it: every command that samples,
the chat, the HTTP API and the imported OpenAI batches then have it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypedDict

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from parallelmind.errors import ParallelMindError, RequestError
from parallelmind.settings.setting import Setting, Settings, values_of

_GROUP = "sampling"
MOST_STOPS = 64

MaxNewTokens = Annotated[int, Ge(1), Setting("at most this many tokens in an answer", _GROUP, http="max_tokens")]
Temperature = Annotated[
    float, Ge(0), Le(100), Setting("how freely tokens are drawn; 0 always takes the likeliest one", _GROUP)
]
TopP = Annotated[
    float,
    Gt(0),
    Le(1),
    Setting("draw from the likeliest tokens that together reach this probability; 1 is all", _GROUP),
]
TopK = Annotated[int, Ge(0), Setting("draw from this many of the likeliest tokens; 0 is all", _GROUP)]
MinP = Annotated[
    float,
    Ge(0),
    Le(1),
    Setting("leave out tokens less likely than this share of the likeliest one; 0 leaves out none", _GROUP),
]
RepetitionPenalty = Annotated[
    float, Ge(0.01), Le(100), Setting("above 1 discourages tokens of the prompt and the answer so far", _GROUP)
]
Stop = Annotated[
    tuple[Annotated[str, MinLen(1)], ...] | str,
    MaxLen(MOST_STOPS),
    Setting("end the answer before this text", _GROUP, expected=f"at most {MOST_STOPS} texts that are not empty"),
]
IgnoreEos = Annotated[bool, Setting("continue after the end-of-text token", _GROUP)]
Seed = Annotated[
    int,
    Ge(-(2**63)),
    Lt(2**64),
    Setting("same seed, same answers", _GROUP, default="every run differs", expected="a whole number of 64 bits"),
]


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Settings):
    """What every command that samples can be told."""

    max_new_tokens: MaxNewTokens = 512
    temperature: Temperature = 0.7
    top_p: TopP = 0.9
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    stop: Stop = ()
    ignore_eos: IgnoreEos = False
    seed: Seed | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that give other answers when they differ: greedy decoding draws nothing, stops have no order."""
        settings = super().identity() | {"stop": sorted(set(self.stop_texts))}
        idle = ("top_p", "top_k", "min_p", "seed") if self.temperature == 0 else ()
        return {name: value for name, value in settings.items() if name not in idle}

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """`stop` as it always is once it is checked."""
        assert not isinstance(self.stop, str)
        return self.stop

    def sampling(self, **changed: Any) -> SamplingParams:
        """These settings for the engine, some of them changed.

        Raises:
            RequestError: a changed value is of another type or out of range.
        """
        return SamplingParams(**(values_of(SamplingSettings, self) | changed))


@dataclass(frozen=True, kw_only=True)
class SamplingParams(SamplingSettings):
    """How the next token of a branch is chosen, and when the branch ends.

    Raises:
        RequestError: a value is of another type or out of range.
    """

    wrong_value: ClassVar[type[ParallelMindError]] = RequestError
    spelling: ClassVar[str] = "{name}"

    logprobs: Annotated[
        int | None,
        Ge(0),
        Setting(
            "report each token's log-probability, and those of this many of the likeliest tokens at its place", _GROUP
        ),
    ] = None

    def with_seed(self, seed: int) -> SamplingParams:
        """The same parameters with another seed of 63 bits, for one branch of many; nothing is checked again."""
        branch = copy.copy(self)
        object.__setattr__(branch, "seed", seed)
        return branch


OPENAI_ONLY: dict[str, Any] = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}}
"""The parameters of OpenAI's protocol that are not implemented, with the value that asks for nothing."""


class Preset(TypedDict):
    """Some of the settings, for one situation."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


PRESETS: dict[str, Preset] = {
    "factual": {"temperature": 0.2, "top_p": 0.75, "top_k": 25, "repetition_penalty": 1.1},
    "creative": {"temperature": 0.8, "top_p": 0.95, "top_k": 80, "repetition_penalty": 1.0},
    "code": {"temperature": 0.15, "top_p": 0.8, "top_k": 30, "repetition_penalty": 1.1},
    "smalltalk": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1},
    "translation": {"temperature": 0.1, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.0},
}
