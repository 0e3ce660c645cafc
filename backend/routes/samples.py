"""The demo's files, to try the upload with.

They lie in `samples/` of the data folder, with `samples.json` beside them: `{file name: {kind, title}}`. A server that
was not started as a demo has none.
"""

from __future__ import annotations

import json
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from backend.access import CallerDep, StoreDep
from backend.routes.files import attachment, sends
from backend.schemas import SampleFile
from backend.store import Store
from cipm.errors import NotFound

router = APIRouter(prefix="/samples", tags=["samples"])


@router.get("", summary="Files to try")
def list_samples(caller: CallerDep, store: StoreDep) -> list[SampleFile]:
    """Return the files to try; none on a server that is no demo."""
    return [SampleFile(name=name, kind=about["kind"], title=about["title"], size=(_folder(store) / name).stat().st_size)
            for name, about in _listed(store).items()]


@router.get("/{name}", summary="Download a file to try", response_class=FileResponse,
            responses=sends("application/octet-stream"))
def get_sample(name: str, caller: CallerDep, store: StoreDep) -> FileResponse:
    """Send one of the listed files."""
    if name not in _listed(store):
        raise NotFound(f"There is no sample file {name!r}.", where="name", fix="GET /api/samples lists them.")
    return attachment(_folder(store) / name, name)


def _folder(store: Store) -> Path:
    return store.settings.data / "samples"


def _listed(store: Store) -> dict[str, dict[str, str]]:
    index = _folder(store) / "samples.json"
    if not index.is_file():
        return {}
    return {name: about for name, about in json.loads(index.read_text()).items() if (_folder(store) / name).is_file()}
