"""The symmetry in figures and words: how many equivalent forms, what may move, what may not and why. Pure; torch-free."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]
STRUCTURE_FILE = "structure.json"
"""The file of stage `discover` that holds these facts and the graph."""
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
SUPERSCRIPT_DIGITS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
SUPERSCRIPTS = str.maketrans("0123456789", SUPERSCRIPT_DIGITS)
SINGLE = "each of its axes has one position, so there is nothing to permute"
FREEDOM_FIELDS = ("kind", "name", "group", "units", "blocks", "dimension", "conditions", "proved", "certificate")
GROUP_FIELDS = ("name", "kind", "size", "blocks", "parent", "proved")


def symmetry_facts(symmetry: Json, shapes: Mapping[str, tuple[int, ...]], parameters: Sequence[str]) -> dict[str, Any]:
    """Return what the report says of a symmetry.

    symmetry: the JSON of a Symmetry; shapes: of every stored tensor; parameters: the names of those that are no buffers.
    Returns: JSON-ready values: the counts, `groups` with their share and structure, `pins` one by one and `reasons` that
    gather them. Every parameter counts once: as movable, or under the reason that pins its tensor's longest axis.
    """
    sizes = {key: math.prod(shapes[key]) for key in parameters}
    moving = {place["tensor"] for group in symmetry["groups"] for place in group["places"]}
    total = sum(sizes.values())
    movable = sum(size for key, size in sizes.items() if key in moving)
    return {
        "parameters": total, "movable": movable, "movable_share": symmetry["movable_share"],
        "log10_equivalents": symmetry["log10_equivalents"], "structure": structure(symmetry["groups"]),
        "groups": [_group(group, symmetry["groups"], sizes) for group in symmetry["groups"]],
        "pins": [{**pin, "length": shapes[pin["tensor"]][pin["axis"]]} for pin in symmetry["pins"]],
        "reasons": list(_reasons(symmetry["pins"], shapes, sizes, moving)),
        "certificate": symmetry["certificate"], "continuous": [freedom_facts(f) for f in symmetry.get("continuous", ())],
        "notes": list(symmetry["notes"])}


def freedom_facts(freedom: Json) -> dict[str, Any]:
    """Return what a reader wants to know of a symmetry beside permutations: everything but the positions."""
    return {**{name: freedom[name] for name in FREEDOM_FIELDS},
            "places": [{"tensor": p["tensor"], "axis": p["axis"], "power": p["power"],
                        "variance": "covariant" if p["power"] > 0 else "contravariant"} for p in freedom["places"]]}


def _group(group: Json, groups: Sequence[Json], sizes: Mapping[str, int]) -> dict[str, Any]:
    tensors = {place["tensor"] for place in group["places"]}
    width = group["size"] // group["blocks"]
    return {**{name: group[name] for name in GROUP_FIELDS},
            "log10_members": group["blocks"] * math.lgamma(width + 1) / math.log(10),
            "structure": _whole(group, _inside(groups)), "parameters": sum(sizes.get(key, 0) for key in tensors),
            "places": [{"tensor": p["tensor"], "axis": p["axis"], "length": p["length"],
                        "elements": len(p["index"][0]) if p["index"] else 0,
                        **({"axes": sorted({p["view"]["axes"][0], p["axis"]})} if "view" in p else {})}
                       for p in group["places"]],
            "taps": [{"value": t["value"], "axis": t["axis"], "consumers": t["consumers"]} for t in group["taps"]]}


def _reasons(pins: Sequence[Json], shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int],
             moving: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the reasons with the pins they gather, the ops, and the parameters that cannot move at all because of them."""
    gathered: dict[str, list[int]] = defaultdict(list)
    longest: dict[str, tuple[int, str]] = {}
    for number, pin in enumerate(pins):
        gathered[pin["reason"]].append(number)
        length = shapes[pin["tensor"]][pin["axis"]]
        if pin["tensor"] not in longest or length > longest[pin["tensor"]][0]:
            longest[pin["tensor"]] = (length, pin["reason"])
    held: dict[str, int] = defaultdict(int)
    for key, size in sizes.items():
        if key not in moving:
            held[longest.get(key, (0, SINGLE))[1]] += size
    total = sum(sizes.values())
    for reason in sorted({*gathered, *held}, key=lambda reason: (-held[reason], -len(gathered[reason]), reason)):
        numbers = gathered[reason]
        yield {"reason": reason, "pins": numbers, "ops": sorted({pins[n]["op"] for n in numbers} - {"none"}),
               "parameters": held[reason], "share": held[reason] / total if total else 0.0}


# --- the structure of the whole group: products of symmetric groups, nested ones as wreath products ------------------------


def structure(groups: Sequence[Json]) -> str:
    """Return the proved groups' product as text: `S₆₄ × (S₁₂ ≀ S₄)²`, the largest first; "1" where nothing may move."""
    proved = [group for group in groups if group["proved"]]
    inside, names = _inside(proved), {group["name"] for group in proved}
    counts: dict[tuple[int, str], int] = defaultdict(int)
    for group in proved:
        if group["parent"] not in names:
            counts[group["size"], _block(group, inside)] += group["blocks"]
    return _product([_power(text, count) for (_, text), count in sorted(counts.items(), reverse=True)]) or "1"


def _inside(groups: Sequence[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = defaultdict(list)
    for group in groups:
        if group["parent"]:
            found[group["parent"]].append(group)
    return found


def _whole(group: Json, inside: Mapping[str, list[Json]]) -> str:
    return _power(_block(group, inside), group["blocks"])


def _block(group: Json, inside: Mapping[str, list[Json]], above: tuple[str, ...] = ()) -> str:
    """Return one block of a group: S of its units, around what each unit carries. `above` stops a ring of parents."""
    own = f"S{str(group['size'] // group['blocks']).translate(SUBSCRIPTS)}"
    children = [child for child in inside.get(group["name"], ()) if child["name"] not in (*above, group["name"])]
    parts = [_power(_block(child, inside, (*above, group["name"])), max(1, child["blocks"] // group["size"]))
             for child in children]
    if not parts:
        return own
    carried = _product(parts)
    return f"({carried}) ≀ {own}" if "≀" in carried or "×" in carried else f"{carried} ≀ {own}"


def _product(parts: Sequence[str]) -> str:
    bare = [part for part in parts if "≀" in part and part[-1] not in SUPERSCRIPT_DIGITS] if len(parts) > 1 else []
    return " × ".join(f"({part})" if part in bare else part for part in parts)


def _power(text: str, count: int) -> str:
    if count == 1:
        return text
    base = f"({text})" if "≀" in text or "×" in text else text
    return base + str(count).translate(SUPERSCRIPTS)
