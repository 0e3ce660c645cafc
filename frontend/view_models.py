"""A report, a job and an address as the rows and words that the pages show. Pure; tested without Dash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend import words

Json = Mapping[str, Any]
TABS = {"correlation": "Correlation", "weights": "Weights", "redundancy": "Redundancy", "whatif": "What-if",
        "orders": "Orders"}
ORDER_WORDS = {"original": "Original", "modules": "Modules", "portfolio": "Best seriation", "coordinated": "Coordinated",
               "spectral": "Spectral", "importance": "Importance", "selectivity": "By class", "canonical": "Canonical",
               "lexicographic": "Lexicographic", "nodesort": "Nodesort", "random": "Random",
               "interpretability": "Policy: interpretability", "compression": "Policy: compression",
               "transfer": "Policy: transfer"}
STAGE_WORDS = {"open": "Open the model", "discover": "Find the symmetry", "probe": "Read the probe data",
               "collect": "Collect statistics", "organize": "Find modules and orders", "whatif": "Try pruning",
               "view": "Prepare the view", "export": "Write the checkpoint", "measure": "Measure"}
ACTIVE = ("queued", "running")


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
    """Return a group's matrices of one kind ("weight" or "correlation"), in the report's order."""
    wanted = set(group.get("matrices") or [])
    return [matrix for matrix in report.get("matrices") or [] if matrix["id"] in wanted and matrix["kind"] == kind]


def choose_matrix(matrices: Sequence[Json], asked: str | None) -> Json | None:
    """Return the matrix asked for, else the first."""
    return next((matrix for matrix in matrices if matrix["id"] == asked), matrices[0] if matrices else None)


def order_names(group: Json) -> list[str]:
    """Return the orders a group can be shown in, the original left out, `modules` first."""
    names = [name for name in group.get("orders") or {} if name != "original"]
    preferred = [name for name in ORDER_WORDS if name in names]
    return preferred + [name for name in names if name not in preferred]


@dataclass(frozen=True)
class ModuleRow:
    """One line of the table of modules."""

    id: int
    size: int
    coherence: float | None
    stability: float | None
    units: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def ranges(self) -> str:
        """Return the units as compact ranges: `3–5, 9`."""
        return compact_ranges(self.units)


def module_rows(group: Json, report: Json | None = None) -> list[ModuleRow]:
    """Return a group's modules, largest first; with the report, their notes say what they read and write."""
    rows = [ModuleRow(m["id"], m["size"], m.get("coherence"), m.get("stability"), tuple(m.get("units") or ()),
                      tuple(_module_notes(group, m, report or {})))
            for m in group.get("modules") or []]
    return sorted(rows, key=lambda row: (-row.size, row.id))


def _module_notes(group: Json, module: Json, report: Json) -> Iterator[str]:
    if found := module.get("representatives"):
        yield f"Most typical: {', '.join(map(str, found))}"
    if found := module.get("opposed"):
        yield f"Opposed: {compact_ranges(found)}"
    if found := module.get("top_rows"):
        yield f"Most active on probe rows {', '.join(str(row['sample']) for row in found[:5])}"
    for link in report.get("interactions") or []:
        for mine, other in (("rows", "cols"), ("cols", "rows")):
            if link[mine] == group["name"] and link[other] != group["name"]:
                yield from _strongest(link, module["id"], mine == "rows", link[other])


STRONG = 3
"""Standard deviations beyond chance from which a link between modules is named."""


def _strongest(link: Json, module: int, by_row: bool, other: str) -> Iterator[str]:
    """Say with which module of the other group the weights are strongest, where they are beyond chance."""
    z, ratio = ([line[module] for line in link[name]] if not by_row else link[name][module] for name in ("z", "ratio"))
    best = max(range(len(z)), key=z.__getitem__, default=None)
    if best is not None and z[best] >= STRONG:
        verb = "Linked to" if link["reads"] is None else "Read by" if link["reads"] != other else "Reads"
        yield f"{verb} {other} module {best}: {words.number(ratio[best])} × the expected weight"


def level_words(group: Json) -> str | None:
    """Return in a sentence at which resolutions there are modules within modules, or None where there is one level."""
    levels = group.get("levels") or []
    if len(levels) < 2:
        return None
    return "Modules within modules: " + " \u2192 ".join(
        f"{level['modules']} (resolution {words.number(level['resolution'])}, stability {words.number(level['stability'])})"
        for level in levels)


