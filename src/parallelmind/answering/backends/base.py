"""What answers a question over a context: the seam between the answer pipeline and the things that answer.

The backends by their `--inference_type`:

| name | what answers | module |
|---|---|---|
| `local` | a model in a local folder, on our engine: rows with the same context are branches of one main | pipeline |
| `huggingface` | the same, the model named as on the Hugging Face Hub (`Qwen/Qwen2.5-0.5B-Instruct`) | pipeline |
| `togetherai` | Together AI, with the key of TOGETHER_API_KEY | `openai_compatible` |
| `openai` | OpenAI, or with `--base_url` any server that speaks its protocol | `openai_compatible` |

and any subclass of `QueryBasedInference` by `--backend file.py:ClassName`. All but the engine are an `AnswerBackend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from parallelmind.settings.sampling import SamplingSettings, Temperature, TopP

Message = dict[str, str]
"""A turn of a conversation: `{"role", "content"}`."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What one row asks, in every form a backend may want."""

    query: str = ""
    context: str = ""
    retrieval_method: str = ""
    messages: tuple[Message, ...] = ()
    """Instructions, context and question as a conversation."""
    body: Mapping[str, Any] | None = None
    """A whole request of an OpenAI batch file: sent as it is, in place of `messages` and the backend's own settings."""
    endpoint: str = "/v1/chat/completions"
    """Where `body` goes."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A text, and what is known about how it came about."""

    text: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    finish_reason: str | None = None
    """"length" if the answer was cut off at `max_new_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerResult:
    """How one row ended: exactly one of `text` and `error` is set."""

    text: str | None = None
    error: str | None = None
    """What went wrong and the remedy; never holds a key."""
    error_class: str | None = None
    """A short name to count errors by: "http_500", "timeout", or the class of a user's exception."""
    final: bool = False
    """An error that the same question would meet again, whenever it is asked."""
    retries: int = 0
    """Attempts after the first."""
    seconds: float = 0.0
    """From the first attempt to the end, retries and the waiting between them included."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    finish_reason: str | None = None
    body: Mapping[str, Any] | None = None
    """The server's whole response, if the prompt was a whole request (`Prompt.body`)."""

    def __post_init__(self) -> None:
        assert (self.text is None) != (self.error is None), "a result is a text or an error"


def try_prompt(prompt_of: Callable[[T], Prompt], row: T) -> Prompt | AnswerResult:
    """The prompt of a row, or the row's result if it cannot be made."""
    try:
        return prompt_of(row)
    except Exception as error:
        return AnswerResult(error=str(error) or type(error).__name__, error_class=type(error).__name__)


class AnswerBackend(Protocol):
    """Answers rows, several at once where it can."""

    def run(self, rows: Iterable[T], prompt_of: Callable[[T], Prompt], done: Callable[[T, AnswerResult], None]) -> None:
        """Answer every row, and call `done` once for each, in any order.

        `rows`, `prompt_of` and `done` are used in the calling thread only.

        Rows are pulled as they are needed, never more ahead than run at once. What goes wrong with one row,
        an exception of `prompt_of` included, is that row's result and does not touch the others. When the caller is
        interrupted (KeyboardInterrupt, or an exception of `rows` or `done`), what runs is abandoned without a result.

        Raises:
            SettingsError: nothing can be answered (a refused key, an unknown model or address); rows that
                had no result yet get none.
        """
        ...

    def close(self) -> None:
        """Release connections and models."""
        ...


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(SamplingSettings):
    """What the command line says about answering: the model, and how answers are sampled."""

    model_path: str | None = None
    temperature: Temperature = 0.2
    top_p: TopP = 0.95


class QueryBasedInference:
    """Subclass this and override `generate_answer` to answer with anything: another library, a service, a lookup.

        from parallelmind import QueryBasedInference

        class Mine(QueryBasedInference):
            def setup(self):
                self.model = load(self.settings.model_path)

            def generate_answer(self, query, context, retrieval_method):
                return self.model.ask(f"{context}\\n\\n{query}")

    Then `parallelmind answer --backend mine.py:Mine …`. It is made without arguments, in every worker; `settings` is
    set before `setup` is called.
    """

    settings: InferenceSettings = InferenceSettings()
    """The flags of the command line."""
    concurrency: int = 1
    """Calls of `generate_answer` at once; above 1 they come from several threads."""

    def setup(self) -> None:
        """Called once before the first question: load models and open connections here, not in the constructor."""

    def generate_answer(self, query: str, context: str, retrieval_method: str) -> str | Answer:
        """Answer one question. An exception is the row's error, and the row is tried again on the next run."""
        raise NotImplementedError(f"{type(self).__name__} does not override generate_answer")

    def close(self) -> None:
        """Called once after the last question."""
