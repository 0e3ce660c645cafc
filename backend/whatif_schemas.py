"""What the API takes and gives of pruning what-ifs: the models that OpenAPI shows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from backend.schemas import Input, Job, Output


class WhatIfSession(Output):
    """All that predicts pruning what-ifs; a what-if is {group: units kept}, a group not named stays whole."""

    schema_version: int
    baseline: dict[str, Any] = Field(description="{loss_kind, loss, accuracy, perplexity, rows} of the whole model.")
    kinds: list[str] = Field(description="What is predicted; the first is what budgets are spread by.")
    groups: list[dict[str, Any]] = Field(description="{name, of, kind, size, blocks, least, level, removal_order, rises: "
                                                     "{KIND: [size + 1]}, measured, notes}; a group keeps a multiple of its "
                                                     "blocks, at least `least`. `of` names the stream that this one is, by "
                                                     "principal direction: a what-if cuts it by one of both.")
    unavailable: dict[str, str] = Field(description="Groups that cannot be made smaller, and why.")
    counts: dict[str, dict[str, Any]] = Field(
        description="parameters, flops, bytes: {fixed, terms: [[size, [{group: share}]]], unit}; value = fixed + Σ size · Π "
                    "over axes of (1 − Σ share · (1 − keep/size of the group)).")
    whole: dict[str, dict[str, list[tuple[float, float]]]] = Field(
        description="Whole networks measured, by kind, along the `front` and `off` it, rising: [what the groups' rises are "
                    "together, measured rise].")
    frontier: list[tuple[float, float]] = Field(
        description="Along the front, by rising parameters: [parameters, what the groups' rises are together].")
    points: list[dict[str, Any]] = Field(description="{keep, predicted, measured} of whole networks.")
    power: float = Field(description="What groups lose together is (Σ rise ^ power) ^ (1 / power).")
    band: dict[str, dict[str, Any] | None] = Field(
        description="{median, p90, points} by kind: factors by which networks that predictions did not know were missed.")
    fronts: dict[str, list[dict[str, Any]]] = Field(
        description="By parameters and by flops, from the whole model to the smallest: {keep, count, rises}.")
    advice: list[dict[str, Any]] = Field(description="{allowed, keep, parameters, measured}: the smallest networks found.")
    forms: list[str] = Field(description="Formats that a smaller checkpoint can be written in, the uploaded one first.")
    rows: int = Field(description="Held-out rows that everything is measured on.")
    notes: list[str]


class Front(Output):
    """The choices that lose least for what they save, from the whole model to the smallest."""

    count: str
    choices: list[dict[str, Any]] = Field(description="{keep: {group: units}, count, rises: {KIND: predicted rise}}.")
    frontier: list[tuple[float, float]] = Field(
        description="As the session's, along the front of parameters with these locks and sizes.")


class WhatIfCreate(Input):
    """A what-if to keep under a name."""

    name: str = Field(min_length=1, max_length=200)
    keep: dict[str, int] = Field(max_length=10_000, description="Units to keep of each group; one not named stays whole.")
    locked: list[str] = Field(default_factory=list, max_length=10_000, description="Groups that are to keep their size.")


class WhatIfPatch(Input):
    """What may be changed about a named what-if; what is not named stays."""

    name: str | None = Field(None, min_length=1, max_length=200)
    keep: dict[str, int] | None = Field(None, max_length=10_000)
    locked: list[str] | None = Field(None, max_length=10_000)


class WhatIf(Output):
    """A named what-if of an analysis."""

    id: str
    name: str
    keep: dict[str, int]
    locked: list[str]
    created: datetime


class MeasurementCreate(Input):
    """A pruning what-if to measure."""

    keep: dict[str, int] = Field(max_length=10_000, description="Units to keep of each group; one not named stays whole.")


class Measurement(Output):
    """A measured what-if."""

    id: str
    keep: dict[str, int]
    job: Job
    result: dict[str, Any] | None = Field(
        description="{keep, loss, kl, agreement, accuracy, perplexity, rows, predicted: {loss, kl}, notes} once measured.")


class LatencyCreate(Input):
    """A share of the whole model's run time that a smaller one may take."""

    share: float = Field(gt=0, lt=1, description="Of the run time of the whole model, measured on the worker's machine.")
    locked: list[str] = Field(default_factory=list, max_length=10_000, description="Groups that stay whole.")
    sizes: dict[str, int] = Field(default_factory=dict, max_length=10_000, description="Groups that keep so many units.")
    turned: list[str] = Field(default_factory=list, max_length=10_000, description="Streams that go by principal direction.")


class LatencyFit(Output):
    """Sizes that keep a run time, found by making smaller models and timing them on the worker's machine."""

    id: str
    share: float
    locked: list[str]
    sizes: dict[str, int]
    turned: list[str]
    job: Job
    result: dict[str, Any] | None = Field(
        description="{keep, share (measured), latency: {before_ms, after_ms, times, rows, runs, threads, runtime}, words, "
                    "predicted: {loss, kl}} once found.")