def compact_ranges(units: Sequence[int]) -> str:
    """Return sorted whole numbers as ranges: [3, 4, 5, 9] → `3–5, 9`."""
    runs: list[list[int]] = []
    for unit in sorted(units):
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}\u2013{b}" for a, b in runs)


SCORES = {"banded_anti_robinson": ("Banded anti-Robinson", "lower is better"), "path": ("Path length", "lower is better"),
          "block_contrast": ("Block contrast", "higher is better"),
          "anti_robinson": ("Anti-Robinson events", "lower is better"), "two_sum": ("2-SUM", "lower is better")}


def score_rows(group: Json) -> list[tuple[str, list[tuple[float | None, float | None]]]]:
    """Return (order, [(in sample, held out) per score of SCORES]) for every order of a group."""
    orders = group.get("orders") or {}
    names = [name for name in ORDER_WORDS if name in orders] + [name for name in orders if name not in ORDER_WORDS]
    return [(name, [((orders[name].get("scores") or {}).get(score), (orders[name].get("held_out") or {}).get(score))
                    for score in SCORES]) for name in names]


def best_scores(rows: Sequence[tuple[str, list[tuple[float | None, float | None]]]]) -> list[str | None]:
    """Return, per score, the order that is best on held-out rows."""
    best: list[str | None] = []
    for column, (_, sense) in enumerate(SCORES.values()):
        known = [(cells[column][1], name) for name, cells in rows if cells[column][1] is not None]
        pick = min if sense.startswith("lower") else max
        best.append(pick(known)[1] if known else None)
    return best


def export_orders(report: Json) -> list[str]:
    """Return the orders that a whole model can be exported in: those of any group, then the policies."""
    groups = report.get("groups") or []
    names = dict.fromkeys(name for group in groups for name in order_names(group))
    return list(names | dict.fromkeys(name for group in groups for name in group.get("policies") or {}))


def chance_row(group: Json) -> list[str] | None:
    """Return what random orders score on the held-out rows, mean ± standard deviation per score of SCORES, or None."""
    chance = group.get("chance")
    if not chance:
        return None
    return [f"{words.number(chance['mean'].get(score))} ± {words.number(chance['sd'].get(score), 1)}" for score in SCORES]


def dimension_of(dimension: Json, key: str) -> tuple[float, tuple[float, float] | None] | None:
    """Return (value, values of the two probe halves or None) of one measure of effective dimension, or None without it."""
    value = dimension.get(key)
    if isinstance(value, Mapping):
        value, halves = value.get("value"), value.get("halves")
    else:
        halves = (dimension.get("halves") or {}).get(key)
    return None if value is None else (value, tuple(halves) if halves else None)


def order_notes(report: Json, group: Json) -> list[str]:
    """Return in sentences how the best seriation, the coordinated order and the policies came about."""
    chosen = group.get("portfolio") or {}
    notes = [f"Best seriation: {chosen['chosen']}, {chosen['how']}."] if chosen else []
    notes += [aligned] if (aligned := alignment_words(report)) else []
    if ties := group.get("canonical_ties"):
        notes.append(f"Canonical: the order among {words.plural(ties, 'unit')} is not certain to be the same in every copy.")
    if over := group.get("nodesort_overflow"):
        notes.append(f"Nodesort: the key of {words.plural(over, 'unit')} overflows float32, so that it does not order them.")
    return notes + [f"{ORDER_WORDS.get(name, name)} takes {why}" for name, why in (group.get("policies") or {}).items()]


def alignment_words(report: Json) -> str | None:
    """Return how far the coordinated orders line the weight matrices up, in a sentence, or None where nothing was aligned."""
    found = report.get("coordination") or {}
    if not found.get("after"):
        return None
    return (f"Coordinated orders line up the weight matrices between groups (here {words.integer(len(found['after']))}): mean "
            f"alignment {words.number(found['mean_after'])}, without {words.number(found['mean_before'])} "
            "(1 on the diagonal, 0 as by chance).")


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
    points |= {m["keep"]: m["result"] for m in measurements if m["group"] == group["name"] and m.get("result")}
    return {**group, "whatif": {**whatif, "measured": [points[keep] for keep in sorted(points)]}}


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


def whatif_reason(group: Json) -> str | None:
    """Return why a group has no what-if, or None where it has."""
    whatif = group.get("whatif")
    if not whatif:
        return group.get("unavailable") or "No pruning what-if was computed for this group."
    return whatif.get("unavailable") or (None if whatif.get("keep") else "No pruning curve was computed for this group.")
