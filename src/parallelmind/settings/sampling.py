"""How the next token of a branch is chosen, and when the branch ends.

A new parameter is a field of `SamplingSettings` and what `engine/sampler.py` or `engine/adjustment.py` does with it:
every command that samples, the chat, the HTTP API and the imported OpenAI batches then have it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypedDict

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from parallelmind.errors import ParallelMindError, RequestError
from parallelmind.settings.setting import Flag, Setting, Settings, values_of

_GROUP = "sampling"
MOST_STOPS = 64
COLDEST = 1e-5
"""Below this temperature only the most likely token is taken: its limit, which float32 could not tell from it."""
_MOST_BIASES = 1024
_TokenId = Annotated[int, Ge(0), Lt(2**31)]

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
PresencePenalty = Annotated[
    float, Ge(-2), Le(2), Setting("above 0 discourages tokens that the answer has so far", _GROUP)
]
FrequencyPenalty = Annotated[
    float,
    Ge(-2),
    Le(2),
    Setting("above 0 discourages tokens of the answer so far, each as often as it has them", _GROUP),
]
LogitBias = Annotated[
    Mapping[_TokenId, Annotated[float, Ge(-100), Le(100)]],
    MaxLen(_MOST_BIASES),
    Setting(
        'JSON object of what is added to the logits of tokens, by their ids: {"50": -100} keeps 50 out',
        _GROUP,
        expected=f"at most {_MOST_BIASES} token ids, each with a number from -100 to 100",
        flag=Flag(metavar="JSON"),
    ),
]
Stop = Annotated[
    tuple[Annotated[str, MinLen(1)], ...] | str,
    MaxLen(MOST_STOPS),
    Setting("end the answer before this text", _GROUP, expected=f"at most {MOST_STOPS} texts that are not empty"),
]
StopTokenIds = Annotated[
    tuple[_TokenId, ...] | int,
    MaxLen(MOST_STOPS),
    Setting(
        "end the answer with this token id",
        _GROUP,
        expected=f"at most {MOST_STOPS} token ids",
        flag=Flag(metavar="N"),
    ),
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
    presence_penalty: PresencePenalty = 0.0
    frequency_penalty: FrequencyPenalty = 0.0
    # A mapping has no hash; sets of parameters stay possible without it.
    logit_bias: LogitBias = field(default_factory=dict, hash=False)
    stop: Stop = ()
    stop_token_ids: StopTokenIds = ()
    ignore_eos: IgnoreEos = False
    seed: Seed | None = None

    def identity(self) -> dict[str, Any]:
        """The settings that give other answers when they differ: greedy decoding draws nothing, stops have no order."""
        ends = {"stop": sorted(set(self.stop_texts)), "stop_token_ids": sorted(set(self.stop_tokens))}
        settings = super().identity() | ends
        idle = ("top_p", "top_k", "min_p", "seed") if self.is_greedy else ()
        return {name: value for name, value in settings.items() if name not in idle}

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time, so that nothing is drawn."""
        return self.temperature < COLDEST

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """`stop_token_ids` as they always are once they are checked."""
        assert not isinstance(self.stop_token_ids, int)
        return self.stop_token_ids

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


LogitsProcessor = Callable[[Any, Any], Any]
"""Called with the token ids so far [1, S] and the scores of the next token [1, V], as transformers' `LogitsProcessor`;
returns the scores to draw from."""


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
    n: Annotated[
        int, Ge(1), Setting("answers to each prompt, which share its keys and values and draw with seeds of their own")
    ] = 1
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] = ()
    """Functions, or transformers' `LogitsProcessor`, which change the scores last before temperature; one or a list."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.logits_processor
        several = () if given is None else (given,) if callable(given) and not isinstance(given, list) else given
        if not isinstance(several, list | tuple) or not all(map(callable, several)):
            raise RequestError(
                f"logits_processor is {given!r}; it must be a function or a transformers LogitsProcessor, or a list."
            )
        object.__setattr__(self, "logits_processor", tuple(several))

    @property
    def logits_processors(self) -> tuple[LogitsProcessor, ...]:
        """`logits_processor` as it always is once it is checked."""
        assert isinstance(self.logits_processor, tuple)
        return self.logits_processor

    def with_seed(self, seed: int) -> SamplingParams:
        """The same parameters with another seed, for one branch of many; nothing is checked again."""
        branch = copy.copy(self)
        object.__setattr__(branch, "seed", seed)
        return branch


def seed_of_branch(seed: int, number: int, choice: int = 0, choices: int = 1) -> int:
    """The seed that an answer draws with, from one that its request has for all: this is the rule.

    Branch number b (from 1) draws with seed + (b - 1), whatever runs beside it, so that equal prompts get different
    answers. With n answers to a prompt the answers are counted through: number b's answer c draws with
    seed + (b - 1) × n + c. A seed of the branch's own is not spread over numbers; its answer c draws with seed + c.
    """
    spread = seed + max(0, number - 1) * choices + choice
    return spread if spread < 2**64 else spread - 2**64


def seed_of_fork(seed: int, number: int) -> int:
    """The seed of a branch's fork of this number, counted from 1: another one for each, the same in every run."""
    return int.from_bytes(hashlib.sha256(f"fork {number} of {seed}".encode()).digest()[:8])


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
