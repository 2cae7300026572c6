"""Errors as the API reports them, in the form of OpenAI's: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from parallelmind.engine.request import BranchResult
from parallelmind.errors import RequestError
from parallelmind.server.schemas import SETTING_OF

_MAX_SAID = 4000
"""Characters of a message."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable",
}


class ErrorDetail(BaseModel):
    """What went wrong, and what to do."""

    message: str
    type: str
    param: str | None = None
    """The field of the request that is wrong."""
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not a success."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def content(self) -> dict[str, Any]:
        return error_content(self.status, self.message, self.param, self.code)

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, headers=self.headers)


def no_json() -> ApiError:
    """The body is something else than what all endpoints take."""
    message = "the body must be a JSON object, sent with the header Content-Type: application/json"
    return ApiError(400, message, code="no_json")


def error_content(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The envelope; what it repeats of a request is not repeated at any length."""
    message, param = shortened(message), param and shortened(param)
    kind = _TYPES.get(status, "invalid_request_error")
    return {"error": {"message": _sendable(message), "type": kind, "param": param and _sendable(param), "code": code}}


def error_of_result(result: BranchResult) -> ApiError:
    """A branch that failed or was cancelled, as the error of the whole request."""
    message = result.error or "the request was cancelled"
    if result.finish_reason == "cancelled":
        return ApiError(503, message, code="cancelled")
    if result.error_kind == "engine":
        return ApiError(500, message, code="engine_error")
    code = "context_length_exceeded" if result.error_kind in ("too_long", "memory") else result.error_kind
    return ApiError(400, message, code=code)


def add_error_handlers(app: FastAPI) -> None:
    """Give every error of the app the same form."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return explained(error.errors()).response()

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = _HTTP_MESSAGES.get(error.status_code, str(error.detail))
        message = message.format(method=request.method, path=request.url.path)
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def request_error(request: Request, error: Exception) -> JSONResponse:
        return ApiError(400, str(error), code="invalid_request").response()

    async def broken(request: Request, error: Exception) -> JSONResponse:
        # The server logs the traceback; the client need not see it.
        return ApiError(500, "the server failed; its log has the details", code="server_error").response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestError, request_error)
    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)


_HTTP_MESSAGES = {
    400: "the body cannot be read as JSON in UTF-8",
    404: "there is nothing at {path}; /docs lists what there is",
    405: "{method} is not possible at {path}; /docs lists what is",
}


def explained(errors: Sequence[Any]) -> ApiError:
    """The first of the validation errors, by the name of its field."""
    # An unknown field first: where a union was tried, it says more than "none of the forms matches".
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [part for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(str(part) for part in path if not _names_a_form(part)) or None
    if first["type"] == "json_invalid":
        reason = f"the body is not valid JSON: {first.get('ctx', {}).get('error', 'it cannot be parsed')}"
        return ApiError(400, reason, code="invalid_json")
    if first["type"] == "incompatible":
        return ApiError(400, str(first["msg"]), param=str(first["ctx"]["param"]), code="invalid_value")
    if not path:
        return no_json()
    if first["type"] == "extra_forbidden":
        return ApiError(
            400, f"the field {param!r} is not supported; leave it out", param=param, code="unsupported_field"
        )
    if first["type"] == "missing":
        return ApiError(400, f"the field {param!r} is missing", param=param, code="missing_field")
    if (setting := SETTING_OF.get(param.rpartition(".")[2] if param else "")) is not None and _is_value(first):
        return ApiError(400, f"{param} {setting.refusal(first['input'])}", param=param, code="invalid_value")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")


def _is_value(error: Mapping[str, Any]) -> bool:
    """Whether an error is about type or range, and not about what else a text or list may be."""
    return bool(error["type"] != "value_error")


def _names_a_form(part: object) -> bool:
    # pydantic puts the name of the union's member into the path, such as "list[str]" or "ChatMessage".
    return isinstance(part, str) and (part[:1].isupper() or "[" in part or part in ("str", "int", "float", "bool"))


def shortened(text: str) -> str:
    """The beginning and the end of a text of any length."""
    return text if len(text) <= _MAX_SAID else f"{text[: _MAX_SAID // 2]} … {text[-_MAX_SAID // 2 :]}"


def _sendable(text: str) -> str:
    """A text that UTF-8 can carry, whatever the request held."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
