"""The content store: files under keys, in a local folder or an S3 bucket.

    uploads/{sha256}                     what people uploaded, once each
    artefacts/{address}-{random}/…       what a stage wrote: files/…, and manifest.json, which is written last

A folder exists when its manifest does. Keys are made by the server; file names inside a folder come from a jailed
process and are checked here, as are the files: only plain files are taken, links are never followed.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, S3Store

from backend.settings import Settings
from cipm.errors import CorruptFile, LimitExceeded, NotFound

CHUNK = 8 * 2**20  # S3 takes no smaller part than 5 MiB
MAX_FILES = 100_000
CACHE_BYTES = 20 * 2**30
CACHE_SECONDS = 3600.0


@dataclass(frozen=True)
class ObjectStore:
    """Files under keys. `root` is the folder where the store is local; `cache` holds copies where it is not."""

    store: LocalStore | S3Store
    root: Path | None
    cache: Path

    def exists(self, key: str) -> bool:
        """Tell whether a file stands under this key."""
        try:
            obstore.head(self.store, key)
        except (NotFoundError, FileNotFoundError):
            return False
        return True

    def put_file(self, key: str, path: Path) -> None:
        """Keep a file that nobody writes any more, whole or not at all; on the same disk it is linked, not copied."""
        if self.root is not None and self._linked(self.root / key, path):
            return
        with open(path, "rb") as file:
            self._put(key, file)

    def get_file(self, key: str, path: Path) -> Path:
        """Write the file to this path, whole or not at all, and return the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        try:
            with open(partial, "wb") as file:
                for chunk in self._stream(key):
                    file.write(chunk)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def local_file(self, key: str) -> Path:
        """Return a path to read the file at: the store's own where it is local, else a cached copy."""
        if self.root is not None:
            return _existing(self.root / key)
        path = self.cache / key
        if path.exists():
            os.utime(path)
            return path
        self._trim()
        return self.get_file(key, path)

    def put_folder(self, prefix: str, folder: Path) -> dict[str, dict[str, int]]:
        """Keep every file of an untrusted folder, the manifest last; return {relative path: {size}}.

        Raises CorruptFile on anything but plain files and folders: a link could lead to a file of the host.
        """
        files: dict[str, dict[str, int]] = {}
        if not stat.S_ISDIR(os.stat(folder, follow_symlinks=False).st_mode):
            raise CorruptFile("A stage named something that is not a folder.", where=repr(folder.name))
        for name, file in _plain_files(folder):
            if len(files) >= MAX_FILES:
                raise LimitExceeded(f"A stage wrote more than {MAX_FILES:,} files.")
            self._put(f"{prefix}/files/{name}", file)
            files[name] = {"size": os.fstat(file.fileno()).st_size}
        obstore.put(self.store, f"{prefix}/manifest.json", json.dumps({"files": files}).encode())
        return files

    def manifest(self, prefix: str) -> dict[str, dict[str, int]] | None:
        """Return {relative path: {size}} of a whole folder, or None where there is none."""
        try:
            return dict(json.loads(bytes(obstore.get(self.store, f"{prefix}/manifest.json").bytes()))["files"])
        except (NotFoundError, FileNotFoundError):
            return None

    def fetch_folder(self, prefix: str, into: Path) -> Path:
        """Return where the folder can be read: the store's own place where it is local, else `into`, filled."""
        if self.root is not None:
            return _existing(self.root / prefix) / "files"
        for name in self.manifest(prefix) or {}:
            self.get_file(f"{prefix}/files/{name}", into / name)
        return into

    def fetch_file(self, key: str, into: Path) -> Path:
        """Return where the file can be read: the store's own place where it is local, else `into`, written."""
        return _existing(self.root / key) if self.root is not None else self.get_file(key, into)

    def delete_file(self, key: str) -> None:
        """Remove the file under this key; nothing there is no error."""
        (self.cache / key).unlink(missing_ok=True)
        if self.root is not None:
            (self.root / key).unlink(missing_ok=True)
        else:
            obstore.delete(self.store, key)

    def delete_folder(self, prefix: str) -> None:
        """Remove a folder, its manifest first, so that what is half removed no longer exists."""
        shutil.rmtree(self.cache / prefix, ignore_errors=True)
        if self.root is not None:
            (self.root / prefix / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(self.root / prefix, ignore_errors=True)
            return
        obstore.delete(self.store, f"{prefix}/manifest.json")
        for batch in obstore.list(self.store, prefix=prefix):
            obstore.delete(self.store, [entry["path"] for entry in batch])

    def _put(self, key: str, file: IO[bytes]) -> None:
        obstore.put(self.store, key, file, chunk_size=CHUNK, max_concurrency=3)

    def _linked(self, target: Path, path: Path) -> bool:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{time.monotonic_ns()}")
        try:
            os.link(path, partial)
        except OSError:
            return False  # another disk, or one without links: copy
        os.replace(partial, target)
        partial.unlink(missing_ok=True)  # still there where both names were one file already
        return True

    def _stream(self, key: str) -> Iterator[bytes]:
        try:
            yield from obstore.get(self.store, key).stream(min_chunk_size=CHUNK)
        except (NotFoundError, FileNotFoundError):
            raise NotFound("This file is no longer kept.") from None

    def _trim(self) -> None:
        """Remove cached copies unused for an hour, the oldest first, while the cache is over its limit."""
        files = [(path.stat(), path) for path in self.cache.rglob("*") if path.is_file()]
        found = sorted((status.st_mtime, status.st_size, path) for status, path in files)
        total = sum(size for _, size, _ in found)
        for used, size, path in found:
            if total <= CACHE_BYTES or used > time.time() - CACHE_SECONDS:
                return
            path.unlink(missing_ok=True)
            total -= size


def open_objects(settings: Settings) -> ObjectStore:
    """Return the store of these settings; S3 takes endpoint and keys from the usual AWS_ variables."""
    cache = settings.data / "cache"
    if settings.object_store.startswith("s3://"):
        return ObjectStore(S3Store.from_url(settings.object_store, **_s3_options()), None, cache)
    root = Path(settings.object_store).expanduser() if settings.object_store else settings.data / "objects"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return ObjectStore(LocalStore(prefix=root), root, cache)


def _s3_options() -> dict[str, Any]:
    # The AWS tools read AWS_ENDPOINT_URL; a plain-http one is a store of one's own and needs saying so.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None:
        return {}
    return {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}


def _existing(path: Path) -> Path:
    if not path.exists():
        raise NotFound("This file is no longer kept.")
    return path


def _plain_files(folder: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield (relative path, open file) of every file; the writer may be alive and hostile, so never look twice."""
    for place, folders, names, handle in os.fwalk(folder, follow_symlinks=False):
        linked = [name for name in folders if stat.S_ISLNK(os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode)]
        for name in linked + names:
            relative = os.path.relpath(os.path.join(place, name), folder)
            with _open_plain(name, handle, relative) as file:
                yield _checked(relative), file


@contextmanager
def _open_plain(name: str, folder: int, relative: str) -> Iterator[IO[bytes]]:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise CorruptFile("A stage wrote something that is not a plain file.", where=repr(relative)) from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CorruptFile("A stage wrote something that is not a plain file.", where=repr(relative))
        yield file


def _checked(name: str) -> str:
    if not name.isprintable() or "\\" in name or len(name) > 500:
        raise CorruptFile("A stage wrote a file whose name cannot be kept.", where=repr(name))
    return name
