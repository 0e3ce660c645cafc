"""Pruning what-ifs: the session that stage `whatif` wrote, as a file and as values, and those kept under a name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session as Rows

from backend.results import early_result
from backend.store import Analysis, Artefact, Store, WhatIf, artefacts
from cipm.allocation import SESSION_FILE, Session, read_session
from cipm.errors import Conflict, NotFound, OptionError

MOST_NAMED = 200


def session_artefact(store: Store, analysis_id: str) -> Artefact:
    """Return the artefact that holds the session of an analysis. Raises Conflict while there is none, NotFound where the
    analysis ended before."""
    return early_result(store, analysis_id, "whatif", SESSION_FILE, waiting="What pruning costs is not computed yet.",
                        older="This analysis was made before there were what-if sessions of this kind.",
                        ended="This analysis ended before what-ifs were computed.")


def session_of(store: Store, analysis_id: str) -> Session:
    """Return the session of an analysis as values. Raises as `session_artefact` does."""
    artefact = session_artefact(store, analysis_id)
    return _session(artefacts.file(store, artefact, SESSION_FILE), artefact.address)


def sizes_of(given: Sequence[str]) -> dict[str, int]:
    """Return {group: units} of texts GROUP:UNITS. Raises OptionError."""
    sizes = {}
    for one in given:
        name, _, units = one.rpartition(":")
        if not name or not units.isdecimal() or len(units) > 9:
            raise OptionError(f"A size is GROUP:UNITS, such as fc1:64; it cannot be {one[:200]!r}.", where="size")
        sizes[name] = int(units)
    return sizes


def named(session: Rows, analysis_id: str) -> list[WhatIf]:
    """Return the named what-ifs of an analysis, the newest first."""
    found = select(WhatIf).where(WhatIf.analysis_id == analysis_id).order_by(WhatIf.created.desc(), WhatIf.id)
    return list(session.scalars(found))


def room_for_one(session: Rows, analysis_id: str) -> None:
    """Raise Conflict where an analysis has as many named what-ifs as it may. Locks the analysis, so that of two who ask at
    once both are counted."""
    session.get_one(Analysis, analysis_id, with_for_update=True)
    if len(named(session, analysis_id)) >= MOST_NAMED:
        raise Conflict(f"An analysis keeps at most {MOST_NAMED} named what-ifs.", fix="Delete one first.")


def owned_whatif(session: Rows, analysis_id: str, whatif_id: str) -> WhatIf:
    """Return a named what-if of this analysis. Raises NotFound."""
    row = session.get(WhatIf, whatif_id)
    if row is None or row.analysis_id != analysis_id:
        raise NotFound("This analysis has no such what-if.", where=whatif_id[:200])
    return row


@lru_cache(maxsize=64)
def _session(path: Path, address: str) -> Session:
    return Session.from_json(read_session(path))
