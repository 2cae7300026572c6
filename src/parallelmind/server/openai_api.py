"""OpenAI's endpoints: /v1/models, /v1/completions, /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from parallelmind.engine.request import Branch, Request
from parallelmind.prompts.encode import PromptIds
from parallelmind.server.branches_api import (
    ServiceOf,
    branches_request,
    check_lengths,
    check_new_tokens,
    encode_conversation,
)
from parallelmind.server.json_route import JsonRoute, Parsed, TicketOf
from parallelmind.server.openai_format import Chat, Completion
from parallelmind.server.openai_schemas import ChatInput, CompletionInput, OpenAiInput
from parallelmind.server.problems import ApiError
from parallelmind.server.schemas import BranchesInput, Sampling, sampling_params
from parallelmind.server.service import RunningRequest, Service
from parallelmind.server.streaming import EventStream, results_of
from parallelmind.settings.sampling import SamplingParams

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute)
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
}
_LIKE_OPENAI = {"temperature": 1.0, "top_p": 1.0}
"""The defaults of OpenAI differ from ours."""
_COMPLETION_TOKENS = 16
_LOGPROB_SIZE = 32
"""Characters that a log-probability takes in an answer."""
_AT_ONCE = 2**15
"""Characters of log-probabilities and prompts that are written faster than a thread is asked to."""


@router.get("/models")
async def models(service: ServiceOf) -> dict[str, Any]:
    """The served model and its adapters."""
    served = service.served
    names = [served.model, *(f"{served.model}:{adapter}" for adapter in served.adapters)]
    return {"object": "list", "data": [_model(service, name) for name in names]}


@router.get("/models/{name:path}")
async def model(name: str, service: ServiceOf) -> dict[str, Any]:
    """One model."""
    chosen, _ = service.choose(name)
    return _model(service, chosen)


@router.post("/completions", response_description="Also server-sent events, with `stream`", responses=_STREAM)
async def completions(
    body: Annotated[CompletionInput, Parsed], http: HttpRequest, service: ServiceOf, ticket: TicketOf
) -> Any:
    """Continue a prompt, or several."""
    arrived = time.perf_counter()
    name, adapter = service.choose(body.model, body.adapter)
    prompt: Any = body.prompt
    several: list[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    service.take_places(ticket, len(several) * (body.n or 1))
    for place, one in enumerate(several):
        if isinstance(one, str):
            service.check_length("prompt" if several is not prompt else f"prompt.{place}", one)
    request, echoes = await service.in_lane(
        http, ticket.body_bytes, lambda: _completion(service, body, several, adapter)
    )
    running = service.submit(request, ticket, streamed=bool(body.stream), kind="cmpl", arrived=arrived)
    form = Completion(
        id=running.id,
        model=name,
        tokenizer=service.served.engine.tokenizer,
        choices=running.collector.branches,
        with_logprobs=body.logprobs is not None,
        include_usage=_include_usage(body),
        echoes=echoes,
    )
    return await _answer(service, body, running, form, http)


def _completion(
    service: Service, body: CompletionInput, several: list[Any], adapter: str
) -> tuple[Request, list[str] | None]:
    """The engine's request, and what each choice repeats of its prompt; it may take long."""
    prompts = service.served.prompts
    ids = prompts.completions(several)
    request = _alone(service, body, ids, adapter, body.logprobs, max_new_tokens=_COMPLETION_TOKENS)
    if not body.echo:
        return request, None
    texts = [one if isinstance(one, str) else prompts.tokenizer.decode(one) for one in several]
    repeated, most = (body.n or 1) * sum(map(len, texts)), service.options.max_request_bytes
    if repeated > most:
        raise ApiError(
            400,
            f"the answer would repeat {repeated} characters of prompts (choices × prompts), this server repeats "
            f"{most}; ask for fewer choices, or leave echo out",
            param="echo",
            code="too_long_echo",
        )
    return request, [text for text in texts for _ in range(body.n or 1)]


