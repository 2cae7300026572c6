"""How a body becomes the model of an endpoint: counted as it comes, parsed and validated off the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterator
from email.message import Message
from typing import Annotated, Any, get_type_hints

from fastapi import Depends
from fastapi.routing import APIRoute
from pydantic import ValidationError, WrapValidator
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from parallelmind.server.admission import Ticket
from parallelmind.server.body_shape import BodyShape
from parallelmind.server.clients import ClientGoneError
from parallelmind.server.problems import ApiError, explained, no_json
from parallelmind.server.schemas import Strict
from parallelmind.server.service import Service

_AT_ONCE = 2**14
"""Bytes of a body that are parsed faster than a thread is asked to."""
_MAX_FIELDS = 256
_FREE_FIELDS = ("logit_bias", "metadata")
"""What has any number of fields."""
_TICKET = "parallelmind.ticket"


def _as_it_is(value: Any, validate: Callable[[Any], Any]) -> Any:
    return value if isinstance(value, Strict) else validate(value)


Parsed = WrapValidator(_as_it_is)
"""Marks the model of a body, which the route has validated when FastAPI sees it."""


def _ticket(http: Request) -> Ticket:
    ticket: Ticket = http.scope[_TICKET]
    return ticket


TicketOf = Annotated[Ticket, Depends(_ticket)]


class JsonRoute(APIRoute):
    """A route whose parameter `body`, if it has one, is a JSON object.

    A request is refused before its body is read if there is no place in the queue, has one while it is parsed and
    tokenized, and then one for each of its branches.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model = get_type_hints(self.endpoint).get("body")
        if model is None:
            return handle

        async def handler(request: Request) -> Response:
            service: Service = request.app.state.service
            _check_headers(request)
            ticket = service.ticket(request)
            request.scope[_TICKET] = ticket
            try:
                body = await _body(request, service, ticket, model)
                return await handle(_ParsedRequest(request, body))
            finally:
                ticket.leave()

        return handler


class _ParsedRequest(Request):
    def __init__(self, request: Request, parsed: Strict):
        super().__init__(request.scope, request.receive)
        self._parsed = parsed

    async def body(self) -> bytes:
        return b"{}"  # FastAPI asks for the JSON of a body that is not empty

    async def json(self) -> Strict:
        return self._parsed


def _check_headers(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"bodies in the encoding {encoding!r} are not read; send it as it is, without Content-Encoding"
        raise ApiError(415, message, code="compressed", headers={"Connection": "close"})
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", "")
    if kind.get_content_maintype() != "application" or not f"+{kind.get_content_subtype()}".endswith("+json"):
        raise no_json()


async def _body(request: Request, service: Service, ticket: Ticket, model: type[Strict]) -> Strict:
    shape, received = BodyShape(service.shape_limits), []
    try:
        async for piece in request.stream():
            ticket.hold(len(piece))
            received.append(piece)
            if ticket.body_bytes <= _AT_ONCE:
                shape.feed(piece)
            else:  # hundreds may come at once
                async with service.turns.turn(ticket.client):
                    shape.feed(piece)
    except ClientDisconnect as error:
        raise ClientGoneError from error

    def parsed() -> Strict:
        return _parsed(b"".join(received), model, lambda branches: service.take_places(ticket, branches))

    service.take_places(ticket, 1)
    size = ticket.body_bytes
    return parsed() if size <= _AT_ONCE else await service.in_lane(request, size, parsed)


def _parsed(raw: bytes, model: type[Strict], take_places: Callable[[int], None]) -> Strict:
    try:
        # As json.loads(raw) would, but that that takes UTF-16 and UTF-32 as well, which were not counted.
        content = json.loads(raw.decode("utf-8-sig", "surrogatepass"))
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not valid JSON: {error.msg}", code="invalid_json") from error
    except ValueError as error:
        raise ApiError(400, "the body cannot be read as JSON in UTF-8", code="invalid_json") from error
    if not isinstance(content, dict):
        raise no_json()
    branches = content.get("branches")
    if isinstance(branches, list) and model.has_branches:
        take_places(max(1, len(branches)))
    for path, fields in _objects(content, ()):
        if len(fields) > _MAX_FIELDS:
            name = ".".join(path) or "the body"
            raise ApiError(400, f"{name} has {len(fields)} fields; nothing has more than {_MAX_FIELDS}", param=name)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise explained(error.errors(include_url=False)) from None


def _objects(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All objects in a value that have a known number of fields."""
    if isinstance(value, dict):
        yield path, value
        for name, field in value.items():
            if name not in _FREE_FIELDS:
                yield from _objects(field, (*path, name))
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for place, one in enumerate(value):
            yield from _objects(one, (*path, str(place)))
