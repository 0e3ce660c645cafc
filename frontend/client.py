"""The typed client of the public API: the frontend's only way to the backend, and any program's.

    http = open_http("http://127.0.0.1:8000")
    client = Client(http, token="cipm_…")
    analyses = await client.analyses()

Answers are plain dictionaries whose fields the types below name; a contract test compares them with OpenAPI, so a field
that the API adds, drops or renames is noticed here. Errors come as ApiError with the API's own words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Literal, TypedDict
from urllib.parse import quote

import httpx

Json = dict[str, Any]
EVENT_SECONDS = 30.0


class Problem(TypedDict):
    """What is wrong, where, and the way out."""

    code: str
    message: str
    where: str | None
    fix: str | None


class WorkerHealth(TypedDict):
    """The workers that the server can see."""

    alive: bool
    busy: bool
    workers: int


class JailHealth(TypedDict):
    """Whether untrusted models can be run safely."""

    ok: bool
    detail: str


class DemoHealth(TypedDict):
    """How far a demo's sample models are."""

    state: Literal["training", "ready", "failed"]
    detail: str


class Health(TypedDict):
    """The state of the server; `demo` is null on one that is no demo."""

    status: Literal["ok", "degraded"]
    version: str
    worker: WorkerHealth
    jail: JailHealth
    auth: bool
    demo: DemoHealth | None


class User(TypedDict):
    """The one who asks; `auth`: whether this server asks people to sign in."""

    id: str
    email: str | None
    name: str
    auth: bool


class Token(TypedDict):
    """A personal API token, without its secret."""

    id: str
    name: str
    created: str
    last_used: str | None


class TokenMade(Token):
    """A personal API token at the one time its secret is shown."""

    token: str


class Upload(TypedDict):
    """A file on its way in, or in."""

    id: str
    name: str
    kind: Literal["model", "probe"]
    size: int
    offset: int
    complete: bool
    sha256: str | None
    expires: str | None


class SampleFile(TypedDict):
    """A file to try the upload with."""

    name: str
    kind: Literal["model", "probe"]
    title: str
    size: int


class Source(TypedDict):
    """An uploaded file as an analysis knows it."""

    name: str
    sha256: str
    size: int


class Stage(TypedDict):
    """One stage of a job."""

    name: str
    state: Literal["waiting", "running", "done", "cached"]
    seconds: float | None


class Job(TypedDict):
    """One piece of work on a worker."""

    id: str
    kind: Literal["analyze", "export", "measure"]
    status: Literal["queued", "running", "done", "failed", "cancelled"]
    stage: str | None
    stages: list[Stage]
    progress: float
    eta_seconds: float | None
    attempt: int
    error: Problem | None
    created: str
    started: str | None
    finished: str | None


class Analysis(TypedDict):
    """A model, a probe set and options, and the newest job on them."""

    id: str
    title: str
    created: str
    model: Source
    probe: Source | None
    options: Json
    job: Job
    read_only: bool
    sample: bool


class AxisView(TypedDict):
    """One axis of a matrix in the order shown: per position the original unit, and its module or null."""

    axis: str
    blocks: int
    ids: list[int]
    modules: list[int] | None


class Matrix(TypedDict):
    """A matrix in one order, and how to read its tiles."""

    id: str
    title: str
    shape: list[int]
    vmin: float
    vmax: float
    absmax: float
    q99: float
    nan: int
    order: str
    orders: list[str]
    levels: int
    tile: int
    scale: float
    revision: str
    rows: AxisView
    cols: AxisView


class Measurement(TypedDict):
    """A measured what-if; `result` once the job is done."""

    id: str
    group: str
    keep: int
    job: Job
    result: Json | None


class Export(TypedDict):
    """A reorganised checkpoint in the uploaded format."""

    id: str
    order: str
    job: Job
    filename: str | None
    size: int | None
    certificate: Json | None


class Share(TypedDict):
    """A read-only link to one analysis, without its secret."""

    id: str
    created: str
    revoked: str | None


class ShareMade(Share):
    """A link at the one time it is shown."""

    url: str
    token: str


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

    async def matrix(self, analysis_id: str, matrix_id: str, order: str = "original") -> Matrix:
        """Return a matrix in one order."""
        return await self._read(analysis_id, f"/matrices/{_part(matrix_id)}", order=order)

    async def measurements(self, analysis_id: str) -> list[Measurement]:
        """Return the measured what-ifs."""
        return await self._read(analysis_id, "/measurements")

    async def measure(self, analysis_id: str, group: str, keep: int) -> Job:
        """Queue the measurement of one group pruned to `keep` units."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/measurements", {"group": group, "keep": keep})

    async def exports(self, analysis_id: str) -> list[Export]:
        """Return the exports of an analysis."""
        return await self._call("GET", f"/api/analyses/{_part(analysis_id)}/exports")

    async def create_export(self, analysis_id: str, order: str) -> Export:
        """Queue an export in one order."""
        return await self._call("POST", f"/api/analyses/{_part(analysis_id)}/exports", {"order": order})

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
