"""The demo: small models trained on this machine at first start, and analysed like anyone's.

A child process trains them (this process never holds torch) into `samples/` of the data folder, one by one; each is
queued as it comes. `samples/registered.json` remembers what was queued, so that a sample that its owner deleted stays
away; removing the folder brings all back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from backend.store import LOCAL_OWNER, Analysis, Store, uploads
from backend.submission import submit
from cipm import __version__
from cipm.errors import CipmError
from cipm.options import parse_options

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-m", "cipm.testing.samples")
INDEX, MARKER = "samples.json", "registered.json"
STOP_SECONDS = 5.0


@dataclass
class Demo:
    """Has the samples trained and queued, in the background. `detail` is the newest line said about it."""

    store: Store
    command: tuple[str, ...] = COMMAND
    state: Literal["training", "ready", "failed"] = "training"
    detail: str = ""
    _task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """Return where the samples lie."""
        return self.store.settings.data / "samples"

    def start(self) -> None:
        """Begin; what goes wrong is logged and shown, and tried again at the next start."""
        self._task = asyncio.create_task(self._prepare(), name="demo")

    async def stop(self) -> None:
        """End the training, if it goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _prepare(self) -> None:
        try:
            if _marker(self.folder).get("trained_by") != __version__:
                await self._train()
                await asyncio.to_thread(_mark, self.folder, trained_by=__version__)
            await asyncio.to_thread(register, self.store, self.folder)
            self.state = "ready"
        except (CipmError, OSError, SQLAlchemyError, ValueError) as error:
            self.state, self.detail = "failed", error.line() if isinstance(error, CipmError) else str(error)
            log.error("The demo's samples are not there: %s", self.detail)

    async def _train(self) -> None:
        # A session of its own: Ctrl-C in the terminal reaches the server alone, which then ends the training in order.
        child = await asyncio.create_subprocess_exec(
            *self.command, str(self.folder), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True)
        complaints = asyncio.create_task(child.stderr.read())
        try:
            async for line in child.stdout:
                self.detail = line.decode(errors="replace").strip()
                await asyncio.to_thread(register, self.store, self.folder)
            await child.wait()
        finally:
            await _end(child)
            said = (await complaints).decode(errors="replace").strip()
        if child.returncode != 0:
            raise CipmError(f"The sample models could not be trained (exit status {child.returncode}): "
                            f"{said.splitlines()[-1] if said else 'nothing was said.'}", where=str(self.folder),
                            fix=f"Run `python -m cipm.testing.samples {self.folder}` to see all of it.")


def register(store: Store, folder: Path) -> list[str]:
    """Queue the analysis of every sample that is there and to be shown, once; return the new analyses' ids."""
    queued = set(_marker(folder).get("queued", ()))
    made = []
    for name, about in _read(folder / INDEX).items():
        if about["kind"] == "model" and about["show"] and name not in queued:
            made += _queue(store, folder, name, about)
            queued.add(name)
            _mark(folder, queued=sorted(queued))
    return made


def _queue(store: Store, folder: Path, name: str, about: dict[str, Any]) -> list[str]:
    """Queue one sample, unless an analysis of it stands already: of a server that ended before it could note it."""
    with store.read() as session:
        if session.scalar(select(Analysis.id).where(Analysis.sample, Analysis.model_name == name,
                                                    Analysis.deleted.is_(None))):
            return []
    model = uploads.adopt(store, LOCAL_OWNER, name, "model", folder / name)
    probe = uploads.adopt(store, LOCAL_OWNER, about["probe"], "probe", folder / about["probe"])
    with store.write() as session:
        row, job = submit(session, LOCAL_OWNER, model, probe, title=about["name"], sample=True,
                          options=parse_options({}).model_dump())
    store.wake(job.id)
    return [row.id]


def _marker(folder: Path) -> dict[str, Any]:
    return _read(folder / MARKER)


def _mark(folder: Path, **values: Any) -> None:
    part = folder / f".{MARKER}.part"
    part.write_text(json.dumps(_marker(folder) | values, indent=1))
    os.replace(part, folder / MARKER)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), STOP_SECONDS)
        except TimeoutError:
            child.kill()
            await child.wait()
