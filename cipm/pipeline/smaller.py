"""A smaller checkpoint as a file, with what it saves, what it loses, and how fast it is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cipm.allocation import SESSION_FILE, Session, Sizes, read_session
from cipm.export import export_pruned
from cipm.load import Checkpoint
from cipm.pipeline.context import Context
from cipm.pipeline.latency import ROWS, in_onnx, latency
from cipm.pipeline.reference import LOSSES
from cipm.pipeline.refitting import Pruned, Refitter
from cipm.pipeline.runtimes import in_runtime
from cipm.pipeline.streams import turned_for
from cipm.pruning import shrink
from cipm.pruning.shrink import left_out
from cipm.pruning.work import work
from cipm.symmetry import TOLERANCE

NOT_RUN = "onnxruntime is not installed here, so the file was not run in it; it was compared with the masked model alone."


def prune(context: Context, folder: Path) -> None:
    """Stage `prune`: write the model with so many units of each group (the request's `keep`) in its `form`."""
    known = read_session(context.folders["whatif"] / SESSION_FILE)
    session = Session.from_json(known)
    sizes = session.checked(context.request["keep"])
    form = context.request["form"]
    context, units, said = turned_for(context, session, sizes)
    refitter = Refitter(context, rows=known["rows"])
    made = refitter.made(units)
    facts = write_smaller(refitter, made, sizes, folder / _file_name(context.checkpoint, form), form=form,
                          predicted=session.losses(sizes), notes=[*said, *known["notes"]])
    out = folder / facts.pop("filename")
    size = sum(f.stat().st_size for f in out.rglob("*")) if out.is_dir() else out.stat().st_size
    record = {"filename": out.name, "size": size, "certificate": facts.pop("certificate"), "facts": facts}
    (folder / "prune.json").write_text(json.dumps(record, allow_nan=False))


def write_smaller(refitter: Refitter, made: Pruned, sizes: Sizes, out: Path, *, form: str | None,
                  predicted: Mapping[str, float], notes: Sequence[str] = (), locked: Collection[str] = ()) -> dict[str, Any]:
    """Write a refitted network without the units that go; return what `cipm prune --json` says, and its certificate."""
    context, baseline = refitter.context, refitter.reference.baseline
    whole = context.checkpoint
    shrunk = shrink(made.checkpoint, context.symmetry, made.keep, locked=locked, seed=context.options.seed)
    before, after = (_flops(one, refitter) for one in (whole, shrunk.checkpoint))
    facts = {"parameters": {"before": whole.parameters, "after": shrunk.checkpoint.parameters},
             "flops": {"before": before, "after": after},
             "baseline": {name: baseline[name] for name in ("loss_kind", "loss", "accuracy", "perplexity")},
             "predicted": {"kl": None, **predicted}, "measured": {name: made.measured[name] for name in LOSSES},
             "rows": refitter.reference.rows, "keep": dict(sizes),
             "notes": list(dict.fromkeys([*made.notes, *shrunk.notes, *notes]))}
    certificate = {"masked": {"dtype": "float64", "max_abs": shrunk.max_abs, "max_rel": shrunk.max_rel, "rows": shrunk.rows,
                              "tolerance": TOLERANCE, "passed": shrunk.max_rel <= TOLERANCE}}
    written = export_pruned(shrunk, context.request["model"], out, form=form, details=facts)
    few = {name: tensor[:ROWS] for name, tensor in refitter.rows[0].items()}
    masked = left_out(made.checkpoint.graph, refitter.kept(made.keep))
    checked = in_runtime(written, form or whole.format, shrunk.checkpoint, made.checkpoint, masked, few)
    certificate["runtime"] = checked
    facts["notes"] += [] if checked else [NOT_RUN]
    files = (Path(context.request["model"]), written) if in_onnx(whole, form) else None
    times = latency(whole, shrunk.checkpoint, files, few, before)
    return {"filename": written.name, **facts, "latency": times, "certificate": certificate}


def _flops(checkpoint: Checkpoint, refitter: Refitter) -> int:
    weights, fixed = work(checkpoint, refitter.few_rows)
    return round(sum(weights.values()) + fixed)


def _file_name(checkpoint: Checkpoint, form: str) -> str:
    """Return a name of the contents alone: others may have the same model by another name."""
    if form == checkpoint.format and form != "pt2" and checkpoint.origin.get("packed", True):
        return "model-pruned.zip"
    return "model-pruned" + (checkpoint.origin.get("suffix", f".{form}") if form == checkpoint.format else f".{form}")
