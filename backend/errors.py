"""The one JSON error shape, for everything that can go wrong on any route.

    {"error": {"code", "message", "where", "fix"}}

A CipmError answers with its own status. What FastAPI or Starlette refuse (a field that does not fit, an unknown path, a
wrong method) gets the same shape. Anything else is our bug: 500, with an id that finds the traceback in the log.
"""

from __future__ import annotations

import logging
import secrets
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cipm.errors import CipmError, Forbidden, InputError, NotFound

log = logging.getLogger(__name__)


class SignInNeeded(Forbidden):
    """Nobody is signed in, or the sign-in or token is no longer valid."""

    code, status = "sign_in", 401


class TooMany(Forbidden):
    """The same thing was tried too often; try again later."""

    code, status = "too_many", 429


class MethodNotAllowed(InputError):
    """The path exists, but not with this method."""

    code, status = "method", 405


class Broken(CipmError):
    """A bug of ours; the message says nothing about it, the log says everything."""

    code: ClassVar[str] = "internal"


def install(app: FastAPI) -> None:
    """Make the app answer every error in the one shape; what is no error of ours is caught by `LastResort`."""
    app.add_exception_handler(CipmError, _cipm_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)


def response(error: CipmError, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the error as a response; an answer to a question of state is never kept by a cache."""
    extra = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else {}
    return JSONResponse(error.to_json(), error.status, {"Cache-Control": "no-store", **extra, **(headers or {})})


def no_such_path(path: str) -> NotFound:
    """Return the error of an unknown API address."""
    return NotFound("There is no such address in this API.", where=path[:200], fix="GET /api/docs lists the addresses.")


async def _cipm_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CipmError)
    return response(error)


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return response(describe(error.errors()))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return response(no_such_path(request.url.path))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        refused = MethodNotAllowed(f"{request.method} is not possible here; {allowed or 'nothing'} is.")
        return response(refused, {"Allow": allowed})
    payload = InputError(str(error.detail)).to_json()
    return JSONResponse(payload, error.status_code, dict(error.headers or {}))


def our_bug(request: str, error: Exception) -> JSONResponse:
    """Return the answer to a bug of ours; its number finds the traceback in the log."""
    number = secrets.token_hex(4)
    log.error("Error %s on %s", number, request, exc_info=error)
    return response(Broken(f"Something went wrong on our side (error {number}).",
                           fix="The server's log has the details under this number."))


def describe(problems: list[dict[str, Any]]) -> InputError:
    """Return the first problem of a request as a sentence that names the field; the input itself is not repeated."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return InputError("The request body is not valid JSON.", where=f"byte {first['loc'][-1]}")
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    more = f" ({len(problems) - 1} more fields do not fit.)" if len(problems) > 1 else ""
    return InputError(f"{field}: {first['msg'].removeprefix('Value error, ')}.{more}", where=field)
