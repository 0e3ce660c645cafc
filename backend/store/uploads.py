"""Bytes on their way in: reserved, sent in chunks, resumed at the offset that stands, hashed, kept by content.

The bytes stand in `uploads/{id}.part` of the data folder; the row's offset is how many of them count. A writer holds a
short lock that it renews, so a second one is told Busy and a crashed one blocks nobody for long. When the last byte
is in, the file is hashed and moves into the content store; equal files are shared from then on, never before.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import FileIO
from pathlib import Path

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from backend.store.cleanup import collect_uploads, drop_content
from backend.store.database import db_now, lock_content
from backend.store.models import Upload, utc_now
from backend.store.store import Store
from cipm.errors import Busy, Conflict, InputError, LimitExceeded, NotFound

KINDS = ("model", "probe")
LOCK_SECONDS = 20.0
RENEW_SECONDS = 5.0
KEEP_SECONDS = 600.0
BUFFER = 2**20
MAX_OPEN = 50


def create(store: Store, owner_id: str, name: str, kind: str, size: int) -> Upload:
    """Reserve room for a file of `size` bytes. Raises LimitExceeded, InputError."""
    collect_uploads(store)
    if kind not in KINDS:
        raise InputError(f"An upload is a model or a probe, not {kind!r}.", where="kind")
    if size < 1:
        raise InputError("The file is empty.", where=name, fix="Choose a file with something in it.")
    limit = store.settings.max_upload_bytes
    if size > limit:
        raise LimitExceeded(f"The file has {size:,} bytes; this server takes at most {limit:,}.", where=name)
    upload = Upload(owner_id=owner_id, name=_shown_name(name), kind=kind, size=size, offset=0, complete=False,
                    expires=_expiry(store))
    with store.write() as session:
        _check_room(store, session, owner_id, size)
        session.add(upload)
    return upload


def get(session: Session, upload_id: str, owner_id: str) -> Upload:
    """Return a person's upload. Raises NotFound, also for other people's."""
    found = session.get(Upload, upload_id)
    if found is None or found.owner_id != owner_id:
        raise NotFound("There is no such upload.", fix="It may have expired; send the file again.")
    return found


def listing(session: Session, owner_id: str) -> list[Upload]:
    """Return a person's complete uploads, the newest first."""
    mine = select(Upload).where(Upload.owner_id == owner_id, Upload.complete).order_by(Upload.created.desc(), Upload.id)
    return list(session.scalars(mine))


def append(store: Store, upload_id: str, owner_id: str, offset: int, chunks: Iterable[bytes]) -> Upload:
    """Add bytes at the offset that stands; return the upload, complete after its last byte.

    Raises Conflict where the offset is another, Busy where someone is writing, LimitExceeded beyond the declared size.
    What came before an error counts, so that the sender resumes there.
    """
    writer = _open(store, upload_id, owner_id, offset)
    try:
        for data in chunks:
            writer.write(data)
    except BaseException:
        writer.close()
        raise
    return writer.close_whole()


async def append_async(
    store: Store, upload_id: str, owner_id: str, offset: int, chunks: AsyncIterable[bytes]
) -> Upload:
    """Do as `append` with a stream of the event loop; every blocking step runs in a thread."""
    writer = await asyncio.to_thread(_open, store, upload_id, owner_id, offset)
    buffer = bytearray()
    try:
        async for data in chunks:
            buffer += data
            if len(buffer) >= BUFFER:
                whole, buffer = buffer, bytearray()
                await asyncio.to_thread(writer.write, whole)
    except BaseException:
        # Shielded: where the sender hangs up, the bytes so far still count and the lock is given back.
        await asyncio.shield(asyncio.to_thread(writer.close, bytes(buffer)))
        raise
    return await asyncio.to_thread(writer.close_whole, bytes(buffer))


def delete(store: Store, upload_id: str, owner_id: str) -> None:
    """Remove a person's upload, and the file where nothing else needs it. Raises NotFound, Busy while it is written."""
    with store.write() as session:
        upload = get(session, upload_id, owner_id)
        held = session.scalar(select(Upload.id).where(Upload.id == upload_id, Upload.locked_until > db_now()))
        if held is not None:
            raise Busy("This upload is being written right now.", fix="Stop sending, then remove it.")
        session.delete(upload)
    part_path(store, upload_id).unlink(missing_ok=True)
    if upload.sha256:
        drop_content(store, upload.sha256)


def adopt(store: Store, owner_id: str, name: str, kind: str, path: Path) -> Upload:
    """Keep a file that stands on this machine (a sample) as a complete upload; the file itself stays."""
    size = path.stat().st_size
    upload = create(store, owner_id, name, kind, size)
    with open(path, "rb") as file:
        return append(store, upload.id, owner_id, 0, iter(lambda: file.read(BUFFER), b""))


def content_key(sha256: str) -> str:
    """Return where the content store keeps an uploaded file."""
    return f"uploads/{sha256}"


def part_path(store: Store, upload_id: str) -> Path:
    """Return where the bytes of an unfinished upload stand."""
    return store.settings.data / "uploads" / f"{upload_id}.part"


