"""What goes into the engine and what comes out: requests, branches, sampling parameters, results, events."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from parallelmind.errors import RequestError

if TYPE_CHECKING:  # it imports torch, which workers that ask a server can do without
    from parallelmind.columnar import Visibility

FinishReason = Literal["stop", "length", "error", "cancelled"]

Prompt = str | Sequence[int]
"""A text, or token ids."""

ErrorKind = Literal["empty", "too_long", "vocabulary", "memory", "engine"]
"""Why a branch has finish_reason "error"; all but the last lie in the request."""
LASTING_ERRORS: tuple[ErrorKind, ...] = ("empty", "too_long", "vocabulary")
"""Those that the same request meets again; memory may be larger the next time."""

BASE_MODEL = ""
"""The adapter of requests and branches that run without one."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token of a branch is chosen, and when the branch ends.

    Raises:
        RequestError: a value is out of range.
    """

    max_new_tokens: int = 512
    """Tokens generated at most."""
    temperature: float = 0.7
    """0 is greedy."""
    top_p: float = 0.9
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    top_k: int = 0
    """Keep this many of the likeliest tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one."""
    repetition_penalty: float = 1.0
    """Divides the positive logits (multiplies the negative ones) of tokens already in main, prompt or answer."""
    stop: str | Sequence[str] = ()
    """Texts that end the branch; they are not part of the answer."""
    seed: int | None = None
    """Makes the branch's draws its own, whatever else the engine runs; none: different on every run."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token until `max_new_tokens` or a stop text."""
    logprobs: int | None = None
    """Report each token's log-probability, and those of this many of the likeliest tokens at its place."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            self._convert(name, float, "a number")  # transformers' processors refuse the integers 1 and 2
        for name in ("max_new_tokens", "top_k"):
            self._convert(name, operator.index, "a whole number")
        for name in ("seed", "logprobs"):
            if getattr(self, name) is not None:
                self._convert(name, operator.index, "a whole number")
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (keep all) or more"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1 is no penalty)"),
            "seed": (self.seed is None or -(2**63) <= self.seed < 2**64, "a number of 64 bits"),
            "logprobs": (self.logprobs is None or self.logprobs >= 0, "0 (the chosen token only) or more"),
            "stop": (all(isinstance(text, str) and text for text in stop), "non-empty texts"),
        }
        for name, (valid, expected) in checks.items():
            if not valid:
                raise RequestError(f"{name} is {getattr(self, name)!r}; it must be {expected}.")

    def _convert(self, name: str, kind: Callable[[Any], float], expected: str) -> None:
        try:
            object.__setattr__(self, name, kind(getattr(self, name)))
        except (TypeError, ValueError) as error:
            raise RequestError(f"{name} is {getattr(self, name)!r}; it must be {expected}.") from error

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return tuple(self.stop)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One text that continues main on its own."""

    prompt: Prompt = ""
    """Text or token ids; empty: continue main directly."""
    sampling: SamplingParams | None = None
    """None: the parameters given to `generate` or `stream`."""
    branch_id: int | None = None
    """Number of the branch under its main, from 1; its branch position is this × stride. None: its place + 1.
    With 0 it continues main itself; then all branches must, and not see one another (columnar)."""
    adapter: str | None = None
    """Name of a loaded adapter, BASE_MODEL for none; None: the request's."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A main and its branches; without branches, one continuation of main itself (branch id 0).

    Raises:
        RequestError: `branches` is one text, whose characters would each become a branch, or one Branch.
    """

    main: Prompt = ""
    branches: Sequence[Prompt | Branch] = ()
    visibility: Visibility | None = None
    """None: what the adapter was trained with, else the engine's."""
    adapter: str = BASE_MODEL
    """Name of a loaded adapter."""

    def __post_init__(self) -> None:
        if isinstance(self.branches, str | Branch):
            raise RequestError(f"branches is {self.branches!r}; it must be a list of texts or of Branch.")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token, before temperature and all other sampling settings."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at this place, the likeliest first: (token id, log-probability)."""


@dataclass(kw_only=True)
class BranchResult:
    """The answer of one branch."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Generated tokens, the end-of-sequence token included when it was generated."""
    finish_reason: FinishReason | None = None
    error: str | None = None
    """What went wrong and the remedy, with finish_reason "error"."""
    error_kind: ErrorKind | None = None
    prompt_tokens: int = 0
    """Tokens of the branch's own prompt (main not counted)."""
    main_tokens: int = 0
    cached_main_tokens: int = 0
    """Tokens of main whose keys and values were already in the prefix cache when the request started."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One per generated token, where asked for."""


@dataclass(kw_only=True)
class RequestResult:
    """The answers of one request, in the order of its branches."""

    branches: list[BranchResult] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Event:
    """New text of one branch; the last event of a branch carries its result."""

    request_index: int
    branch_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token id, where asked for."""
    finish_reason: FinishReason | None = None
    result: BranchResult | None = None
    """Set on the last event of the branch."""
