"""A report, a job and an address as the rows and words that the pages show. Pure; tested without Dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend import words

Json = Mapping[str, Any]
TABS = {"correlation": "Correlation", "weights": "Weights", "classes": "By class",
        "redundancy": "Redundancy", "whatif": "What-if", "orders": "Orders"}
KINDS = {"correlation": "correlation", "weights": "weight", "classes": "classes"}
"""Which kind of matrix a tab shows."""
STAGE_WORDS = {"open": "Open the model", "discover": "Find the symmetry", "probe": "Read the probe data",
               "collect": "Collect statistics", "organize": "Find modules and orders", "whatif": "Try pruning",
               "view": "Prepare the view", "export": "Write the checkpoint", "measure": "Measure",
               "latency": "Time smaller models",
               "prune": "Write the smaller checkpoint"}
ACTIVE = ("queued", "running")


def session_there(job: Json) -> bool:
    """Tell whether an analysis has its what-if session, which comes before its last stage."""
    return job["status"] == "done" or any(stage["name"] == "whatif" and stage["state"] in ("done", "cached")
                                          for stage in job["stages"])


@dataclass(frozen=True)
class View:
    """The structural part of a page's state: which group, tab and matrix."""

    group: str | None = None
    tab: str = "correlation"
    matrix: str | None = None

    @classmethod
    def parse(cls, query: Json | None) -> View:
        """Return the view that an address's query asks for; what it does not know falls back to the default."""
        asked = query or {}
        tab = asked.get("tab")
        return cls(asked.get("group") or None, tab if tab in TABS else "correlation", asked.get("matrix") or None)


@dataclass(frozen=True)
class GroupRow:
    """One line of the list of groups."""

    name: str
    depth: int
    kind: str
    size: int
    modules: int
    redundancy: float | None
    proved: bool
    unavailable: str | None

    @property
    def path(self) -> str:
        """Return the leading parts of a long dotted name, "" for a short one."""
        return ".".join(self.name.split(".")[:-2])

    @property
    def short(self) -> str:
        """Return the last two parts of a dotted name."""
        return ".".join(self.name.split(".")[-2:])

    @property
    def size_words(self) -> str:
        """Return the size with its noun."""
        return size_words(self.size, self.kind)

    @property
    def search(self) -> str:
        """Return the text that the filter looks in."""
        return f"{self.name} {self.kind} {self.size} {'proved' if self.proved else 'unproved'}".lower()


def group_rows(report: Json) -> list[GroupRow]:
    """Return the groups as a tree in reading order: each parent before its children, else as the report lists them."""
    groups = report.get("groups") or []
    names = {group["name"] for group in groups}
    children: dict[str | None, list[Json]] = {}
    for group in groups:
        parent = group.get("parent")
        children.setdefault(parent if parent in names and parent != group["name"] else None, []).append(group)
    rows: list[GroupRow] = []
    pending = [(group, 0) for group in reversed(children.get(None, []))]
    while pending:
        group, depth = pending.pop()
        rows.append(_group_row(group, depth))
        pending.extend((child, depth + 1) for child in reversed(children.get(group["name"], [])))
    return rows


def _group_row(group: Json, depth: int) -> GroupRow:
    return GroupRow(group["name"], depth, group.get("kind") or "units", group["size"], len(group.get("modules") or []),
                    (group.get("redundancy") or {}).get("removable"), bool(group.get("proved")), group.get("unavailable"))


def size_words(size: int, kind: str, blocks: int = 1) -> str:
    """Return `512 units`, `64 units in 8 blocks`, or for a kind that is no plural `16 units, residual stream`."""
    noun = kind.split()[0]
    text = f"{words.integer(size)} {noun}" if noun.endswith("s") else f"{words.integer(size)} units, {kind}"
    return text + (f" in {blocks} blocks" if blocks > 1 else "")


def choose_group(report: Json, asked: str | None) -> Json | None:
    """Return the group asked for, else the first that could be analysed, else the first, else None."""
    groups = report.get("groups") or []
    by_name = {group["name"]: group for group in groups}
    if asked in by_name:
        return by_name[asked]
    shown = [by_name[row.name] for row in group_rows(report)]
    return next((group for group in shown if not group.get("unavailable")), shown[0] if shown else None)


