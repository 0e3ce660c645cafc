"""What the API takes and gives: the models that OpenAPI shows. Inputs refuse fields they do not know."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cipm.options import AnalysisOptions

JobStatus = Literal["queued", "running", "done", "failed", "cancelled"]
StageState = Literal["waiting", "running", "done", "cached"]
UploadKind = Literal["model", "probe"]


class Input(BaseModel):
    """A request body. No text in it holds a NUL, which a database does not take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a text holds no NUL")
        return value


class Output(BaseModel):
    """A response body."""

    model_config = ConfigDict(frozen=True)


class Problem(Output):
    """What is wrong, where, and the way out."""

    code: str = Field(description="The error's class, as in the list of errors.")
    message: str = Field(description="One clear sentence.")
    where: str | None = Field(None, description="A field, tensor and axis, file and byte, column or option.")
    fix: str | None = Field(None, description="What to do, where the message does not say it.")


class ErrorBody(Output):
    """The one shape of every error."""

    error: Problem


class WorkerHealth(Output):
    """The workers this server can see."""

    alive: bool = Field(description="Whether any was heard of lately.")
    busy: bool = Field(description="Whether any runs a job.")
    workers: int = Field(description="How many were heard of lately.")


class JailHealth(Output):
    """Whether untrusted models can be run safely; where not, they are not run."""

    ok: bool
    detail: str


class DemoHealth(Output):
    """How far a demo's sample models are."""

    state: Literal["training", "ready", "failed"]
    detail: str = Field(description="The last model that was trained, or what went wrong.")


class Health(Output):
    """The state of this server."""

    status: Literal["ok", "degraded"]
    version: str
    worker: WorkerHealth
    jail: JailHealth
    auth: bool = Field(description="Whether people sign in.")
    demo: DemoHealth | None = Field(description="null on a server that is no demo.")


class Credentials(Input):
    """An e-mail address and a password."""

    email: str = Field(min_length=3, max_length=320, pattern=r"^[^@\s]+@[^@\s]+$")
    password: str = Field(min_length=10, max_length=200, description="At least 10 characters.")


class Login(Input):
    """Who signs in. Nothing about the password's form is checked here."""

    email: str = Field(max_length=320)
    password: str = Field(max_length=200)


class User(Output):
    """The one who asks."""

    id: str
    email: str | None = Field(description="null for the local owner.")
    name: str
    auth: bool = Field(description="Whether this server asks people to sign in.")


class TokenCreate(Input):
    """A new personal API token."""

    name: str = Field(min_length=1, max_length=200, description="What it is for.")


class Token(Output):
    """A personal API token, without its secret."""

    id: str
    name: str
    created: datetime
    last_used: datetime | None


class TokenMade(Token):
    """A personal API token at the one time its secret is shown."""

    token: str = Field(description="Send it as `Authorization: Bearer …`. It is not shown again.")


class UploadCreate(Input):
    """The file to come."""

    name: str = Field(min_length=1, max_length=255, description="The file's name.")
    size: int = Field(ge=0, description="Its length, bytes.")
    kind: UploadKind


class Upload(Output):
    """A file on its way in, or in."""

    id: str
    name: str
    kind: UploadKind
    size: int = Field(description="Declared length, bytes.")
    offset: int = Field(description="Bytes received.")
    complete: bool
    sha256: str | None = Field(description="Of the whole file, once complete.")
    expires: datetime | None = Field(description="When an unfinished upload is removed.")


class SampleFile(Output):
    """A file to try the upload with."""

    name: str
    kind: UploadKind
    title: str
    size: int


class AnalysisCreate(Input):
    """Two uploads and what to do with them."""

    model: str = Field(description="Id of a complete upload of kind model.")
    probe: str = Field(description="Id of a complete upload of kind probe.")
    title: str | None = Field(None, max_length=200)
    options: dict[str, Any] | None = Field(
        None, description="Fields of AnalysisOptions; what is not named has its default.",
        json_schema_extra={"properties": AnalysisOptions.model_json_schema()["properties"]})


class AnalysisPatch(Input):
    """What may be changed about an analysis."""

    title: str = Field(min_length=1, max_length=200)


class Source(Output):
    """An uploaded file as an analysis knows it."""

    name: str
    sha256: str
    size: int


class Stage(Output):
    """One stage of a job."""

    name: str
    state: StageState
    seconds: float | None = None


class Job(Output):
    """One piece of work on a worker."""

    id: str
    kind: Literal["analyze", "export", "latency", "measure", "prune"]
    status: JobStatus
    stage: str | None = Field(description="The stage that runs.")
    stages: list[Stage]
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None
    attempt: int = Field(description="How many workers have taken it, the present one included.")
    error: Problem | None
    created: datetime
    started: datetime | None
    finished: datetime | None


