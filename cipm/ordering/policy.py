"""One policy over all groups: which of their orders serves an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cipm.errors import OptionError
from cipm.ordering.scores import Scores
from cipm.permutation import Permutation

RULES = {
    "compression": "Units that matter most come first, so that the first k units are the smaller model: the order by "
                   "elimination where there is one, else by importance, else the original order.",
    "interpretability": "What is alike stands together and matrices line up: the coordinated order, unless its banded "
                        "anti-Robinson on held-out rows is more than 2 % above the best of portfolio, modules and spectral; "
                        "then that best one. Without activations the original order.",
    "transfer": "The canonical order: the same for every permuted copy of the model, so that what is known of one copy "
                "holds for another unit by unit.",
}
PREFERRED = {"compression": ("elimination", "importance"), "transfer": ("canonical",),
             "interpretability": ("coordinated", "portfolio", "modules", "spectral")}
TOLERANCE = 1.02


@dataclass(frozen=True)
class Choice:
    """The order chosen for one group, its name, and why, in words."""

    name: str
    order: Permutation
    why: str


def policy(objective: str, orders: Mapping[str, Mapping[str, Permutation]], *,
           held_out: Mapping[str, Mapping[str, Scores]] | None = None,
           unresolved: Mapping[str, int] | None = None) -> dict[str, Choice]:
    """Return the choice of each group for an objective of RULES, which say in words how.

    `orders` are the groups' orders by name, every group with at least one; `held_out` their scores on rows not seen;
    `unresolved` the units whose canonical place is not certain (`Canonical.unresolved`). Raises OptionError for an
    objective that is none of them.
    """
    if objective not in RULES:
        raise OptionError(f"There is no objective {objective!r}; the objectives are {', '.join(RULES)}.", where="objective")
    chosen = {}
    for group, given in orders.items():
        names = [name for name in PREFERRED[objective] if name in given]
        if not names:
            chosen[group] = Choice("original", Permutation.identity(len(next(iter(given.values())))),
                                   f"This group has none of the orders {', '.join(PREFERRED[objective])}; it stays as it is.")
        elif objective == "interpretability":
            chosen[group] = _clearest(names, given, (held_out or {}).get(group, {}))
        else:
            chosen[group] = Choice(names[0], given[names[0]], _why(names[0], (unresolved or {}).get(group, 0)))
    return chosen


def _clearest(names: list[str], given: Mapping[str, Permutation], held_out: Mapping[str, Scores]) -> Choice:
    judged = {name: held_out[name].banded_anti_robinson for name in names if name in held_out}
    best = min(judged, key=judged.__getitem__) if judged else names[0]
    if not judged:
        return Choice(best, given[best], "No order of this group was judged on held-out rows; the first of "
                                         f"{', '.join(names)} is taken.")
    if judged.get("coordinated", float("inf")) <= TOLERANCE * judged[best]:
        return Choice("coordinated", given["coordinated"], "It lines up with the neighbouring groups at a held-out banded "
                                                           f"anti-Robinson of {judged['coordinated']:.3f} (best: "
                                                           f"{judged[best]:.3f}, {best}).")
    return Choice(best, given[best], f"Its held-out banded anti-Robinson is the lowest: {judged[best]:.3f}.")


def _why(name: str, unresolved: int) -> str:
    if name == "canonical" and unresolved:
        return f"The same for every copy, but for {unresolved} units whose order among each other is not certain."
    return {"canonical": "The same for every permuted copy, to the last unit.",
            "elimination": "Pruning removes the last units first, by what their loss costs after the others take over.",
            "importance": "Units that send on the most variance come first."}[name]
