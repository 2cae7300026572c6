"""Runs of the inference commands, watched from inside or as processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from parallelmind.cli.main import main
from parallelmind.engine.engine import Engine
from parallelmind.engine.request import Event, Request
from parallelmind.settings.sampling import SamplingParams

STORY = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue. Tina counted 36 coins.\n"
QUESTIONS = ["How old is Dan?", "How much does the hat cost?", "What does Emma like?"]
ANSWERS = [" 26", " 91", " blue"]
RECORD = {"main": STORY, "branches": QUESTIONS}


@dataclass
class Spy:
    """What an engine was made with, asked, and gave."""

    model: Any
    settings: dict[str, Any]
    requests: list[Request] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    sampling: list[SamplingParams] = field(default_factory=list)
    branch_positions: set[int] = field(default_factory=set)
    """Of all tokens that went through a model with 2D RoPE."""

    @property
    def rows(self) -> list[int]:
        """Branches in each row."""
        return [len(request.branches) for request in self.requests]

    @property
    def most_at_once(self) -> int:
        """Branches that had begun and not ended."""
        running: set[tuple[int, int]] = set()
        most = 0
        for event in self.events:
            key = (event.request_index, event.branch_index)
            running.add(key)
            most = max(most, len(running))
            if event.result is not None:
                running.discard(key)
        return most


class Watched(Engine):
    """An engine that works as ever, and keeps what it is given and gives."""

    def __init__(self, model: Any, tokenizer: Any, **settings: Any) -> None:
        super().__init__(model, tokenizer, **settings)
        self.spy = spy = Spy(model, settings)

        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            positions = kwargs.get("position_ids")
            if positions is not None and positions.dim() == 3:
                spy.branch_positions |= set(positions[..., 0].unique().tolist())

        model.register_forward_pre_hook(note, with_kwargs=True)
        model.base_model.register_forward_pre_hook(note, with_kwargs=True)

    def stream(self, requests: Iterable[Request], sampling: SamplingParams | None = None) -> Iterator[Event]:
        if sampling is not None:
            self.spy.sampling.append(sampling)

        def noted() -> Iterator[Request]:
            for request in requests:
                self.spy.requests.append(request)
                yield request

        for event in super().stream(noted(), sampling):
            self.spy.events.append(event)
            yield event


@contextlib.contextmanager
def watched_engines() -> Iterator[list[Spy]]:
    """The engines that are loaded meanwhile."""
    found: list[Spy] = []
    load = Engine.from_pretrained.__func__  # type: ignore[attr-defined]

    def load_watched(cls: type[Engine], *given: Any, **settings: Any) -> Engine:
        engine: Watched = load(Watched, *given, **settings)
        found.append(engine.spy)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "from_pretrained", classmethod(load_watched))
        yield found


@dataclass(frozen=True)
class BatchRun:
    """A run of `parallelmind batch` in this process."""

    code: int
    log: str
    text: str
    """The output file; "" if there is none."""
    spy: Spy | None
    """None if no engine was made."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def outputs(self) -> list[str | None]:
        return [row["output"] for row in self.rows]

    @property
    def engine(self) -> Spy:
        assert self.spy is not None, self.log
        return self.spy


def batch(
    folder: Path, records: Sequence[dict[str, Any] | str], *flags: object, device: str | None = "cpu"
) -> BatchRun:
    """Answer records in this process; a text is a line as it stands. Greedy float32 unless flags say otherwise."""
    data, out = folder / "in.jsonl", folder / "out.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    data.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    given: list[object] = ["batch", "--base_model", "tiny", "--data_path", data, "--out_path", out, "--workers", 0]
    given += ["--overwrite", "--dtype", "float32", "--temperature", 0, *flags]
    given += [] if device is None else ["--device", device]
    out.unlink(missing_ok=True)
    log = io.StringIO()
    with watched_engines() as spies, contextlib.redirect_stderr(log):
        try:
            code = main([str(word) for word in given])
        except SystemExit as ended:
            code = int(str(ended.code))
    text = out.read_text(encoding="utf-8") if out.exists() else ""
    return BatchRun(code, log.getvalue(), text, spies[0] if spies else None)


@contextlib.contextmanager
def watched_loading() -> Iterator[list[dict[str, Any]]]:
    """What transformers is asked for by everyone who loads a model meanwhile, and the `loaded_dtype` it gave."""
    found: list[dict[str, Any]] = []
    load = AutoModelForCausalLM.from_pretrained

    def from_pretrained(path: str, **settings: Any) -> Any:
        found.append(settings | {"path": path})
        # Quantized weights need a library that may be missing here; the request itself is what counts.
        asked = {name: value for name, value in settings.items() if name != "quantization_config"}
        loaded = load(path, **asked)
        model = loaded[0] if settings.get("output_loading_info") else loaded
        found[-1]["loaded_dtype"] = model.dtype
        return loaded

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
        yield found
