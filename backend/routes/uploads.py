"""Uploads: reserve, send chunks, resume at the offset the server has.

    POST /api/uploads {name, size, kind}      →  id
    PUT  /api/uploads/{id}?offset=0           the bytes, raw; stop and go on whenever
    HEAD /api/uploads/{id}                    →  Upload-Offset: where to go on
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.requests import ClientDisconnect

from backend.access import CallerDep, StoreDep
from backend.schemas import Upload, UploadCreate
from backend.store import Upload as UploadRow
from backend.store import uploads
from cipm.errors import Conflict

router = APIRouter(prefix="/uploads", tags=["uploads"])
_RAW_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {
    "schema": {"type": "string", "format": "binary"}}}}}


@router.get("", summary="Your complete uploads")
def list_uploads(caller: CallerDep, store: StoreDep) -> list[Upload]:
    """Return the caller's complete uploads, the newest first."""
    with store.read() as session:
        return [describe(row) for row in uploads.listing(session, caller.user_id)]


@router.post("", status_code=201, summary="Reserve an upload")
def create_upload(body: UploadCreate, caller: CallerDep, store: StoreDep) -> Upload:
    """Reserve room for a file. 413 where it is larger than this server takes or has room for."""
    return describe(uploads.create(store, caller.user_id, body.name, body.kind, body.size))


@router.put("/{upload_id}", summary="Send bytes", openapi_extra=_RAW_BODY)
async def append(upload_id: str, request: Request, caller: CallerDep, store: StoreDep,
                 offset: Annotated[int, Query(ge=0, description="Where these bytes go: the offset the server has.")],
                 ) -> Upload:
    """Add the raw body at `offset`. 409: another offset is next; 423: someone is writing; 413: beyond the size."""
    try:
        row = await uploads.append_async(store, upload_id, caller.user_id, offset, request.stream())
    except ClientDisconnect:
        # Nobody reads this answer; the bytes that came count, and the sender resumes at them.
        raise Conflict("The sender hung up.", where=upload_id) from None
    return describe(row)


@router.get("/{upload_id}", summary="One upload")
def get_upload(upload_id: str, caller: CallerDep, store: StoreDep) -> Upload:
    """Return how far an upload is."""
    with store.read() as session:
        return describe(uploads.get(session, upload_id, caller.user_id))


@router.head("/{upload_id}", summary="Where to go on",
             responses={200: {"headers": {"Upload-Offset": {"schema": {"type": "integer"}},
                                          "Upload-Length": {"schema": {"type": "integer"}}}}})
def head_upload(upload_id: str, caller: CallerDep, store: StoreDep) -> Response:
    """Answer with the header `Upload-Offset`: the next byte to send."""
    upload = get_upload(upload_id, caller, store)
    return Response(headers={"Upload-Offset": str(upload.offset), "Upload-Length": str(upload.size)})


@router.delete("/{upload_id}", status_code=204, summary="Remove an upload")
def delete_upload(upload_id: str, caller: CallerDep, store: StoreDep) -> None:
    """Forget an upload and its bytes; analyses made from it keep theirs."""
    uploads.delete(store, upload_id, caller.user_id)


def describe(row: UploadRow) -> Upload:
    """Return an upload as the API shows one."""
    return Upload(id=row.id, name=row.name, kind=row.kind, size=row.size, offset=row.offset, complete=row.complete,
                  sha256=row.sha256 if row.complete else None, expires=row.expires)
