"""The symmetry report, canonical forms and fingerprints as lines of text, for the command line. Pure; torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cipm.views.facts import Json

MOST_AXES = 12


def symmetry_lines(report: Json) -> list[str]:
    """Return the facts of a symmetry (`symmetry_facts`) as lines: counts, groups, and what may not move, by reason."""
    groups = report["groups"]
    return [f"{len(groups)} groups, {sum(bool(group['proved']) for group in groups)} of them proved: {report['structure']}",
            *(f"  {line}" for group in _tree(groups) for line in _group(*group)), "",
            *_movable(report), *(line for reason in report["reasons"] for line in _reason(reason, report["pins"]))]


def _tree(groups: list[Any]) -> Iterator[tuple[Json, int]]:
    """Yield every group with its depth, each before those inside it; a ring of parents ends where it began."""
    names = {group["name"] for group in groups}
    inside: dict[str | None, list[Any]] = {}
    for group in groups:
        inside.setdefault(group["parent"] if group["parent"] in names else None, []).append(group)
    pending = [(group, 0) for group in reversed(inside.get(None, []))]
    while pending:
        group, depth = pending.pop()
        yield group, depth
        pending.extend((child, depth + 1) for child in reversed(inside.get(group["name"], [])))


def _group(group: Json, depth: int) -> Iterator[str]:
    name, blocks = "  " * depth + group["name"], f" in {group['blocks']} blocks" if group["blocks"] > 1 else ""
    mark = "" if group["proved"] else ", NOT proved"
    few = group["log10_members"] < 6
    members = f"{round(10 ** group['log10_members']):,}" if few else f"10^{group['log10_members']:.0f}"
    yield (f"{name:42s} {group['size']:6d} {group['kind']}{blocks}; {members} members; "
           f"{len(group['places'])} axes move together{mark}")


def _movable(report: Json) -> Iterator[str]:
    yield (f"{report['movable']:,} of {report['parameters']:,} parameters can move. What may not, and why:" if report["pins"]
           else f"{report['movable']:,} of {report['parameters']:,} parameters can move; no axis is pinned.")


def _reason(reason: Json, pins: list[Any]) -> Iterator[str]:
    ops = f" ({', '.join(reason['ops'])})" if reason["ops"] else ""
    held = f"; holds {reason['parameters']:,} parameters ({reason['share']:.1%})" if reason["parameters"] else ""
    yield f"  {reason['reason']}{ops}: {len(reason['pins'])} {'axis' if len(reason['pins']) == 1 else 'axes'}{held}"
    for number in reason["pins"][:MOST_AXES]:
        yield f"    {pins[number]['tensor']} axis {pins[number]['axis']} ({pins[number]['length']} positions)"
    if len(reason["pins"]) > MOST_AXES:
        yield f"    and {len(reason['pins']) - MOST_AXES} more (--json lists all)"


def canonical_lines(result: Json) -> list[str]:
    """Return what `cipm canonicalize` did as lines: the proof, and what is not certain."""
    plan, matching = result["certificate"]["plan"], result.get("matching")
    lines = [f"wrote {result['filename']} in {result['order']} order: max |Δoutput| {plan['max_abs']:.2g}, relative "
             f"{plan['max_rel']:.2g} (float64, {plan['rows']} random rows)"]
    if matching is None:
        return lines + _unresolved_lines(result["unresolved"])
    margins = [group["margin"] for group in matching["groups"] if group["margin"] is not None]
    return [*lines, f"distance from the reference {matching['distance_before']:.3g} before, {matching['distance']:.3g} now; "
            f"{matching['certain_share']:.1%} of the units certain"
            + (f", least margin {min(margins):.3g}" if margins else ""),
            *(f"  {group['name']}: {group['units'] - group['certain']} of {group['units']} units are not certain"
              for group in matching["groups"] if group["certain"] < group["units"])]


def fingerprint_lines(result: Json) -> list[str]:
    """Return fingerprints as lines of hash and file, what is not certain, and whether they are equal."""
    models = result["models"]
    lines = [f"{entry['fingerprint']}  {entry['model']}" for entry in models]
    for entry in models:
        lines += [f"{entry['model']}: {line}" for line in _unresolved_lines(entry["unresolved"])]
    verdicts = {True: "equal: permuted copies of one model", False: "NOT equal",
                None: "cannot be told: the fingerprints differ, and not all are certain"}
    return lines + ([verdicts[result["equal"]]] if len(models) > 1 else [])


def _unresolved_lines(unresolved: dict[str, int]) -> list[str]:
    return [f"{count} units of {name} could not be told apart within the budget: a permuted copy may come out otherwise"
            for name, count in unresolved.items()]


def prune_lines(result: Json) -> list[str]:
    """Return what pruning did, as lines: sizes, then what was predicted and measured."""
    measured, base = result["measured"], result["baseline"]
    size = ", ".join(f"{result[name]['before']:,} → {result[name]['after']:,} {word}"
                     for name, word in (("parameters", "parameters"), ("flops", "FLOPs a row")))
    more = [f"{word} {measured[name]:.4g}" for name, word in (("kl", "KL to the original"), ("agreement", "agreement"),
                                                              ("accuracy", "accuracy")) if measured[name] is not None]
    loss = f"{base['loss_kind']} {base['loss']:.4f} → {measured['loss']:.4f} (predicted {result['predicted']['loss']:.4f})"
    kept = [f"  {name}: {units:,} units kept" for name, units in result["keep"].items()]
    fast = result["latency"]
    speed = (f"{fast['rows']} rows take {fast['after_ms']:.3g} ms instead of {fast['before_ms']:.3g} ms in {fast['runtime']} "
             f"with {fast['threads']} threads here (medians of {fast['runs']} runs; at best {fast['times']:.2g} times as fast)")
    return [f"wrote {result['filename']}: {size}", f"{', '.join([loss, *more])} on {result['rows']:,} held-out rows", speed,
            *_ran(result["certificate"]["runtime"]), *kept, *result["notes"]]


def _ran(runtime: Json | None) -> list[str]:
    """Return what ran the smaller file, and how far it was from the network that was measured."""
    return [f"{runtime['runtime']} gives what was measured: outputs of the file differ by at most {runtime['max_abs']:.2g}, "
            f"{runtime['max_rel']:.2g} of the largest, on {runtime['rows']:,} rows (rounding may explain "
            f"{runtime['tolerance']:.1g})"] if runtime else []


def sparsify_lines(result: Json) -> list[str]:
    """Return what masking did, as lines: what every weight retains in the given order and in the chosen one."""
    kept = [f"  {w['tensor']}, {_axes(w['axis'])}: {w['retained'] / (w['total'] or 1):.1%} of its magnitude stays, "
            f"{w['retained_before'] / (w['total'] or 1):.1%} in the given order" for w in result["weights"]]
    plan = result["certificate"]["plan"]
    return [f"wrote {result['filename']} with {result['pattern']} sparsity: {result['masked']:,} of {result['parameters']:,} "
            "parameters are zero; the order alone changes outputs by "
            f"{plan['max_rel']:.2g} (float64, {plan['rows']} random rows)",
            *kept, *(f"  {name} stays dense: {why}" for name, why in result["left_out"].items())]


def _axes(axis: int | list[int]) -> str:
    return f"axis {axis}" if isinstance(axis, int) else f"axes {axis[0]} and {axis[1]}"


def report_lines(report: Json) -> list[str]:
    """Return an analysis as lines: rows and loss, then a line for every group."""
    base = report["baseline"]
    accuracy = "" if base["accuracy"] is None else f", accuracy {base['accuracy']:.4f}"
    head = [f"{report['probe']['used_rows']:,} rows; {base['loss_kind']} {base['loss']:.4f}{accuracy} on {base['rows']} rows",
            ""]
    rows = [f"{g['name']:40s} {g['size']:6d} {g['kind']:18s} " + (g["unavailable"] or f"{len(g['modules'])} modules"
            + _removable(g["redundancy"])) for g in report["groups"]]
    return [*head, *rows]


def _removable(redundancy: Json | None) -> str:
    share = (redundancy or {}).get("removable")
    return "" if share is None else f", {share:.0%} removable at {redundancy['removable_loss']:.0%} loss"
