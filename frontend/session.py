"""Who is looking: the visitor's cookie from the callback's request, a client made for it, and reports kept by address."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dash import ctx

from frontend.client import Client

ClientFactory = Callable[[str | None, str | None], Client]
KEPT_REPORTS = 16


@dataclass(frozen=True)
class Site:
    """The pages' only way to the backend: `make_client(cookie header, share token)`, and a small cache of reports."""

    make_client: ClientFactory
    _reports: OrderedDict[tuple[str, ...], Mapping[str, Any]] = field(default_factory=OrderedDict)

    def visit(self, share: str | None = None) -> Client:
        """Return a client that speaks for the visitor of the running callback."""
        headers = {name.lower(): value for name, value in dict(ctx.headers).items()}
        return self.make_client(headers.get("cookie"), share)

    def origin(self) -> str:
        """Return the page's own origin as the browser knows it, for links to copy; "" where it did not say."""
        headers = {name.lower(): value for name, value in dict(ctx.headers).items()}
        return headers.get("origin", "")

    async def report(self, client: Client, analysis: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an analysis's report. The analysis was just asked for, so the visitor may read it."""
        job = analysis["job"]
        key = (analysis["id"], job["id"], str(job["finished"]))
        return self._reports.get(key) or self._keep(key, await client.report(analysis["id"]))

    async def symmetry(self, client: Client, analysis: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return an analysis's symmetry report; it is kept once the newest job has found it, from when on it stays."""
        job = analysis["job"]
        key = (analysis["id"], job["id"], "symmetry")
        found = self._reports.get(key) or await client.symmetry(analysis["id"])
        known = any(stage["name"] == "discover" and stage["state"] in ("done", "cached") for stage in job["stages"])
        return self._keep(key, found) if known else found

    def _keep(self, key: tuple[str, ...], found: Mapping[str, Any]) -> Mapping[str, Any]:
        self._reports[key] = found
        while len(self._reports) > KEPT_REPORTS:
            self._reports.popitem(last=False)
        return found