class Analysis(Output):
    """A model, a probe set and options, and the newest job on them."""

    id: str
    title: str
    created: datetime
    model: Source
    probe: Source | None
    options: dict[str, Any]
    job: Job
    read_only: bool = Field(description="Whether the asker may only look.")
    sample: bool = Field(description="Whether it came with the demo.")


class AxisView(Output):
    """One axis of a matrix in the order shown."""

    model_config = ConfigDict(frozen=True, extra="allow")

    axis: str = Field(description="The axis name, by which views link: a group's name, or `tensor:axis`.")
    blocks: int = Field(description="Equal runs within which units move.")
    ids: list[int] = Field(description="The original unit at each position.")
    modules: list[int] | None = Field(description="The module of the unit at each position; −1: in none.")


class Matrix(Output):
    """A matrix in one order, and how to read its tiles."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    title: str
    shape: tuple[int, int]
    vmin: float
    vmax: float
    absmax: float
    q99: float = Field(description="0.99 quantile of |x|.")
    nan: int = Field(description="Entries that are not finite.")
    order: str
    orders: list[str] = Field(description="The orders in which this matrix can be shown.")
    levels: int = Field(description="Level L shows blocks of 2^L × 2^L entries as one.")
    tile: int = Field(description="Side of a tile, cells.")
    scale: float = Field(description="A tile's float16 value × scale is the value.")
    revision: str = Field(description="Names these contents; tiles asked for with it never change.")
    rows: AxisView
    cols: AxisView


class SymmetryFacts(Output):
    """The symmetry in figures and words."""

    parameters: int = Field(description="Numbers in the model's parameters.")
    movable: int = Field(description="How many lie in a tensor that some group moves.")
    movable_share: float = Field(description="The same as a share.")
    log10_equivalents: float = Field(description="log10 of the number of equivalent parameterisations that are proved.")
    structure: str = Field(description="The proved group: S is a symmetric group, ≀ a wreath product, largest first.")
    groups: list[dict[str, Any]] = Field(description="As in the report, with `structure`, `parameters` and `log10_members`.")
    pins: list[dict[str, Any]] = Field(description="{tensor, axis, length, op, node, reason}: an axis that may not move.")
    reasons: list[dict[str, Any]] = Field(description="{reason, pins, ops, parameters, share}: pins gathered; `parameters` "
                                                      "are those that cannot move at all because of it.")
    certificate: dict[str, Any] | None = Field(description="The measured proof.")
    continuous: list[dict[str, Any]] = Field(description="Symmetries beyond permutations, where they were looked for.")
    notes: list[str]


class ModelGraph(Output):
    """The model's graph with groups and pins, for drawing; everything by its number in these lists and in the facts."""

    modules: list[dict[str, Any]] = Field(description="{path, name, parent}, parents first; parent −1: none.")
    boxes: list[dict[str, Any]] = Field(description="{kind, label, op, module, parent, tensors, groups, pins, pinning}, each "
                                                    "after those it reads; `pinning`: pins that it is the reason for.")
    edges: list[list[Any]] = Field(description="[from, to, [groups], quiet]; quiet: drawn on request.")
    tensors: list[dict[str, Any]] = Field(description="{name, shape, groups: [[axis, group]], pins}.")


class SymmetryReport(Output):
    """What was found about a model's symmetry."""

    schema_version: int
    symmetry: SymmetryFacts
    graph: ModelGraph


class ExportCreate(Input):
    """A checkpoint to write: reorganised (`order`), or smaller (`keep`)."""

    order: str | None = Field(None, max_length=100)
    keep: dict[str, int] | None = Field(None, max_length=10_000, description="Units to keep of each group; one not named stays "
                                                                            "whole.")
    form: Literal["pt2", "onnx", "huggingface", "state_dict"] | None = Field(
        None, description="Format of a smaller checkpoint; default: the uploaded one. The session lists those that can be.")

    @model_validator(mode="after")
    def one_wish(self) -> ExportCreate:
        """Refuse a wish for both, or for none."""
        if (self.order is None) == (self.keep is None):
            raise ValueError("give either an order or keep, not both")
        if self.form is not None and self.keep is None:
            raise ValueError("a form is chosen for a smaller checkpoint alone")
        return self


class Export(Output):
    """A checkpoint that was written: reorganised in the uploaded format, or smaller."""

    id: str
    order: str | None
    keep: dict[str, int] | None
    form: str | None
    job: Job
    filename: str | None
    size: int | None
    certificate: dict[str, Any] | None
    facts: dict[str, Any] | None = Field(description="Of a smaller one: {parameters, flops, baseline, predicted, measured, "
                                                     "rows, latency, notes}, as `cipm prune --json` has them.")


class Share(Output):
    """A read-only link to one analysis, without its secret."""

    id: str
    created: datetime
    revoked: datetime | None


class ShareMade(Share):
    """A link at the one time it is shown."""

    url: str = Field(description="The page's path: /s/{token}.")
    token: str
