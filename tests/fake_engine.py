"""An engine without a model: answers depend on the token ids, branch id and seed alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from parallelmind.engine.request import Branch, BranchResult, ErrorKind, Event, Request
from parallelmind.settings.sampling import SamplingParams
from parallelmind.tasks.batch_worker import Backend

if TYPE_CHECKING:
    import pytest

    from parallelmind.columnar import Visibility


@dataclass
class FakeStats:
    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_main_tokens: int = 0


@dataclass
class FakeEngine:
    """Runs at most `running` requests at once and finishes their branches last one first."""

    max_model_len: int = 1000
    running: int = 3
    seconds_per_request: float = 0.0
    fails: Callable[[list[int]], bool] = lambda prompt: False
    """Which branches fail, by their prompt."""
    error_kind: ErrorKind | None = None
    """Of those that fail."""
    on_request: Callable[[int], None] = lambda number: None
    requests: list[Request] = field(default_factory=list)
    sampling: SamplingParams | None = None
    stats: FakeStats = field(default_factory=FakeStats)
    keep_requests: bool = True
    tokenizer: CharacterTokenizer = field(default_factory=lambda: CharacterTokenizer())
    visibility: Visibility = "isolated"

    def stream(self, requests: Iterable[Request], sampling: SamplingParams) -> Iterator[Event]:
        self.sampling = sampling
        source = enumerate(requests)
        active: list[tuple[int, Request]] = []
        while True:
            while len(active) < self.running and (pulled := next(source, None)):
                if self.keep_requests:
                    self.requests.append(pulled[1])
                active.append(pulled)
            if not active:
                return
            number, request = active.pop()
            self.on_request(number)
            time.sleep(self.seconds_per_request)
            for place in reversed(range(len(request.branches))):
                branch = request.branches[place]
                assert isinstance(branch, Branch)
                yield Event(request_index=number, branch_index=place, text="…", token_ids=(1,))
                result = self._answer(request, branch)
                yield Event(
                    request_index=number,
                    branch_index=place,
                    finish_reason=result.finish_reason,
                    result=result,
                )

    def _answer(self, request: Request, branch: Branch) -> BranchResult:
        prompt = list(branch.prompt)
        if self.fails(prompt):
            return BranchResult(finish_reason="error", error="it broke; mend it", error_kind=self.error_kind)
        assert branch.sampling is not None
        said = (tuple(request.main), prompt, branch.branch_id, branch.sampling.seed)
        text = hashlib.sha256(repr(said).encode()).hexdigest()[:12]
        self.stats.generated_tokens += len(text)
        return BranchResult(text=text, token_ids=list(text.encode()), finish_reason="stop")


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


class CharacterTokenizer:
    """As `encode` counts: one token a character, and no special ones."""

    all_special_ids: tuple[int, ...] = ()

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": encode(text)}


def loaded_instead(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, make: Callable[[dict[str, Any]], FakeEngine]
) -> None:
    """Whoever loads a model for an engine in this test gets what `make` makes of the settings."""
    from parallelmind import Engine

    request.node.add_marker("half_precision")  # no model is loaded in any precision
    monkeypatch.setattr(Engine, "from_pretrained", lambda **settings: make(settings))


def fake_backend(engine: FakeEngine) -> Backend:
    return Backend(engine=engine, encode_main=encode, encode_branch=lambda text, has_main: encode(text))
