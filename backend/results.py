"""Reading what an analysis came to: the newest finished view artefact, as files on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from backend import describe
from backend.cache import FolderCache
from backend.store import Artefact, Store, artefacts
from backend.store.models import ENDED
from cipm.errors import Conflict, NotFound, OptionError


@dataclass(frozen=True)
class View:
    """The folder of a view artefact, and the address that names its contents."""

    folder: Path
    address: str

    @property
    def report_path(self) -> Path:
        """Return where report.json lies."""
        return self.folder / "report.json"

    def report(self) -> Mapping[str, Any]:
        """Return the report; do not change it."""
        return _parsed(self.report_path, self.address)

    def orders(self) -> list[str]:
        """Return the names of the orders that any group has; `original` always is one."""
        path = self.folder / "orders.json"
        named = json.loads(path.read_text()) if path.is_file() else []
        return list(dict.fromkeys(["original", *named]))


def view_of(store: Store, cache: FolderCache, analysis_id: str) -> View:
    """Return the newest finished view of an analysis. Raises NotFound where none is finished."""
    with store.read() as session:
        artefact = artefacts.of_analysis(session, analysis_id, "view")
    if store.objects.root is not None:
        return View(artefacts.folder(store, artefact, Path()), artefact.address)
    folder = cache.get(artefact.address, lambda into: artefacts.folder(store, artefact, into))
    return View(folder, artefact.address)


def early_result(store: Store, analysis_id: str, stage: str, file: str, *, waiting: str, older: str, ended: str) -> Artefact:
    """Return the newest artefact of a stage that a page reads before the analysis is done, with this file in it.

    Raises Conflict in the words `waiting` while the stage is to come; NotFound in the words `older` where the artefact was
    made before there was such a file, `ended` where the analysis ended before the stage.
    """
    with store.read() as session:
        artefact = artefacts.newest(session, analysis_id, stage)
        status = describe.newest_job(session, analysis_id).status
    if artefact is not None and file in artefact.files:
        return artefact
    if status not in ENDED:
        raise Conflict(waiting, fix=f"Ask again when the stage {stage} is done.")
    if artefact is not None:
        raise NotFound(older, fix="Run it again to get one.")
    raise NotFound(ended, fix="Run it again.")


def check_order(view: View, order: str) -> None:
    """Raise OptionError where the view has no such order."""
    if order not in view.orders():
        raise OptionError(f"There is no order {order!r}; there are {', '.join(view.orders())}.", where="order")


@lru_cache(maxsize=32)
def _parsed(path: Path, address: str) -> Mapping[str, Any]:
    return json.loads(path.read_text())
