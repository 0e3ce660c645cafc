"""The symmetry report as the rows and words that its page shows. Pure; tested without Dash."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from frontend import view_models as vm
from frontend import words

Json = Mapping[str, Any]
DIGITS_SHOWN = 9


@dataclass(frozen=True)
class View:
    """What is chosen on the page: a group by name, and a box or module by its key in the drawing."""

    group: str | None = None
    node: str | None = None

    @classmethod
    def parse(cls, query: Json | None) -> View:
        """Return what an address's query asks for."""
        asked = query or {}
        return cls(asked.get("group") or None, asked.get("node") or None)


def chosen_group(facts: Json, name: str | None) -> tuple[int, Json] | None:
    """Return the number and facts of the group called so, or None."""
    return next(((at, group) for at, group in enumerate(facts["groups"]) if group["name"] == name), None)


def chosen_box(graph: Json, key: str | None) -> Json | None:
    """Return the box with this key (`b12`), or None; modules are no boxes."""
    number = (key or "")[1:]
    if not key or key[0] != "b" or not number.isascii() or not number.isdigit() or int(number) >= len(graph["boxes"]):
        return None
    return graph["boxes"][int(number)]


def analysis_address(page: Json, **query: str | None) -> str:
    """Return the address of the analysis page, the owner's or the share's."""
    return _address(page, "", query)


def symmetry_address(page: Json, **query: str | None) -> str:
    """Return the address of the symmetry page, the owner's or the share's."""
    return _address(page, "/symmetry", query)


def whatif_address(page: Json, **query: str | None) -> str:
    """Return the address of the what-if session, the owner's or the share's."""
    return _address(page, "/whatif", query)


def _address(page: Json, rest: str, query: Mapping[str, str | None]) -> str:
    base = f"/s/{page['share']}" if page.get("share") else f"/a/{page['id']}"
    given = {name: value for name, value in query.items() if value is not None}
    return f"{base}{rest}" + (f"?{urlencode(given)}" if given else "")


def fact_list(facts: Json) -> list[tuple[str, str]]:
    """Return the header's facts."""
    proved = sum(bool(group["proved"]) for group in facts["groups"])
    return [("Parameters", words.compact(facts["parameters"])), ("Can move", words.percent(facts["movable_share"])),
            ("Groups", words.integer(len(facts["groups"]))), ("Proved", words.integer(proved)),
            ("Pinned axes", words.integer(len(facts["pins"])))]


def members_words(group: Json) -> str:
    """Return what the members of a group are: `64! orders within each of 12 blocks`."""
    width = group["size"] // group["blocks"]
    orders = f"{width}! orders"
    return orders if group["blocks"] == 1 else f"{orders} within each of {words.integer(group['blocks'])} blocks"


def members_number(group: Json) -> tuple[str, str]:
    """Return the number of members and its exponent: ("24", "") where it is small, else as a power of ten, ("10", "357")."""
    if group["log10_members"] < DIGITS_SHOWN:
        return words.integer(math.factorial(group["size"] // group["blocks"]) ** group["blocks"]), ""
    return words.power_of_ten(group["log10_members"]) or ("1", "")


@dataclass(frozen=True)
class PinRow:
    """One pinned axis as a line: where it is, how long, by what, and the box of the drawing that reads it."""

    tensor: str
    axis: int
    length: int
    op: str
    reason: str
    box: str | None

    @property
    def search(self) -> str:
        """Return the text that the filter looks in."""
        return f"{self.tensor} axis {self.axis} {self.length} {self.op} {self.reason}".lower()


def pin_rows(facts: Json, graph: Json) -> list[PinRow]:
    """Return the pins as lines, in the report's order."""
    boxes: dict[int, int] = {}
    for at, box in enumerate(graph["boxes"]):
        for pin in box["pins"]:
            boxes.setdefault(pin, at)
    return [PinRow(pin["tensor"], pin["axis"], pin["length"], op_words(pin["op"]), pin["reason"],
                   f"b{boxes[number]}" if number in boxes else None) for number, pin in enumerate(facts["pins"])]


def op_words(op: str) -> str:
    """Return an op as people name it: `aten.conv2d.default` → `conv2d`; a dash for none."""
    parts = op.split(".")
    return words.NONE if op in ("", "none") else parts[1] if parts[0] == "aten" and len(parts) > 1 else op


@dataclass(frozen=True)
class ReasonRow:
    """One reason as a line: in words, with the ops that give it, how many axes, and what cannot move at all for it."""

    reason: str
    ops: str
    axes: int
    parameters: int
    share: float
    examples: str


def reason_rows(facts: Json, examples: int = 3) -> list[ReasonRow]:
    """Return the reasons, those that hold the most parameters first."""
    rows = []
    for reason in facts["reasons"]:
        named = [f"{facts['pins'][pin]['tensor']} axis {facts['pins'][pin]['axis']}" for pin in reason["pins"][:examples]]
        more = len(reason["pins"]) - len(named)
        rows.append(ReasonRow(_sentence(reason["reason"]), ", ".join(map(op_words, reason["ops"])) or words.NONE,
                              len(reason["pins"]), reason["parameters"], reason["share"],
                              ", ".join(named) + (f" and {words.integer(more)} more" if more > 0 else "")))
    return rows


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def group_proof(facts: Json, name: str) -> list[tuple[str, str]]:
    """Return the certificate's own figures of one group where it has them."""
    mine = next((found for found in (facts["certificate"] or {}).get("groups") or () if found.get("name") == name), None)
    if mine is None:
        return []
    return [("Relative", words.number(mine.get("max_rel"))), ("Negative control", words.number(mine.get("negative_control"))),
            ("Passed", "yes" if mine.get("passed") else "no")]


def continuous_rows(facts: Json) -> list[tuple[str, str, str, str, str, str]]:
    """Return the symmetries beyond permutations: (kind, name, units, dimension, conditions, proof)."""
    rows = []
    for found in facts["continuous"]:
        blocks, proof = found["blocks"], found["certificate"] or {}
        size = words.plural(found["units"], "unit") + (f" in {words.integer(blocks)} blocks" if blocks > 1 else "")
        rows.append((found["kind"], found["name"], size, words.integer(found["dimension"]), "; ".join(found["conditions"]),
                     f"proved, {words.number(proof.get('max_rel'))}" if found["proved"] else "not proved"))
    return rows


def group_rows(facts: Json) -> list[tuple[int, vm.GroupRow]]:
    """Return the groups as a tree in reading order, each with its number (and so its colour)."""
    numbers = {group["name"]: at for at, group in enumerate(facts["groups"])}
    return [(numbers[row.name], row) for row in vm.group_rows(facts)]


def readers(graph: Json, group: int) -> Sequence[int]:
    """Return the boxes on which a group stands."""
    return [at for at, box in enumerate(graph["boxes"]) if group in box["groups"]]
