"""What a client can ask about the server: health, metrics, presets, models, and the picture of a row."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request as HttpRequest

import parallelmind
from parallelmind.columnar import VISIBILITIES, Visibility, pack_row
from parallelmind.errors import RequestError
from parallelmind.prompts.prompt_encoder import PromptEncoder
from parallelmind.server.branches_api import ServiceOf
from parallelmind.server.json_route import JsonRoute, Parsed, TicketOf
from parallelmind.server.problems import ApiError
from parallelmind.server.schemas import SAMPLING_DEFAULTS, GridInput, GridOutput, GridToken, Health, PresetOutput
from parallelmind.settings.sampling import PRESETS
from parallelmind.visuals.grid import row_grid
from parallelmind.visuals.tokens import token_texts

MAX_GRID_TOKENS = 400
_MAX_GRID_CHARACTERS = 40 * MAX_GRID_TOKENS
"""A longer text is too long for every tokenizer, and is refused without tokenizing it."""

router = APIRouter(tags=["server"], route_class=JsonRoute)


@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def health(service: ServiceOf) -> JSONResponse:
    """200 when requests are answered; 503 while the model loads, while the server shuts down, and after a failure."""
    state = service.health
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceOf) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@router.get("/v1/presets")
async def presets() -> dict[str, PresetOutput]:
    """Sampling settings for the usual situations."""
    return {name: PresetOutput(**preset) for name, preset in PRESETS.items()}


@router.get("/v1/info")
async def info(service: ServiceOf) -> dict[str, Any]:
    """The model, its adapters, and the limits of this server."""
    served, options = service.served, service.options
    engine = served.engine
    return {
        "model": served.model,
        "adapters": list(served.adapters),
        "visibility": engine.visibility,
        "visibilities": list(VISIBILITIES),
        "sampling": SAMPLING_DEFAULTS,
        "max_model_len": engine.max_model_len,
        "chat_template": served.prompts.template.is_own,
        "max_branches": options.max_branches,
        "max_new_tokens": options.max_new_tokens,
        "max_main_tokens": options.max_main_tokens,
        "max_grid_tokens": MAX_GRID_TOKENS,
        "version": parallelmind.__version__,
    }


@router.post("/v1/grid", response_model=GridOutput)
async def grid(body: Annotated[GridInput, Parsed], http: HttpRequest, service: ServiceOf, ticket: TicketOf) -> Response:
    """The tokens of a small row with their positions, and who sees whom; nothing is generated."""
    service.choose(None, body.adapter)
    try:
        visibility = service.visibility(body.visibility, body.adapter)
    except RequestError as error:
        raise ApiError(400, str(error), param="visibility") from error
    texts = [branch if isinstance(branch, str) else branch.prompt for branch in body.branches]
    if len(body.main) + sum(map(len, texts)) > _MAX_GRID_CHARACTERS:
        raise _too_large(None)
    engine = service.served.engine
    steps = engine.branch_stride_of(body.adapter), engine.branch_range_of(body.adapter)
    content = await service.in_lane(
        http, ticket.body_bytes, lambda: _drawn(service.served.prompts, body.main, texts, visibility, *steps)
    )
    return Response(content, media_type="application/json")


def _drawn(
    prompts: PromptEncoder,
    main: str,
    texts: list[str],
    visibility: Visibility,
    stride: int,
    branch_range: int | None,
) -> str:
    """The picture of a row."""
    ids = prompts.texts(main, texts, visibility=visibility)
    flat = [*ids.main, *(token for branch in ids.branches for token in branch)]
    if len(flat) > MAX_GRID_TOKENS:
        raise _too_large(len(flat))
    shown = token_texts(prompts.tokenizer, flat)
    row = pack_row(ids.main, ids.branches)
    drawn = row_grid(row, shown, stride=stride, visibility=visibility)
    places = zip(shown, row.branch_ids.tolist(), row.pos2d(stride, branch_range).tolist(), strict=True)
    return GridOutput(
        tokens=[
            GridToken(text=text, branch=branch, time=time, position=(position, time))
            for text, branch, (position, time) in places
        ],
        visible=drawn.seen().int().tolist(),
        visibility=visibility,
        stride=stride,
    ).model_dump_json()


def _too_large(tokens: int | None) -> ApiError:
    size = "is too long" if tokens is None else f"has {tokens} tokens"
    message = f"the row {size}; the picture takes {MAX_GRID_TOKENS} tokens at most: shorten main or the branches"
    return ApiError(400, message, code="too_large_to_draw")
