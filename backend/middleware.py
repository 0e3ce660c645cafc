"""What holds for every request, page or API: who may be addressed, from where, and the headers of every answer.

Pure ASGI: nothing is buffered, so uploads and event streams pass through untouched.

- *DNS rebinding*: a page on a domain that points at 127.0.0.1 sends its own name as Host; only names that are ours
  are answered. An address in digits cannot be rebound and is always answered.
- *Cross-site requests*: browsers say where a request comes from (Sec-Fetch-Site, Origin); one that changes something,
  or opens a web socket, from another site is refused. Programs that send neither carry no cookies of a browser.
- *Bodies*: only an upload may be long; a database takes no NUL in a text, so an address with one is of nothing.
- *Share links*: the token is in the address, so no address leaves as a referrer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import our_bug, response
from cipm.errors import CipmError, Forbidden, InputError, LimitExceeded

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
BODY_BYTES = 16 * 2**20
# Dash renders with inline scripts and styles, and evaluates clientside callbacks; nothing comes from another host.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
          "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' ws: wss:; worker-src 'self' blob:; "
          "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'")
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Refuse requests that were not meant for this server or that another site sent."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]):
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts) | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = None if scope["type"] == "lifespan" else self.refusal(scope)
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await response(refused)(scope, receive, send)

    def refusal(self, scope: Scope) -> CipmError | None:
        """Return why this request is refused, or None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if "\0" in scope["path"] or b"%00" in scope.get("query_string", b""):
            return InputError("An address holds no NUL.")
        if scope["type"] == "http" and _too_long(scope, headers):
            return LimitExceeded(f"A request body here has at most {BODY_BYTES:,} bytes.",
                                 fix="Files are sent by PUT /api/uploads/{id}.")
        if not self.is_ours(host):
            return Forbidden("This server does not answer to this host name.", where="Host",
                             fix="Use its address in digits, or set CIPM_PUBLIC_URL to the name people use.")
        changing = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        if changing and _from_elsewhere(headers, host):
            return Forbidden("Another site sent this request; it was not carried out.", where="Origin")
        return None

    def is_ours(self, host: str) -> bool:
        """Tell whether a Host header names this server: a configured name, or an address in digits."""
        name = _host_name(host)
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class LastResort:
    """Answer what nobody caught as a 500 in the one shape; what was wrong goes to the log alone."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:  # the edge of the program: from here on there is nobody to tell
            if started or scope["type"] != "http":
                raise
            await our_bug(f"{scope['method']} {scope['path']}", error)(scope, receive, send)


class SecurityHeaders:
    """Add the headers that keep a browser strict; a header that a route set itself stays."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


def _from_elsewhere(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def _too_long(scope: Scope, headers: Headers) -> bool:
    """Tell whether a body that is kept in memory is too long, or does not say how long it is."""
    if scope["method"] == "PUT" and scope["path"].startswith("/api/uploads/"):
        return False
    length = headers.get("content-length", "0")
    return "transfer-encoding" in headers or not length.isdecimal() or int(length) > BODY_BYTES


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""
