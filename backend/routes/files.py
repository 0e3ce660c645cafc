"""Sending bytes: how OpenAPI describes such routes, and downloads under names that cannot do harm."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import FileResponse

_ERROR = {"description": "An error, in the one shape.",
          "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}}


def sends(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route that sends bytes: this media type, or an error as JSON."""
    body = {"type": "string"} if media_type.startswith("text/") else {"type": "string", "format": "binary"}
    return {200: {"description": "The bytes.", "content": {media_type: {"schema": body}}}} | dict.fromkeys(
        (422, "4XX", "5XX"), _ERROR)


def safe_name(name: str) -> str:
    """Return the last part of a name without control characters and separators; never empty, never hidden."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if c.isprintable() and c not in '"<>|:*?').lstrip(". ")
    return kept[:200] or "download"


def attachment(path: Path, name: str) -> FileResponse:
    """Return the file as a download; it is streamed, and a range of it can be asked for."""
    return FileResponse(path, media_type="application/octet-stream", filename=safe_name(name),
                        headers={"Cache-Control": "private, no-cache"})


def json_by_address(request: Request, address: str, path: Callable[[], Path]) -> Response:
    """Return the JSON file of an artefact, or 304 where the browser has it: its address is its ETag. The file is asked for only
    where it is sent; a gzipped one is sent as it is to who takes that."""
    etag = f'"{address}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    file = path()
    if file.suffix != ".gz":
        return FileResponse(file, media_type="application/json", headers=headers)
    headers["Vary"] = "Accept-Encoding"
    if "gzip" in request.headers.get("accept-encoding", ""):
        return FileResponse(file, media_type="application/json", headers={**headers, "Content-Encoding": "gzip"})
    return Response(gzip.decompress(file.read_bytes()), media_type="application/json", headers=headers)
