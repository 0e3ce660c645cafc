"""Residual streams turned onto their principal directions before a model is made smaller."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from cipm.allocation import Session, Sizes
from cipm.errors import OptionError, UnsupportedModel
from cipm.pipeline.context import Context
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.pruning import Pruner
from cipm.pipeline.refitting import Refitter
from cipm.pruning.principal import turn, turnable
from cipm.symmetry import Symmetry, with_continuous

STREAM = "residual stream"
MOST_UNITS = 2048
"""Wider streams are cut by coordinate alone in a session: turning one multiplies all that writes into it and reads it."""
NOT_FREE = ("It can be cut by coordinate alone: directions take layer or RMS norms as all that stands between what writes into "
            "the stream and what reads it, and a head that is not the embedding.")


def by_direction(name: str) -> str:
    """Return what a session calls a stream whose units are its principal directions."""
    return f"{name} by direction"


def with_turned_streams(context: Context, names: Collection[str] | None = None) -> tuple[Context, list[str]]:
    """Return a context of the same function whose residual streams (all, or those named) stand on their principal directions,
    and what was done, in words. Raises OptionError where the model has no such stream that may be turned.

    Cost: `turn` for every stream; discovery with its proof where layer norms were changed.
    """
    said: list[str] = []
    done: set[str] = set()
    rows = Refitter(context).rows
    while True:
        symmetry = _with_freedoms(context)
        name = next((name for name in turnable(symmetry) if name not in done and (names is None or name in names)), None)
        if name is None:
            break
        made = turn(context.checkpoint, symmetry, name, rows)
        context = replace(context, folders={}, kept={"checkpoint": made.checkpoint, "probe": context.probe})
        context.kept["symmetry"] = proved_groups(context) if made.notes else replace(symmetry, continuous=())
        done.add(name)
        said += [f"{name} stands on the principal directions of what its readers see: its units are directions. The outputs "
                 f"changed by {made.max_rel:.1e} of the largest.", *made.notes]
    if not done or names is not None and not done.issuperset(names):
        raise OptionError("No residual stream of this model may be turned: that takes norms alone between what writes into it "
                          "and what reads it, and a head of its own.", where="turn-streams",
                          fix="Leave it out: single units of the stream can still go.")
    return context, said


def turned_for(context: Context, session: Session, sizes: Sizes) -> tuple[Context, dict[str, Sequence[int]], list[str]]:
    """Return the context that a what-if is made in (streams turned that it cuts by direction), the units it keeps, by group,
    and what was done, in words."""
    units = dict(session.units_kept(sizes))
    streams = {name: of for name, of in session.turned.items() if name in units}
    if not streams:
        return context, units, []
    context, said = with_turned_streams(context, streams.values())
    return context, {streams.get(name, name): kept for name, kept in units.items()}, said


def directions(pruner: Pruner) -> tuple[dict[str, Pruner], dict[str, str]]:
    """Return what is known of every stream by direction, measured on the same rows as by coordinate, and why of the others not.

    Cost: for every stream `with_turned_streams`, and what a group alone costs.
    """
    found, reasons = {}, {}
    free = turnable(_with_freedoms(pruner.context)) if any(group.kind == STREAM for group in pruner.groups.values()) else {}
    for name, group in pruner.groups.items():
        if name in free and group.size <= MOST_UNITS:
            try:
                context, _ = with_turned_streams(pruner.context, [name])
                found[name] = pruner.beside(context, name)
            except UnsupportedModel as error:
                reasons[by_direction(name)] = error.message
        elif group.kind == STREAM:
            wide = f"It is wider than {MOST_UNITS:,} units: cut it by coordinate, or turn it with cipm prune --turn-streams."
            reasons[by_direction(name)] = wide if name in free else NOT_FREE
    return found, reasons


def counted(terms: Sequence[tuple[float, Sequence[Mapping[str, float]]]], streams: Collection[str]) -> list[list[object]]:
    """Return the terms of a count in which a stream by direction stands wherever the stream does."""
    return [[size, [{**axis, **{by_direction(name): axis[name] for name in streams if name in axis}} for axis in axes]]
            for size, axes in terms]


def _with_freedoms(context: Context) -> Symmetry:
    known = context.symmetry
    return known if known.continuous else with_continuous(context.checkpoint, known, seed=context.options.seed)
