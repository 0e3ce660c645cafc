"""What a page needs for pruning what-ifs: the session that stage `whatif` wrote, as a file and as values."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from backend import describe
from backend.store import Artefact, Store, artefacts
from backend.store.models import ENDED
from cipm.allocation import Session
from cipm.errors import Conflict, NotFound

SESSION_FILE = "session.json"


def session_artefact(store: Store, analysis_id: str) -> Artefact:
    """Return the artefact that holds the session of an analysis. Raises Conflict while there is none, NotFound where the
    analysis ended before."""
    with store.read() as session:
        artefact = artefacts.newest(session, analysis_id, "whatif")
        status = describe.newest_job(session, analysis_id).status
    if artefact is not None and SESSION_FILE in artefact.files:
        return artefact
    if status not in ENDED:
        raise Conflict("What pruning costs is not computed yet.", fix="Ask again when the stage whatif is done.")
    if artefact is not None:
        raise NotFound("This analysis was made before there were what-if sessions.", fix="Run it again to get one.")
    raise NotFound("This analysis ended before what-ifs were computed.", fix="Run it again.")


def session_of(store: Store, analysis_id: str) -> Session:
    """Return the session of an analysis as values. Raises as `session_artefact` does."""
    artefact = session_artefact(store, analysis_id)
    return _session(artefacts.file(store, artefact, SESSION_FILE), artefact.address)


@lru_cache(maxsize=64)
def _session(path: Path, address: str) -> Session:
    return Session.from_json(json.loads(path.read_text()))
