"""Residual streams turned onto their principal directions before a model is made smaller."""

from __future__ import annotations

from dataclasses import replace

from cipm.errors import OptionError
from cipm.pipeline.context import Context
from cipm.pipeline.discovery import proved_groups
from cipm.pipeline.refitting import Refitter
from cipm.pruning.principal import turn, turnable
from cipm.symmetry import with_continuous


def with_turned_streams(context: Context) -> tuple[Context, list[str]]:
    """Return a context of the same function whose residual streams stand on their principal directions, and what was done, in
    words. Raises OptionError where the model has no stream that may be turned.

    Cost: discovery with its proof once for every stream, and `turn`.
    """
    said: list[str] = []
    done: set[str] = set()
    rows = Refitter(context).rows
    while True:
        symmetry = with_continuous(context.checkpoint, context.symmetry, seed=context.options.seed)
        name = next((name for name in turnable(symmetry) if name not in done), None)
        if name is None:
            break
        made = turn(context.checkpoint, symmetry, name, rows)
        context = replace(context, kept={"checkpoint": made.checkpoint, "probe": context.probe})
        context.kept["symmetry"] = proved_groups(context)
        done.add(name)
        said += [f"{name} stands on the principal directions of what its readers see: its units are directions. The outputs "
                 f"changed by {made.max_rel:.1e} of the largest.", *made.notes]
    if not done:
        raise OptionError("No residual stream of this model may be turned: that takes norms alone between what writes into it "
                          "and what reads it, and a head of its own.", where="turn-streams",
                          fix="Leave it out: single units of the stream can still go.")
    return context, said
