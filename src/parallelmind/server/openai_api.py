"""OpenAI's endpoints: /v1/models, /v1/completions, /v1/chat/completions."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest

from parallelmind.engine.request import Branch, Request
from parallelmind.prompts.encode import PromptIds
from parallelmind.server.branches_api import ServiceOf, check_new_tokens, encode_branches, encode_conversation
from parallelmind.server.openai_format import Chat, Completion
from parallelmind.server.openai_schemas import ChatInput, CompletionInput, OpenAiInput
from parallelmind.server.problems import ApiError
from parallelmind.server.schemas import BranchesInput, Sampling, sampling_params
from parallelmind.server.service import RunningRequest, Service
from parallelmind.server.streaming import EventStream, results_of

router = APIRouter(prefix="/v1", tags=["OpenAI"])
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}},
}
_LIKE_OPENAI = {"temperature": 1.0, "top_p": 1.0}
"""The defaults of OpenAI differ from ours."""
_COMPLETION_TOKENS = 16


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
async def completions(body: CompletionInput, http: HttpRequest, service: ServiceOf) -> Any:
    """Continue a prompt, or several."""
    arrived = time.perf_counter()
    name, adapter = service.choose(body.model, body.adapter)
    many = 1 if isinstance(body.prompt, str) or isinstance(body.prompt[0], int) else len(body.prompt)
    each = body.n or 1
    service.check_room(many * each)
    ids = await service.in_encoder(lambda prompts: prompts.completions(body.prompt))
    request = _alone(service, body, ids, each, adapter, body.logprobs, max_new_tokens=_COMPLETION_TOKENS)
    tokenizer = service.served.engine.tokenizer
    echoes = None
    if body.echo:
        prompts = [body.prompt] if many == 1 and not isinstance(body.prompt[0], list) else body.prompt
        texts = [one if isinstance(one, str) else tokenizer.decode(one) for one in prompts]
        echoes = [text for text in texts for _ in range(each)]
    running = service.submit(request, streamed=bool(body.stream), kind="cmpl", arrived=arrived)
    form = Completion(
        id=running.id,
        model=name,
        tokenizer=tokenizer,
        choices=running.collector.branches,
        with_logprobs=body.logprobs is not None,
        include_usage=_include_usage(body),
        echoes=echoes,
    )
    return await _answer(service, body, running, form, http)


@router.post("/chat/completions", response_description="Also server-sent events, with `stream`", responses=_STREAM)
async def chat_completions(body: ChatInput, http: HttpRequest, service: ServiceOf) -> Any:
    """Answer a conversation; with `branches`, each of them is answered under it, as the choice of its index."""
    arrived = time.perf_counter()
    name, adapter = service.choose(body.model, body.adapter)
    service.check_room(body.n or len(body.branches or [0]))
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    if body.branches is not None:
        request = await _under_messages(service, body, adapter, alternatives)
    else:
        ids = await encode_conversation(service, body.messages, [""])
        request = _alone(service, body, ids, body.n or 1, adapter, alternatives)
    running = service.submit(request, streamed=bool(body.stream), kind="chatcmpl", arrived=arrived)
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
) -> Any:
    if body.stream:
        return EventStream(service, running, form)
    return form.whole(await results_of(service, running, http))


def _alone(
    service: Service,
    body: OpenAiInput,
    ids: PromptIds,
    each: int,
    adapter: str,
    alternatives: int | None,
    **documented: Any,
) -> Request:
    """`each` choices for each prompt, every one as if it were alone: all are branch 0, which sees no other branch."""
    settings = _LIKE_OPENAI | {"logprobs": alternatives, "n": each} | documented
    sampling = sampling_params(body, Sampling(), **settings)
    check_new_tokens(service, sampling, "max_tokens")
    branches = [Branch(prompt=prompt, branch_id=0, sampling=sampling) for prompt in ids.branches]
    return Request(main=ids.main, branches=branches, adapter=adapter, visibility="isolated")


async def _under_messages(service: Service, body: ChatInput, adapter: str, alternatives: int | None) -> Request:
    """The branches of our own extension."""
    assert body.branches is not None
    defaults = {name: getattr(body, name) for name in Sampling.model_fields}
    for name, value in _LIKE_OPENAI.items():
        if defaults[name] is None:
            defaults[name] = value
    given = BranchesInput(
        messages=body.messages, branches=body.branches, visibility=body.visibility, **(defaults | {"adapter": adapter})
    )
    request, _ = await encode_branches(service, given, adapter, logprobs=alternatives)
    return request


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