def matrices_of(report: Json, group: Json, kind: str) -> list[Json]:
    """Return a group's matrices of one kind of KINDS, in the report's order."""
    wanted = set(group.get("matrices") or [])
    return [matrix for matrix in report.get("matrices") or [] if matrix["id"] in wanted and matrix["kind"] == kind]


def choose_matrix(matrices: Sequence[Json], asked: str | None) -> Json | None:
    """Return the matrix asked for, else the first."""
    return next((matrix for matrix in matrices if matrix["id"] == asked), matrices[0] if matrices else None)


def matrix_words(matrix: Json) -> str:
    """Return how a matrix is called among those of its group: a correlation by the samples that it is of."""
    if matrix["kind"] != "correlation":
        return matrix["title"]
    of = class_words(matrix)
    return f"{of} \u00b7 {words.plural(matrix['samples'], 'sample')}" if of else "All rows"


def class_words(matrix: Json) -> str | None:
    """Return `Class 3` or `Within classes` for a correlation that is not of all rows, else None."""
    of = matrix.get("class")
    return None if of is None else "Within classes" if of == "within" else f"Class {of}"


def fact_list(report: Json) -> list[tuple[str, str]]:
    """Return the header's facts: (name, value) in words."""
    model, probe = report.get("model") or {}, report.get("probe") or {}
    rows = probe.get("used_rows")
    return [("Format", str(model.get("format") or words.NONE)), ("Parameters", words.compact(model.get("parameters"))),
            ("Groups", words.integer(len(report.get("groups") or []))),
            ("Movable", words.percent(report.get("movable_share"))),
            ("Probe rows", words.integer(rows) + (", labelled" if probe.get("labels") else "")),
            *_baseline_facts(report.get("baseline") or {})]


def _baseline_facts(baseline: Json) -> list[tuple[str, str]]:
    facts = []
    if baseline.get("accuracy") is not None:
        facts.append(("Accuracy", words.percent(baseline["accuracy"])))
    if baseline.get("loss") is not None and baseline.get("loss_kind") in LOSS_WORDS:
        facts.append((_sentence(LOSS_WORDS[baseline["loss_kind"]]), words.number(baseline["loss"])))
    return facts


LOSS_WORDS = {"cross_entropy": "cross-entropy", "mean_squared_error": "mean squared error",
              "kl_to_original": "KL divergence from the original", "relative_error": "relative error of the outputs"}


@dataclass(frozen=True)
class Proof:
    """The certificate in words: a badge, one sentence, and the figures."""

    passed: bool | None
    badge: str
    sentence: str
    figures: tuple[tuple[str, str], ...]


def proof(certificate: Json | None) -> Proof:
    """Return the certificate in words; without one, say that nothing was proved."""
    if not certificate:
        return Proof(None, "Not verified", "No certificate was made for this analysis.", ())
    passed = bool(certificate.get("passed"))
    control = certificate.get("negative_control")
    alone = "" if control is None else f"; moving one tied tensor alone changes them by at least {words.number(control)}"
    sentence = (f"Over {words.plural(certificate.get('draws') or 0, 'random reordering')} the outputs changed by at most "
                f"{words.number(certificate.get('max_rel'))} relative to the largest output{alone}.")
    figures = (("Largest |Δ|", words.number(certificate.get("max_abs"))),
               ("Relative", words.number(certificate.get("max_rel"))),
               ("Tolerance", words.number(certificate.get("tolerance"))),
               ("Negative control", words.number(control)), ("Precision", str(certificate.get("dtype", words.NONE))),
               ("On", str(certificate.get("inputs", words.NONE))))
    return Proof(passed, "Function preserved" if passed else "Not preserved", sentence, figures)


@dataclass(frozen=True)
class StageRow:
    """One stage of a job as a line."""

    title: str
    state: str
    detail: str


