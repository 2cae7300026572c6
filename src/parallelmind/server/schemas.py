"""What the API takes and gives, besides OpenAI's endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from parallelmind.columnar import Visibility
from parallelmind.prompts.conversation import Message, role_of
from parallelmind.settings.model import ModelOptions
from parallelmind.settings.sampling import MOST_STOPS, MaxNewTokens, SamplingParams, SamplingSettings
from parallelmind.settings.setting import Described, described


def _whole(text: str) -> str:
    """JSON can hold half of a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("must be valid Unicode, but holds half of a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]
_StopText = Annotated[Text, Field(min_length=1)]
Stop = _StopText | Annotated[list[_StopText], Field(max_length=MOST_STOPS, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def incompatible(param: str, message: str) -> PydanticCustomError:
    """The error of a field that does not go together with the others."""
    return PydanticCustomError("incompatible", "{message}", {"message": message, "param": param})


class Strict(BaseModel):
    """Unknown fields are refused, and so are values of another type, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    has_branches: ClassVar[bool] = False
    """Whether each of its `branches` is one that the engine runs."""


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]

    @property
    def message(self) -> Message:
        """As chat templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": role_of(self.role), "content": text}


class TextPart(Strict):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: Text


HTTP_SETTINGS = {one.setting.http or one.name: one for one in described(SamplingSettings)}
"""The sampling settings by the names that requests give them."""
SAMPLING_DEFAULTS = {name: one.default for name, one in HTTP_SETTINGS.items() if one.kind in (int, float)}
"""The numbers among them where nothing is said; None for a seed."""


SETTING_OF = (
    HTTP_SETTINGS
    | dict.fromkeys(("max_new_tokens", "max_completion_tokens"), HTTP_SETTINGS["max_tokens"])
    | {one.name: one for one in described(ModelOptions) if one.name == "visibility"}
)
"""The settings by all names that fields of requests give them: what is said of a wrong value is theirs to say."""


def _json_type(one: Described) -> Any:
    """The type of a setting in JSON, which has neither tuples nor keys that are numbers."""

    def checked(value: Any) -> Any:
        try:
            found = one.check(value)
        except ValueError as error:
            raise PydanticCustomError("setting", "{message}", {"message": str(error)}) from None
        return list(found) if isinstance(found, tuple) else found

    if one.kind is Mapping:
        return Annotated[dict[int, float], BeforeValidator(checked)]
    if one.kind is tuple and one.item is int:
        return Annotated[list[TokenId], BeforeValidator(checked)]
    return Stop if one.kind is tuple else one.type


def _sampling_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, one in HTTP_SETTINGS.items():
        default = "" if one.default in (None, (), {}) else f" ({one.default})"
        text = f"{one.setting.help[0].upper()}{one.setting.help[1:]}{default}."
        fields[name] = (_json_type(one) | None, Field(default=None, description=text))
    return fields


_SamplingFields: Any = create_model("SamplingFields", __base__=Strict, **_sampling_fields())


class Sampling(_SamplingFields):  # type: ignore[misc]
    """How tokens are chosen, and when a branch ends; in parentheses the defaults.

    With a seed at the request, the branch with the number b (from 1) draws with seed + b - 1.
    """

    adapter: Text | None = Field(
        default=None, max_length=200, description="Name of a loaded adapter; empty for the base model."
    )


class BranchInput(Sampling):
    """One branch and its own settings."""

    prompt: Text = Field(default="", description="Continues main; under messages it is the user's next message.")
    branch_id: int | None = Field(
        default=None,
        ge=1,
        le=2**20,
        description="Number of the branch under its main, which 2D RoPE turns by; its place from 1 by default. To run "
        "one of several branches again, give the number it had.",
    )


class BranchesInput(Sampling):
    """One main and the branches that run under it in parallel."""

    has_branches = True

    model: Text | None = Field(
        default=None, max_length=500, description="The served model, an adapter, or model:adapter."
    )
    main: Text | None = Field(default=None, description="The shared text.")
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = Field(
        default=None, min_length=1, description="The shared conversation, instead of main."
    )
    branches: Annotated[list[BranchInput], Field(fail_fast=True)] = Field(min_length=1)
    visibility: Visibility | None = Field(default=None, description="What a branch sees; the adapter's own by default.")
    stream: bool = Field(default=False, description="Answer with server-sent events.")

    @model_validator(mode="after")
    def _one_main(self) -> BranchesInput:
        if self.main is not None and self.messages is not None:
            raise incompatible("main", "give either main or messages, not both")
        return self


class GenerateInput(Sampling):
    """One prompt."""

    prompt: Text
    max_new_tokens: MaxNewTokens | None = Field(
        default=None, description=f"Tokens generated at most ({SamplingSettings.max_new_tokens})."
    )
    return_full_text: bool = Field(
        default=True, description="Whether the response begins with the prompt; false: the continuation alone."
    )

    @model_validator(mode="after")
    def _one_name(self) -> GenerateInput:
        if self.max_new_tokens is not None and self.max_tokens is not None:
            raise incompatible("max_new_tokens", "max_tokens and max_new_tokens mean the same; give one of them")
        return self


class GenerateOutput(BaseModel):
    """The prompt and its continuation, without special tokens."""

    response: str


class GridBranch(Strict):
    """A branch of a row to be drawn."""

    prompt: Text = ""


class GridInput(Strict):
    """A row to be drawn: the text as it stands, prompts and answers."""

    main: Text = ""
    branches: Annotated[list[Text | GridBranch], Field(fail_fast=True)] = Field(default=[], max_length=1000)
    visibility: Visibility | None = None
    adapter: Text = Field(default="", max_length=200, description="Its stride decides the branch positions.")


class GridToken(BaseModel):
    """One token of a row."""

    text: str
    branch: int
    time: int
    position: tuple[int, int] = Field(description="(branch position, time position)")


class GridOutput(BaseModel):
    """The tokens of a row, main first, and who sees whom."""

    tokens: list[GridToken]
    visible: list[list[int]] = Field(description="1 where the token of the row sees the token of the column.")
    visibility: Visibility
    stride: int


class BranchUsage(BaseModel):
    """Tokens of one branch, main not counted."""

    prompt_tokens: int
    completion_tokens: int


class BranchOutput(BaseModel):
    """The answer of one branch."""

    index: int
    text: str
    finish_reason: str = Field(description="stop, length, cancelled or error")
    error: str | None = None
    usage: BranchUsage


class Usage(BaseModel):
    """Tokens of a whole request; main is counted once, since it is computed once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class BranchesOutput(BaseModel):
    """The answers of all branches, in their order."""

    id: str
    object: Literal["branches"] = "branches"
    model: str
    main_tokens: int
    cached_main_tokens: int = Field(description="Tokens of main that did not have to be computed again.")
    branches: list[BranchOutput]
    usage: Usage


class Cancelled(BaseModel):
    """What was cancelled."""

    id: str
    cancelled: list[int] = Field(description="Indices of the branches that were still running.")


class PresetOutput(BaseModel):
    """Sampling settings for one situation."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


class Health(BaseModel):
    """Whether requests are answered: 200 when ready, 503 otherwise."""

    status: Literal["loading", "ready", "draining", "failed"]


def sampling_params(fields: Sampling, defaults: Sampling, **documented: Any) -> SamplingParams:
    """A branch's own value, else the request's, else the documented default; its seed is its own or none."""
    settings: dict[str, Any] = dict(documented)
    for name, one in HTTP_SETTINGS.items():
        for source in (fields, defaults):
            if (value := getattr(source, name)) is not None:
                settings[one.name] = value
                break
    return SamplingParams(**(settings | {"seed": fields.seed}))