@dataclass
class _Writer:
    """One writer at one upload: it knows how much may come, and keeps its lock alive. Safe to close from any thread."""

    store: Store
    upload_id: str
    lock: str
    file: FileIO
    offset: int
    size: int
    renewed: float = field(default_factory=time.monotonic)
    busy: threading.RLock = field(default_factory=threading.RLock)

    def write(self, data: bytes | bytearray) -> None:
        """Write bytes. Raises LimitExceeded beyond the declared size; what fits is written first."""
        with self.busy:
            # Before, not after: after a pause someone else may have finished this file, and nothing may touch it.
            if time.monotonic() - self.renewed > RENEW_SECONDS:
                self._save(LOCK_SECONDS)
            room = self.size - self.offset
            self._put(memoryview(data)[:room])
            if len(data) > room:
                raise LimitExceeded(f"More bytes came than the {self.size:,} that were declared.", where=self.upload_id,
                                    fix="Remove this upload and declare the true size.")

    def close(self, data: bytes = b"") -> None:
        """Write what still fits, make the bytes count, and give the lock back."""
        with self.busy, self.file:
            if data:
                self.write(data[:self.size - self.offset])
            self._save(None)

    def close_whole(self, data: bytes = b"") -> Upload:
        """Close; where the last byte is in, hash the file and keep it. Return the upload."""
        try:
            self.write(data)
            if self.offset == self.size:
                self._save(KEEP_SECONDS)
                _keep(self.store, self.upload_id)
        finally:
            self.close()
        with self.store.read() as session:
            return session.get_one(Upload, self.upload_id)

    def _put(self, data: memoryview) -> None:
        try:
            while data:
                written = self.file.write(data)
                self.offset, data = self.offset + written, data[written:]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise LimitExceeded("The server's disk is full.", where=self.upload_id,
                                fix="The upload resumes here once there is room again.") from error

    def _save(self, hold: float | None) -> None:
        """Make the bytes so far count; keep the lock for `hold` seconds or give it back. Raises Conflict without it."""
        self.renewed = time.monotonic()
        values = {"offset": self.offset, "locked_by": self.lock if hold else None,
                  "locked_until": db_now() + hold if hold else None}
        mine = update(Upload).where(Upload.id == self.upload_id, Upload.locked_by == self.lock)
        with self.store.write() as session:
            row = session.execute(mine.values(values).returning(Upload.id)
                                  .execution_options(synchronize_session=False)).first()
            session.execute(mine.where(~Upload.complete).values(expires=_expiry(self.store)))
        if row is None:
            raise Conflict("This upload went to another writer, or was removed.", fix="Ask for its offset and resume.")


def _open(store: Store, upload_id: str, owner_id: str, offset: int) -> _Writer:
    lock, size = _lock(store, upload_id, owner_id, offset)
    path = part_path(store, upload_id)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # no byte may linger past the lock
    file.truncate(offset)  # bytes that never counted, of a server that died
    file.seek(offset)
    return _Writer(store, upload_id, lock, file, offset, size)


def _keep(store: Store, upload_id: str) -> None:
    """Move a full upload into the content store. Can be run again after a crash at any point."""
    path = part_path(store, upload_id)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with store.write() as session:  # the name first: from here on the content is not cleaned away
        lock_content(session, sha256)
        session.execute(update(Upload).where(Upload.id == upload_id).values(sha256=sha256))
    store.objects.put_file(content_key(sha256), path)
    with store.write() as session:
        session.execute(update(Upload).where(Upload.id == upload_id).values(complete=True, expires=None))
    path.unlink(missing_ok=True)


def _lock(store: Store, upload_id: str, owner_id: str, offset: int) -> tuple[str, int]:
    """Take the upload by one atomic update, or say why not."""
    token = secrets.token_hex(16)
    free = or_(Upload.locked_until.is_(None), Upload.locked_until < db_now())
    taken = (update(Upload).where(Upload.id == upload_id, Upload.owner_id == owner_id, ~Upload.complete, free,
                                  Upload.offset == offset)
             .values(locked_by=token, locked_until=db_now() + LOCK_SECONDS).returning(Upload.size)
             .execution_options(synchronize_session=False))
    with store.write() as session:
        size = session.scalar(taken)
        if size is not None:
            return token, size
        upload = get(session, upload_id, owner_id)
        if upload.complete:
            raise Conflict("This upload is complete already.", where=upload_id)
        if upload.offset != offset:
            raise Conflict(f"The next byte to send is {upload.offset:,}, not {offset:,}.", where=upload_id,
                           fix="Ask for the offset and resume there.")
    raise Busy("This upload is being written right now.", where=upload_id,
               fix="Wait a few seconds, then ask for its offset.")


def _check_room(store: Store, session: Session, owner_id: str, size: int) -> None:
    """Count what is promised to unfinished uploads as used. Raises LimitExceeded."""
    open_ones = session.scalar(select(func.count()).where(Upload.owner_id == owner_id, ~Upload.complete)) or 0
    if open_ones >= MAX_OPEN:
        raise LimitExceeded(f"{open_ones} uploads are unfinished already.", fix="Finish or remove some of them first.")
    promised = session.scalar(select(func.sum(Upload.size - Upload.offset)).where(~Upload.complete)) or 0
    free = shutil.disk_usage(store.settings.data).free - promised - store.settings.free_disk_bytes
    if size > free:
        raise LimitExceeded(f"The file has {size:,} bytes, but the server has room for {max(0, int(free)):,}.",
                            fix="Remove old analyses and uploads, or give the server more disk.")


def _expiry(store: Store) -> datetime:
    return utc_now() + timedelta(hours=store.settings.upload_hours)


def _shown_name(name: str) -> str:
    """Return the last part of a file name, printable and short: it is shown, never used as a path."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(letter for letter in last if letter.isprintable()).strip()
    return shown[-200:] or "unnamed"