@router.post("/chat/completions", response_description="Also server-sent events, with `stream`", responses=_STREAM)
async def chat_completions(
    body: Annotated[ChatInput, Parsed], http: HttpRequest, service: ServiceOf, ticket: TicketOf
) -> Any:
    """Answer a conversation; with `branches`, each of them is answered under it, as the choice of its index."""
    arrived = time.perf_counter()
    name, adapter = service.choose(body.model, body.adapter)
    service.take_places(ticket, body.n or len(body.branches or [0]))
    alternatives = (body.top_logprobs or 0) if body.logprobs else None

    def chat_request() -> Request:
        if body.branches is not None:
            return _under_messages(service, body, adapter, alternatives)
        return _alone(service, body, encode_conversation(service, body.messages, [""]), adapter, alternatives)

    request = await service.in_lane(http, ticket.body_bytes, chat_request)
    running = service.submit(request, ticket, streamed=bool(body.stream), kind="chatcmpl", arrived=arrived)
    form = Chat(
        id=running.id,
        model=name,
        tokenizer=service.served.engine.tokenizer,
        choices=running.collector.branches,
        with_logprobs=bool(body.logprobs),
        include_usage=_include_usage(body),
    )
    return await _answer(service, body, running, form, http)


async def _answer(
    service: Service, body: OpenAiInput, running: RunningRequest, form: Chat | Completion, http: HttpRequest
) -> Response:
    if body.stream:
        return EventStream(service, running, form)
    results = await results_of(service, running, http)
    size = _LOGPROB_SIZE * sum(1 + len(one.top) for result in results for one in result.logprobs) + form.repeated

    def written() -> bytes:
        return b"".join(form.whole(results))

    content = written() if size < _AT_ONCE else await service.in_lane(http, size, written)
    return Response(content, media_type="application/json")


def _alone(
    service: Service,
    body: OpenAiInput,
    ids: PromptIds,
    adapter: str,
    alternatives: int | None,
    **documented: Any,
) -> Request:
    """The choices for each prompt, every one as if it were alone: all are branch 0, which sees no other branch."""
    settings = _LIKE_OPENAI | {"logprobs": alternatives, "n": body.n or 1} | documented
    sampling = sampling_params(body, Sampling(), **settings)
    check_new_tokens(service, sampling, "max_tokens")
    _check_logprobs(service, [sampling] * len(ids.branches))
    branches = [Branch(prompt=prompt, branch_id=0, sampling=sampling) for prompt in ids.branches]
    return Request(main=ids.main, branches=branches, adapter=adapter, visibility="isolated")


def _under_messages(service: Service, body: ChatInput, adapter: str, alternatives: int | None) -> Request:
    """The branches of our own extension."""
    assert body.branches is not None
    defaults = {name: getattr(body, name) for name in Sampling.model_fields}
    for name, value in _LIKE_OPENAI.items():
        if defaults[name] is None:
            defaults[name] = value
    given = BranchesInput(
        messages=body.messages, branches=body.branches, visibility=body.visibility, **(defaults | {"adapter": adapter})
    )
    check_lengths(service, given)
    request, _ = branches_request(service, given, adapter, logprobs=alternatives)
    _check_logprobs(service, [branch.sampling for branch in request.branches if isinstance(branch, Branch)])
    return request


def _check_logprobs(service: Service, several: Sequence[SamplingParams | None]) -> None:
    """Raises ApiError if an answer may hold more log-probabilities than the server reports."""
    count = sum(
        sampling.n * sampling.max_new_tokens * (1 + sampling.logprobs)
        for sampling in several
        if sampling is not None and sampling.logprobs is not None
    )
    most = service.options.max_logprobs
    if count > most:
        raise ApiError(
            400,
            f"the answer may have {count} log-probabilities (choices × max_tokens × likeliest tokens), this server "
            f"reports {most}; ask for fewer choices, max_tokens or likeliest tokens",
            param="logprobs",
            code="too_many_logprobs",
        )


def _include_usage(body: OpenAiInput) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def _model(service: Service, name: str) -> dict[str, Any]:
    if service.health == "loading":
        raise ApiError(503, "the model is being loaded; try again soon", code="loading")
    return {
        "id": name,
        "object": "model",
        "created": service.loaded_at,
        "owned_by": "parallelmind",
        "max_model_len": service.served.engine.max_model_len,
    }
