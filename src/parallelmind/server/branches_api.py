"""POST /v1/branches: many branches under one main, and POST /generate: one prompt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from parallelmind.columnar import Visibility, sees_branches
from parallelmind.engine.request import Branch, BranchResult, Request
from parallelmind.errors import RequestError
from parallelmind.prompts.conversation import user
from parallelmind.prompts.encode import PromptIds
from parallelmind.prompts.length import TextTooLongError
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.server.json_route import JsonRoute, Parsed, TicketOf
from parallelmind.server.output_collector import Delta
from parallelmind.server.problems import ApiError, error_of_result
from parallelmind.server.schemas import (
    BranchesInput,
    BranchesOutput,
    BranchInput,
    BranchOutput,
    BranchUsage,
    Cancelled,
    ChatMessage,
    GenerateInput,
    GenerateOutput,
    Sampling,
    Usage,
    sampling_params,
)
from parallelmind.server.service import RunningRequest, Service
from parallelmind.server.streaming import DONE, EventStream, data, results_of
from parallelmind.settings.sampling import SamplingParams

router = APIRouter(tags=["branches"], route_class=JsonRoute)


def _service(http: HttpRequest) -> Service:
    service: Service = http.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


@router.post(
    "/v1/branches",
    response_model=BranchesOutput,
    response_description="The answers; with `stream`, server-sent events",
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def create_branches(
    body: Annotated[BranchesInput, Parsed], http: HttpRequest, service: ServiceOf, ticket: TicketOf
) -> Any:
    """Decode all branches of one main in parallel; main is computed once.

    With `stream`, each event is `data: {json}`: `{"type": "start", "id", "main_tokens", "branches": [{"index",
    "prompt_tokens"}]}`, then `{"type": "token", "index", "text"}` as text comes, `{"type": "finish", "index",
    "finish_reason", "error", "usage"}` for each branch, `{"type": "done", "usage", "timings"}`, and `data: [DONE]`.
    """
    arrived = time.perf_counter()
    model, adapter = service.choose(body.model, body.adapter)
    check_lengths(service, body)
    request, ids = await service.in_lane(http, ticket.body_bytes, lambda: branches_request(service, body, adapter))
    running = service.submit(request, ticket, streamed=body.stream, kind="branches", arrived=arrived)
    if body.stream:
        return EventStream(service, running, _BranchStream(running, ids))
    return _answer(running, model, await results_of(service, running, http))


@router.delete("/v1/branches/{request_id}", response_model=Cancelled)
async def cancel_request(request_id: str, service: ServiceOf) -> Cancelled:
    """End a request; its stream closes regularly, each branch with finish_reason "cancelled"."""
    running = service.find(request_id)
    unfinished = [index for index in range(running.collector.branches) if index not in running.collector.results]
    service.cancel(running, "asked")
    return Cancelled(id=request_id, cancelled=unfinished)


@router.delete("/v1/branches/{request_id}/{index}", response_model=Cancelled)
async def cancel_branch(request_id: str, index: int, service: ServiceOf) -> Cancelled:
    """End one branch of a request; the others go on."""
    running = service.find(request_id)
    if not 0 <= index < running.collector.branches:
        raise ApiError(
            404, f"the request has branches 0 to {running.collector.branches - 1}, not {index}", param="index"
        )
    unfinished = [] if index in running.collector.results else [index]
    service.cancel(running, "asked", index)
    return Cancelled(id=request_id, cancelled=unfinished)


@router.post("/generate", response_model=GenerateOutput)
async def generate(
    body: Annotated[GenerateInput, Parsed], http: HttpRequest, service: ServiceOf, ticket: TicketOf
) -> GenerateOutput | Response:
    """Continue one prompt: the response is prompt and continuation, or with `return_full_text` false the latter."""
    arrived = time.perf_counter()
    _, adapter = service.choose(None, body.adapter)
    service.check_length("prompt", body.prompt)
    prompts = service.served.prompts
    ids, prompt = await service.in_lane(http, ticket.body_bytes, lambda: _encoded(prompts, body))
    given = {} if body.max_new_tokens is None else {"max_new_tokens": body.max_new_tokens}
    sampling = sampling_params(body, Sampling(), **given)
    check_new_tokens(service, sampling, "max_tokens" if body.max_new_tokens is None else "max_new_tokens")
    branch = Branch(branch_id=0, sampling=sampling)
    request = Request(main=ids.main, branches=[branch], adapter=adapter, visibility="isolated")
    running = service.submit(request, ticket, streamed=False, kind="generate", arrived=arrived)
    [result] = await results_of(service, running, http)
    if result.finish_reason in ("error", "cancelled"):
        raise error_of_result(result)
    return GenerateOutput(response=prompt + result.text)


def _encoded(prompts: PromptEncoder, body: GenerateInput) -> tuple[PromptIds, str]:
    """The ids of a prompt, and the text that its response begins with."""
    ids = prompts.completions(body.prompt)
    return ids, prompts.tokenizer.decode(ids.main, skip_special_tokens=True) if body.return_full_text else ""


def check_lengths(service: Service, body: BranchesInput) -> None:
    """Raises ApiError if a text is certain to have more tokens than fit."""
    if body.main is not None:
        service.check_length("main", body.main, service.max_main_tokens)
    for index, branch in enumerate(body.branches):
        service.check_length(f"branches.{index}.prompt", branch.prompt)


def branches_request(
    service: Service, body: BranchesInput, adapter: str, **documented: Any
) -> tuple[Request, PromptIds]:
    """The engine's request for a body, its main and prompts as token ids; it may take long.

    `documented` are sampling parameters that neither branch nor body can say.

    Raises:
        ApiError: a field does not go together with another, or with the server.
    """
    texts = [branch.prompt for branch in body.branches]
    own = {branch.adapter for branch in body.branches if branch.adapter is not None}
    for name in own:
        service.choose(None, name)
    try:
        seen = {service.visibility(body.visibility, name) for name in {adapter, *own}}
    except RequestError as error:
        raise ApiError(400, str(error), param="visibility") from error
    if len(seen) > 1:
        raise ApiError(
            400,
            f"the adapters of the branches were trained with different visibilities ({', '.join(sorted(seen))}); say "
            "which one this request uses",
            param="visibility",
        )
    [visibility] = seen
    if sees_branches(visibility) and len({adapter if b.adapter is None else b.adapter for b in body.branches}) > 1:
        raise ApiError(
            400,
            f"with visibility {visibility!r} the branches read one another, so all need the same adapter; use one, or "
            "visibility 'isolated'",
            param="branches",
        )
    messages, main = body.messages, body.main or ""
    if messages is not None:
        ids = encode_conversation(service, messages, texts, visibility)
    else:
        ids = service.served.prompts.texts(main, texts, visibility=visibility)
    return (
        Request(
            main=ids.main,
            branches=branch_requests(service, body.branches, body, ids, **documented),
            visibility=visibility,
            adapter=adapter,
            sampling=SamplingParams(seed=body.seed),
        ),
        ids,
    )


def encode_conversation(
    service: Service, messages: Sequence[ChatMessage], texts: Sequence[str], visibility: Visibility = "isolated"
) -> PromptIds:
    """A conversation as main; each branch has the user's next message, or answers the conversation if that is empty.

    Raises:
        ApiError: the model's chat template refuses the conversation, or it is too long.
    """
    said = [message.message for message in messages]
    added = [[user(text)] if text else [] for text in texts]
    try:
        return service.served.prompts.conversation(said, added, visibility=visibility)
    except TextTooLongError as error:
        raise ApiError(400, f"messages: {error}", param="messages", code="context_length_exceeded") from error
    except RequestError as error:
        raise ApiError(400, str(error), param="messages") from error


def branch_requests(
    service: Service, branches: list[BranchInput], defaults: Sampling, ids: PromptIds, **documented: Any
) -> list[Branch]:
    """Branches with their prompts, places and sampling parameters."""
    numbers = [place if branch.branch_id is None else branch.branch_id for place, branch in enumerate(branches, 1)]
    if len(set(numbers)) < len(numbers):
        raise ApiError(400, f"the branches have the branch_id {numbers}; give each its own", param="branches")
    made = []
    for index, (branch, prompt) in enumerate(zip(branches, ids.branches, strict=True)):
        sampling = sampling_params(branch, defaults, **documented)
        check_new_tokens(service, sampling, f"branches.{index}.max_tokens" if branch.max_tokens else "max_tokens")
        made.append(Branch(prompt=prompt, sampling=sampling, adapter=branch.adapter, branch_id=branch.branch_id))
    return made


def check_new_tokens(service: Service, sampling: SamplingParams, param: str) -> None:
    """Raises ApiError if a branch asks for more tokens than the server gives."""
    if sampling.max_new_tokens > service.options.max_new_tokens:
        raise ApiError(
            400,
            f"{param} is {sampling.max_new_tokens}; this server gives {service.options.max_new_tokens} at most",
            param=param,
        )


def usage_of(results: Mapping[int, BranchResult]) -> Usage:
    """Tokens of a whole request."""
    first = next(iter(results.values()))
    prompt = first.main_tokens + sum(result.prompt_tokens for result in results.values())
    completion = sum(len(result.token_ids) for result in results.values())
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _usage_of_branch(result: BranchResult) -> BranchUsage:
    return BranchUsage(prompt_tokens=result.prompt_tokens, completion_tokens=len(result.token_ids))


def _answer(running: RunningRequest, model: str, results: list[BranchResult]) -> BranchesOutput:
    return BranchesOutput(
        id=running.id,
        model=model,
        main_tokens=results[0].main_tokens,
        cached_main_tokens=results[0].cached_main_tokens,
        branches=[
            BranchOutput(
                index=index,
                text=result.text,
                finish_reason=str(result.finish_reason),
                error=result.error,
                usage=_usage_of_branch(result),
            )
            for index, result in enumerate(results)
        ],
        usage=usage_of(dict(enumerate(results))),
    )


class _BranchStream:
    """The events of POST /v1/branches."""

    def __init__(self, running: RunningRequest, ids: PromptIds):
        self._running = running
        self._ids = ids

    def opening(self) -> bytes:
        branches = [{"index": index, "prompt_tokens": len(ids)} for index, ids in enumerate(self._ids.branches)]
        return data({"type": "start", "id": self._running.id, "main_tokens": len(self._ids.main), "branches": branches})

    def deltas(self, deltas: Mapping[int, Delta]) -> bytes:
        events = []
        for index, delta in deltas.items():
            if delta.text:
                events.append(data({"type": "token", "index": index, "text": delta.text}))
            if delta.result is not None:
                events.append(
                    data(
                        {
                            "type": "finish",
                            "index": index,
                            "finish_reason": delta.result.finish_reason,
                            "error": delta.result.error,
                            "usage": _usage_of_branch(delta.result).model_dump(),
                        }
                    )
                )
        return b"".join(events)

    def closing(self, results: Mapping[int, BranchResult]) -> bytes:
        collector, first = self._running.collector, results[0]
        usage = usage_of(results)
        timings: dict[str, float | None] = {"time_to_first_token": None, "tokens_per_second": None}
        if collector.first_token_at is not None and collector.finished_at is not None:
            timings["time_to_first_token"] = round(collector.first_token_at - self._running.arrived, 6)
            seconds = collector.finished_at - self._running.arrived
            timings["tokens_per_second"] = round(usage.completion_tokens / seconds, 3) if seconds else None
        done = {
            "type": "done",
            "cached_main_tokens": first.cached_main_tokens,
            "usage": usage.model_dump(),
            "timings": timings,
        }
        return data(done) + DONE
