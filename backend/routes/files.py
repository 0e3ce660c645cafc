"""Sending files for download under names that cannot do harm."""

from __future__ import annotations

from pathlib import Path

from fastapi.responses import FileResponse


def safe_name(name: str) -> str:
    """Return the last part of a name without control characters and separators; never empty, never hidden."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if c.isprintable() and c not in '"<>|:*?').lstrip(". ")
    return kept[:200] or "download"


def attachment(path: Path, name: str) -> FileResponse:
    """Return the file as a download; it is streamed, and a range of it can be asked for."""
    return FileResponse(path, media_type="application/octet-stream", filename=safe_name(name),
                        headers={"Cache-Control": "private, no-cache"})
