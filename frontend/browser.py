"""Open a page in the person's own browser, where there is a desktop; never wait, never fail."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Mapping


def has_desktop(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Tell whether a browser would open in a window, and not in the terminal or nowhere."""
    return platform == "darwin" or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


def open_page(address: str) -> threading.Thread | None:
    """Open a page from a thread of its own; return the thread, or None where there is no desktop."""
    if not has_desktop():
        return None
    thread = threading.Thread(target=_open, args=(address,), daemon=True, name="open browser")
    thread.start()
    return thread


def _open(address: str) -> None:
    try:
        webbrowser.open(address)
    except (webbrowser.Error, OSError):
        return  # the address stands in the terminal
