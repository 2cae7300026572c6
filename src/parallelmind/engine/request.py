"""What goes into the engine and what comes out: requests, branches, sampling parameters, results, events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from parallelmind.errors import RequestError
from parallelmind.settings.sampling import SamplingParams

if TYPE_CHECKING:  # it imports torch, which workers that ask a server can do without
    import numpy
    import torch

    from parallelmind.columnar import Visibility

FinishReason = Literal["stop", "length", "error", "cancelled"]

Prompt: TypeAlias = "str | Sequence[int] | Sequence[Mapping[str, Any]] | torch.Tensor | numpy.ndarray[Any, Any]"
"""A text, token ids, or a conversation as `{"role", "content"}` turns."""

ErrorKind = Literal["invalid", "empty", "too_long", "vocabulary", "memory", "engine"]
"""Why a branch has finish_reason "error"; all but the last lie in the request."""
LASTING_ERRORS: tuple[ErrorKind, ...] = ("invalid", "empty", "too_long", "vocabulary")
"""The errors that the same request would meet again; an "engine" or "memory" error may not recur."""

BASE_MODEL = ""
"""The adapter of requests and branches that run without one."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One text that continues main on its own."""

    prompt: Prompt = ""
    """Empty: continue main directly. Where main is a conversation, a text is the user's next message."""
    sampling: SamplingParams | None = None
    """None: the request's. A seed among them is the branch's own; without one it draws with that of its request."""
    branch_id: int | None = None
    """Number of the branch under its main, from 1; its branch position is this × stride. None: its place + 1.
    With 0 it continues main itself; then all branches must, and not see one another (columnar)."""
    adapter: str | None = None
    """Name of a loaded adapter, BASE_MODEL for none; None: the request's."""


@dataclass(frozen=True, slots=True)
class JoinedBranch:
    """Tokens of a main that a branch computed in its own place, and whose keys are turned to their place in main."""

    start: int
    end: int
    """They are those from `start` up to `end` of main; its last token is none of them."""
    behind: int
    """The branch continued so many tokens of main, so that its first token had this time."""
    branch_id: int
    """Its number under that main."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A main and its branches; without branches, one continuation of main itself (branch id 0).

    Raises:
        RequestError: `branches` is one text, whose characters would each become a branch, or one Branch, or no list.
    """

    main: Prompt | None = ""
    """The text that all branches share; None: there is none."""
    branches: Sequence[Prompt | Branch] = ()
    visibility: Visibility | None = None
    """None: what the adapter was trained with, else the engine's."""
    adapter: str = BASE_MODEL
    """Name of a loaded adapter."""
    sampling: SamplingParams | None = None
    """Of branches without parameters of their own; None: those given to `generate` or `stream`."""
    joined: tuple[JoinedBranch, ...] = ()
    """What `Engine.join` made part of main by turning keys; with it main may grow at its end, and be joined again."""
    share: str = ""
    """Whose request it is. Requests of several shares start by turns, so that all are given about as many tokens."""

    def __post_init__(self) -> None:
        given: Any = self.branches
        if isinstance(given, str | bytes | Branch | Mapping) or not isinstance(given, Iterable):
            raise RequestError(f"branches is {given!r}; it must be a list of texts or of Branch.")
        if not isinstance(given, Sequence):
            object.__setattr__(self, "branches", tuple(given))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token, before temperature and all other sampling settings."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens at this place, most likely first, as (token id, log-probability)."""


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
    parent: int | None = None
    """Of a fork: the index of the branch that it was forked from."""
    prefix_token_ids: list[int] = field(default_factory=list)
    """Of a fork: what stands between the prompt of the request's branch and the fork's own tokens, which are what the
    parent had generated, and the fork's own prompt; of a fork of a fork, of both."""


@dataclass(kw_only=True)
class RequestResult:
    """The answers of one request, in the order of its branches (with `n` so many for each), then of its forks."""

    branches: list[BranchResult] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Event:
    """New text of one branch; the last event of a branch carries its result."""

    request_index: int
    """Its place among the requests of `stream`; the id that `add_request` returned, from `step`."""
    branch_index: int
    """Its place among the request's branches; forks come behind them in the order in which they were made."""
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One per token id, where asked for."""
    finish_reason: FinishReason | None = None
    result: BranchResult | None = None
    """Set on the last event of the branch."""
    request_id: int = -1
    """What `fork` and `cancel` know the request by."""


def num_answers(request: Request, sampling: SamplingParams | None = None) -> int:
    """How many answers a request has: `n` to each of its branches.

    Args:
        sampling: of branches that neither have parameters of their own nor of their request.
    """
    shared = request.sampling or sampling or SamplingParams()
    own = [branch.sampling if isinstance(branch, Branch) else None for branch in request.branches] or [None]
    return sum(params.n if isinstance(params, SamplingParams) else 1 for params in (one or shared for one in own))
