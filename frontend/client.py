"""The typed client of the public API: the frontend's only way to the backend, and any program's.

    http = open_http("http://127.0.0.1:8000")
    client = Client(http, token="cipm_…")
    analyses = await client.analyses()

Answers are plain dictionaries whose fields `frontend.api_types` names. Errors come as ApiError with the API's own words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import quote

import httpx

from frontend.api_types import (
    Analysis,
    Export,
    Front,
    Health,
    Job,
    Json,
    LatencyFit,
    Matrix,
    Measurement,
    Problem,
    SampleFile,
    Share,
    ShareMade,
    SymmetryReport,
    Token,
    TokenMade,
    Upload,
    User,
    WhatIf,
    WhatIfSession,
)

EVENT_SECONDS = 30.0


class ApiError(Exception):
    """The API refused: `status` as in HTTP, `problem` in its own words."""

    def __init__(self, status: int, problem: Problem):
        super().__init__(problem["message"])
        self.status, self.problem = status, problem


def open_http(base_url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """Return the connection that clients share. It keeps no cookies: each client speaks for one visitor."""
    http = httpx.AsyncClient(base_url=base_url, transport=transport, timeout=httpx.Timeout(60.0, read=EVENT_SECONDS * 2))
    http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return http


@dataclass(frozen=True)
class Client:
    """Speaks for one visitor: by a browser's Cookie header, a personal token, or a share token; or as the local owner."""

    http: httpx.AsyncClient
    cookie: str | None = None
    share: str | None = None
    token: str | None = None

    async def openapi(self) -> Json:
        """Return the API's description of itself."""
        return await self._call("GET", "/api/openapi.json")

    async def health(self) -> Health:
        """Return the state of the server."""
        return await self._call("GET", "/api/health")

    async def me(self) -> User:
        """Return who asks."""
        return await self._call("GET", "/api/auth/me")

    async def tokens(self) -> list[Token]:
        """Return the visitor's tokens."""
        return await self._call("GET", "/api/tokens")

    async def create_token(self, name: str) -> TokenMade:
        """Make a token; its secret is in the answer alone."""
        return await self._call("POST", "/api/tokens", {"name": name})

    async def delete_token(self, token_id: str) -> None:
        """Delete a token."""
        await self._call("DELETE", f"/api/tokens/{_part(token_id)}")

    async def samples(self) -> list[SampleFile]:
        """Return the files to try."""
        return await self._call("GET", "/api/samples")

    async def uploads(self) -> list[Upload]:
        """Return the visitor's complete uploads."""
        return await self._call("GET", "/api/uploads")

    async def create_upload(self, name: str, size: int, kind: str) -> Upload:
        """Reserve an upload."""
        return await self._call("POST", "/api/uploads", {"name": name, "size": size, "kind": kind})

    async def send(self, upload_id: str, offset: int, data: bytes | AsyncIterator[bytes]) -> Upload:
        """Send bytes of an upload at the offset the server has."""
        return await self._call("PUT", f"/api/uploads/{_part(upload_id)}", content=data, offset=offset)

    async def upload(self, upload_id: str) -> Upload:
        """Return how far an upload is."""
        return await self._call("GET", f"/api/uploads/{_part(upload_id)}")

    async def delete_upload(self, upload_id: str) -> None:
        """Remove an upload."""
        await self._call("DELETE", f"/api/uploads/{_part(upload_id)}")

    async def analyses(self) -> list[Analysis]:
        """Return the visitor's analyses, the newest first."""
        return await self._call("GET", "/api/analyses")

    async def create_analysis(self, model: str, probe: str, *, title: str | None = None,
                              options: Mapping[str, Any] | None = None) -> Analysis:
        """Queue the analysis of two uploads."""
        body = {"model": model, "probe": probe, "title": title, "options": dict(options or {})}
        return await self._call("POST", "/api/analyses", body)

    async def analysis(self, analysis_id: str) -> Analysis:
        """Return one analysis."""
        return await self._read(analysis_id, "")

    async def shared(self, token: str) -> Analysis:
        """Return the analysis that a share token opens."""
        return await self._call("GET", f"/api/shared/{_part(token)}")

    async def rename_analysis(self, analysis_id: str, title: str) -> Analysis:
        """Change the title."""
        return await self._call("PATCH", f"/api/analyses/{_part(analysis_id)}", {"title": title})

    async def delete_analysis(self, analysis_id: str) -> None:
        """Delete an analysis."""
        await self._call("DELETE", f"/api/analyses/{_part(analysis_id)}")

    async def cancel(self, analysis_id: str, job: str | None = None) -> Analysis:
        """Stop a job of an analysis, by default its newest that analyses."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/cancel", job=job)

    async def rerun(self, analysis_id: str) -> Analysis:
        """Queue an analysis again."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/rerun")

    async def events(self, analysis_id: str, job: str | None = None) -> AsyncIterator[Job]:
        """Yield the job whenever it changes, until it ends."""
        address = f"/api/analyses/{_part(analysis_id)}/events"
        async with self.http.stream("GET", address, params=_given(job=job, share=self.share),
                                    headers=self._headers()) as stream:
            if stream.is_error:
                raise _refusal(stream.status_code, await stream.aread())
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    async def report(self, analysis_id: str) -> Json:
        """Return the report."""
        return await self._read(analysis_id, "/report")

    async def symmetry(self, analysis_id: str) -> SymmetryReport:
        """Return the symmetry report with the model's graph, which is there before the report is."""
        return await self._read(analysis_id, "/symmetry")

    async def matrix(self, analysis_id: str, matrix_id: str, order: str = "original") -> Matrix:
        """Return a matrix in one order."""
        return await self._read(analysis_id, f"/matrices/{_part(matrix_id)}", order=order)

    async def measurements(self, analysis_id: str) -> list[Measurement]:
        """Return the measured what-ifs."""
        return await self._read(analysis_id, "/measurements")

    async def measure(self, analysis_id: str, keep: Mapping[str, int]) -> Job:
        """Queue the measurement of the network with so many units of these groups."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/measurements", {"keep": keep})

    async def whatif(self, analysis_id: str) -> WhatIfSession:
        """Return the what-if session, which is there before the report is."""
        return await self._read(analysis_id, "/whatif")

    async def latencies(self, analysis_id: str) -> list[LatencyFit]:
        """Return the run times that were asked for."""
        return await self._read(analysis_id, "/latencies")

    async def fit_latency(self, analysis_id: str, share: float, locked: Sequence[str] = (),
                          sizes: Mapping[str, int] | None = None, turned: Sequence[str] = ()) -> Job:
        """Queue the search for the sizes that take at most this share of the run time."""
        body = {"share": share, "locked": list(locked), "sizes": dict(sizes or {}), "turned": list(turned)}
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/latencies", body)

    async def front(self, analysis_id: str, count: str = "parameters", locked: Sequence[str] = (),
                    sizes: Mapping[str, int] | None = None, turned: Sequence[str] = ()) -> Front:
        """Return the choices that lose least for what they save, with groups locked or at sizes of one's own."""
        given = [f"{group}:{units}" for group, units in (sizes or {}).items()]
        return await self._read(analysis_id, "/whatif/front", count=count, locked=list(locked), size=given,
                                turned=list(turned))

    async def whatifs(self, analysis_id: str) -> list[WhatIf]:
        """Return the named what-ifs."""
        return await self._read(analysis_id, "/whatifs")

    async def save_whatif(self, analysis_id: str, name: str, keep: Mapping[str, int], locked: Sequence[str] = ()) -> WhatIf:
        """Keep a what-if under a name."""
        body = {"name": name, "keep": keep, "locked": list(locked)}
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/whatifs", body)

    async def update_whatif(self, analysis_id: str, whatif_id: str, *, name: str | None = None,
                            keep: Mapping[str, int] | None = None, locked: Sequence[str] | None = None) -> WhatIf:
        """Change the name, the sizes or the locks of a named what-if."""
        body = _given(name=name, keep=keep, locked=None if locked is None else list(locked))
        return await self._call("PATCH", f"/api/analyses/{_part(analysis_id)}/whatifs/{_part(whatif_id)}", body)

    async def delete_whatif(self, analysis_id: str, whatif_id: str) -> None:
        """Forget a named what-if."""
        await self._call("DELETE", f"/api/analyses/{_part(analysis_id)}/whatifs/{_part(whatif_id)}")

    async def exports(self, analysis_id: str) -> list[Export]:
        """Return the exports of an analysis."""
        return await self._call("GET", f"/api/analyses/{_part(analysis_id)}/exports")

    async def create_export(self, analysis_id: str, order: str) -> Export:
        """Queue an export in one order."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/exports", {"order": order})

    async def export_pruned(self, analysis_id: str, keep: Mapping[str, int], form: str | None = None) -> Export:
        """Queue the export of the network with so many units of these groups, in a format that the session lists."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/exports", _given(keep=keep, form=form))

    async def export(self, export_id: str) -> Export:
        """Return one export."""
        return await self._call("GET", f"/api/exports/{_part(export_id)}")

    async def shares(self, analysis_id: str) -> list[Share]:
        """Return the links of an analysis."""
        return await self._call("GET", f"/api/analyses/{_part(analysis_id)}/shares")

    async def create_share(self, analysis_id: str) -> ShareMade:
        """Make a link; its token is in the answer alone."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/shares")

    async def revoke_share(self, share_id: str) -> None:
        """Make a link open nothing any more."""
        await self._call("DELETE", f"/api/shares/{_part(share_id)}")

    async def _read(self, analysis_id: str, rest: str, **query: Any) -> Any:
        """Ask a reading route of an analysis: the only ones that a share token goes to."""
        return await self._call("GET", f"/api/analyses/{_part(analysis_id)}{rest}", share=self.share, **query)

    async def _call(self, method: str, address: str, body: Json | None = None, *,
                    content: bytes | AsyncIterator[bytes] | None = None, **query: Any) -> Any:
        answer = await self.http.request(method, address, json=body, content=content, params=_given(**query),
                                         headers=self._headers())
        if answer.is_error:
            raise _refusal(answer.status_code, answer.content)
        return answer.json() if answer.content else None

    def _headers(self) -> dict[str, str]:
        return _given(Cookie=self.cookie, Authorization=f"Bearer {self.token}" if self.token else None)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _part(value: str) -> str:
    return quote(value, safe="")


def _refusal(status: int, body: bytes) -> ApiError:
    try:
        problem = json.loads(body)["error"]
        return ApiError(status, Problem(code=problem["code"], message=problem["message"], where=problem["where"],
                                        fix=problem["fix"]))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, Problem(code="unknown", message=f"The server answered with status {status}.", where=None,
                                        fix="Try again; the server's log may say more."))