def stage_rows(job: Json) -> list[StageRow]:
    """Return a job's stages in words; where it failed, the stage that ran is marked so."""
    ended = {"failed": "failed", "cancelled": "stopped"}.get(job.get("status", ""))
    rows = []
    for stage in job.get("stages") or []:
        state = ended if ended and stage["state"] == "running" else stage["state"]
        detail = {"cached": "already done", "running": "running", "waiting": ""}.get(state, state)
        if state == "done":
            detail = words.seconds(stage.get("seconds"))
        rows.append(StageRow(STAGE_WORDS.get(stage["name"], stage["name"]), state, detail))
    return rows


@dataclass(frozen=True)
class KeepNumbers:
    """What is known about keeping k of n units."""

    keep: int
    total: int
    predicted: float | None
    parameters: int | None
    measured: Json | None


def keep_numbers(group: Json, keep: int) -> KeepNumbers:
    """Return the prediction at the listed keep nearest to `keep`, and the measurement at exactly `keep`.

    At a measured point that the curve was calibrated on, the prediction is that of the other points.
    """
    whatif = group.get("whatif") or {}
    ks, measured = whatif.get("keep") or [], whatif.get("measured") or []
    at = min(range(len(ks)), key=lambda i: abs(ks[i] - keep), default=None)
    exact = next((point for point in measured if point["keep"] == keep), None)
    predicted = _item(whatif.get("predicted"), at)
    if exact is not None and "predicted" in exact:  # the curve goes through its own points; this is what the others say
        predicted = exact["predicted"]
    return KeepNumbers(keep, group["size"], predicted, _item(whatif.get("parameters"), at), exact)


def _item(values: Sequence[Any] | None, at: int | None) -> Any:
    return values[at] if values and at is not None and at < len(values) else None


def with_measurements(group: Json, measurements: Sequence[Json]) -> dict[str, Any]:
    """Return the group with finished measurements of the API merged into its what-if, one per keep, sorted."""
    whatif = dict(group.get("whatif") or {})
    points = {point["keep"]: point for point in whatif.get("measured") or []}
    alone = [m for m in measurements if m["keep"].keys() <= {group["name"]} and m.get("result")]
    kept = [m["keep"].get(group["name"], group["size"]) for m in alone]  # a group that is not named stays whole
    points |= {keep: _of_one(m["result"], keep) for keep, m in zip(kept, alone, strict=True)}
    return {**group, "whatif": {**whatif, "measured": [points[keep] for keep in sorted(points)]}}


def _of_one(result: Json, keep: int) -> dict[str, Any]:
    return {**result, "keep": keep, "predicted": (result.get("predicted") or {}).get("loss")}


def _sentence(words: str) -> str:
    """Return words with a capital at the start, those that have capitals of their own left as they are."""
    return words[:1].upper() + words[1:]


def keep_marks(size: int) -> list[int]:
    """Return the keeps that are named under the slider and ruled in the curve."""
    return sorted({1, *(max(1, round(size * share)) for share in (0.25, 0.5, 0.75, 1))})


def suggested_keep(group: Json) -> int:
    """Return where the slider starts: the smallest measured keep, else half of the units."""
    measured = [point["keep"] for point in (group.get("whatif") or {}).get("measured") or [] if point["keep"] > 0]
    return min(measured) if measured else max(1, group["size"] // 2)


def merge_words(pair: Json) -> str:
    """Return what a near-duplicate is, as `0.98 × unit 4 − 0.1`."""
    offset = pair["offset"]
    rest = "" if abs(offset) < 0.005 else f" {'−' if offset < 0 else '+'} {words.fixed(abs(offset))}"
    return f"{words.fixed(pair['scale'])} × unit {pair['kept']}{rest}"


def whatif_reason(group: Json) -> str | None:
    """Return why a group has no what-if, or None where it has."""
    whatif = group.get("whatif")
    if not whatif:
        return group.get("unavailable") or "No pruning what-if was computed for this group."
    return whatif.get("unavailable") or (None if whatif.get("keep") else "No pruning curve was computed for this group.")
