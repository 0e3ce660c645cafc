"""What the report says of modules, dimensions and orders, in words. Pure; tested without Dash."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frontend import words

Json = Mapping[str, Any]
ORDER_WORDS = {"original": "Original", "modules": "Modules", "portfolio": "Best seriation", "coordinated": "Coordinated",
               "spectral": "Spectral", "importance": "Importance", "selectivity": "By class", "canonical": "Canonical",
               "lexicographic": "Lexicographic", "nodesort": "Nodesort", "random": "Random",
               "interpretability": "Policy: interpretability", "compression": "Policy: compression",
               "transfer": "Policy: transfer"}
SCORES = {"banded_anti_robinson": ("Banded anti-Robinson", "lower is better"), "path": ("Path length", "lower is better"),
          "block_contrast": ("Block contrast", "higher is better"),
          "anti_robinson": ("Anti-Robinson events", "lower is better"), "two_sum": ("2-SUM", "lower is better")}
STRONG = 3
"""Standard deviations beyond chance from which a link between modules is named."""


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
                      tuple(module_notes(group, m, report or {})))
            for m in group.get("modules") or []]
    return sorted(rows, key=lambda row: (-row.size, row.id))


def compact_ranges(units: Sequence[int]) -> str:
    """Return sorted whole numbers as ranges: [3, 4, 5, 9] → `3–5, 9`."""
    runs: list[list[int]] = []
    for unit in sorted(units):
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}\u2013{b}" for a, b in runs)


def module_notes(group: Json, module: Json, report: Json) -> Iterator[str]:
    """Yield what is typical of a module, which probe rows move it, and what it reads and writes."""
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


def _strongest(link: Json, module: int, by_row: bool, other: str) -> Iterator[str]:
    """Say with which module of the other group the weights are strongest, where they are beyond chance."""
    z, ratio = ([line[module] for line in link[name]] if not by_row else link[name][module] for name in ("z", "ratio"))
    best = max(range(len(z)), key=z.__getitem__, default=None)
    if best is not None and z[best] >= STRONG:
        verb = "Linked to" if link["reads"] is None else "Read by" if link["reads"] != other else "Reads"
        yield f"{verb} {other} module {best}: {words.number(ratio[best])} × the expected weight"


@dataclass(frozen=True)
class ClassRow:
    """One line of the table of classes: its samples, how many units are most active in it, and the clearest of those."""

    label: int
    samples: int
    units: int
    clearest: str


def class_rows(group: Json) -> list[ClassRow]:
    """Return the classes of a group's activations by number; none where it has no statistics by class."""
    found = (group.get("activity") or {}).get("classes") or {}
    mine: dict[int, list[int]] = {}
    for unit, label in enumerate(found.get("preferred") or ()):
        mine.setdefault(label, []).append(unit)
    return [ClassRow(label, samples, len(mine.get(label, ())), _clearest(mine.get(label, ()), found["selectivity"]))
            for label, samples in zip(found.get("labels") or (), found.get("sizes") or (), strict=True)]


def _clearest(units: Sequence[int], selectivity: Sequence[float], most: int = 5) -> str:
    best = sorted(units, key=lambda unit: -selectivity[unit])[:most]
    return ", ".join(f"{unit} ({words.fixed(selectivity[unit])})" for unit in best)


def class_notes(group: Json) -> list[str]:
    """Return in sentences what the figures by class are, and why there are not more of them."""
    activity = group.get("activity") or {}
    found, notes = activity.get("classes"), list(activity.get("classes_words") or ())
    if not found:
        return notes or ["The probe data has no labels that name classes."]
    shares = sorted(found["selectivity"])
    without = (group.get("classes") or {}).get("words")
    return [f"Mean activation of each unit in each class, in standard deviations from the unit's mean, over "
            f"{words.integer(found['samples'])} labelled {found['of']}.",
            f"The class explains {words.percent(shares[len(shares) // 2])} of the variance of the middle unit, where chance "
            f"alone gives about {words.percent(found['chance'])}.",
            without or "The correlation of one class, and what is left of it when the class is known, are chosen under "
                       "Correlation.", *notes]


def level_words(group: Json) -> str | None:
    """Return in a sentence at which resolutions there are modules within modules, or None where there is one level."""
    levels = group.get("levels") or []
    if len(levels) < 2:
        return None
    return "Modules within modules: " + " \u2192 ".join(
        f"{level['modules']} (resolution {words.number(level['resolution'])}, stability {words.number(level['stability'])})"
        for level in levels)


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


# ---------------------------------------------------------------- orders
def order_names(group: Json) -> list[str]:
    """Return the orders a group can be shown in, the original left out, `modules` first."""
    names = [name for name in group.get("orders") or {} if name != "original"]
    preferred = [name for name in ORDER_WORDS if name in names]
    return preferred + [name for name in names if name not in preferred]


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
