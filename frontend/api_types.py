"""The answers of the public API as types; a contract test compares their fields with OpenAPI."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Json = dict[str, Any]


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
    kind: Literal["analyze", "export", "latency", "measure", "prune"]
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


class SymmetryFacts(TypedDict):
    """The symmetry in figures and words."""

    parameters: int
    movable: int
    movable_share: float
    log10_equivalents: float
    structure: str
    groups: list[Json]
    pins: list[Json]
    reasons: list[Json]
    certificate: Json | None
    continuous: list[Json]
    notes: list[str]


class ModelGraph(TypedDict):
    """The model's graph with groups and pins, for drawing."""

    modules: list[Json]
    boxes: list[Json]
    edges: list[list[Any]]
    tensors: list[Json]


class SymmetryReport(TypedDict):
    """What was found about a model's symmetry."""

    schema_version: int
    symmetry: SymmetryFacts
    graph: ModelGraph


class WhatIfSession(TypedDict):
    """All that predicts pruning what-ifs (docs/design.md)."""

    schema_version: int
    baseline: Json
    kinds: list[str]
    groups: list[Json]
    unavailable: dict[str, str]
    counts: dict[str, Json]
    whole: dict[str, dict[str, list[list[float]]]]
    frontier: list[list[float]]
    points: list[Json]
    power: float
    band: dict[str, Json | None]
    fronts: dict[str, list[Json]]
    advice: list[Json]
    forms: list[str]
    rows: int
    notes: list[str]


class Front(TypedDict):
    """The choices that lose least for what they save, from the whole model to the smallest."""

    count: str
    choices: list[Json]
    frontier: list[list[float]]


class WhatIf(TypedDict):
    """A named what-if of an analysis."""

    id: str
    name: str
    keep: dict[str, int]
    locked: list[str]
    created: str


class Measurement(TypedDict):
    """A measured what-if; `result` once the job is done."""

    id: str
    keep: dict[str, int]
    job: Job
    result: Json | None


class LatencyFit(TypedDict):
    """Sizes that keep a run time, found by measuring; `result` once the job is done."""

    id: str
    share: float
    locked: list[str]
    sizes: dict[str, int]
    turned: list[str]
    job: Job
    result: Json | None


class Export(TypedDict):
    """A checkpoint that was written: reorganised (`order`) in the uploaded format, or smaller (`keep`, `form`, `facts`)."""

    id: str
    order: str | None
    keep: dict[str, int] | None
    form: str | None
    job: Job
    filename: str | None
    size: int | None
    certificate: Json | None
    facts: Json | None


class Share(TypedDict):
    """A read-only link to one analysis, without its secret."""

    id: str
    created: str
    revoked: str | None


class ShareMade(Share):
    """A link at the one time it is shown."""

    url: str
    token: str
