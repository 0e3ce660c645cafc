"""The command line: the engine without the web, one word per job.

Every command exits 0 on success and 2 on bad input with one clear line on standard error, and never leaves a
half-written file. Models are opened in the jail, as the server does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cipm.errors import CipmError, Conflict, InputError, NotFound, OptionError
from cipm.jail import Limits
from cipm.jail import run as run_jailed
from cipm.options import ORDERS, AnalysisOptions, parse_options
from cipm.views.facts import STRUCTURE_FILE, freedom_facts
from cipm.views.text import canonical_lines, fingerprint_lines, prune_lines, report_lines, sparsify_lines, symmetry_lines

FORMS = {
    "scale": "scale every unit by a power of two so that the norm of what comes in lies in [1, 2); restore undoes it",
    "sign": "turn the sign of every unit so that its largest incoming weight is positive; restore undoes it",
    "orthogonal": "turn residual streams to the principal axes of what writes into them (rounds: cannot be restored)",
    "invertible": "balance value-output and query-key spaces (rounds: cannot be restored)",
}
"""Normal forms that reorganize can bring a model into."""
BUDGETS = {
    "keep": "share of the units of every group to keep, more than 0 and at most 1",
    "max-loss": "how much the loss, measured on held-out probe rows, may rise",
    "params": "most parameters of the smaller model",
    "flops": "most floating-point operations of the smaller model for one row (a multiply-add is two)",
    "latency": "most run time of the smaller model on this machine, as a share of the whole one's: measured, between 0 and 1",
}
"""What prune may be told; exactly one of them."""
PIPELINE, COMMANDS, PRUNING = "cipm.pipeline:run_job", "cipm.pipeline.commands", "cipm.pipeline.budgets:prune_job"
SPARSIFYING = "cipm.pipeline.sparsifying:sparsify_job"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except CipmError as error:
        print(f"cipm: {error.line()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cipm: stopped; nothing was written.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="cipm", description="See the modules and redundancy of a trained network; take home "
                                  "a checkpoint that is provably the same function.")
    words = top.add_subparsers(required=True, metavar="COMMAND")
    _add(words, "serve", serve, "the dashboard, API and a worker in one process tree", "host", "port", "data")
    _add(words, "demo", demo, "the same, with really trained sample models analysed", "host", "port", "data")
    _add(words, "inspect", inspect, "groups, pins with reasons, equivalent parameterisations, certificate", "MODEL", "json")
    command = _add(words, "analyze", analyze, "statistics, modules, orders and what-ifs of a model on a probe set",
                   "MODEL", "PROBE", "out", "json")
    _add_options(command)
    command = _add(words, "reorganize", reorganize, "write the model with its units in another order", "MODEL", "out", "json")
    command.add_argument("--analysis", type=Path, metavar="DIR", help="folder that cipm analyze wrote")
    command.add_argument("--order", choices=[o for o in ORDERS if o != "original"],
                         help="which order (default: modules with --analysis, none with a normal form below, else canonical)")
    command.add_argument("--seed", type=int, default=0, help="seed of the random order (default 0)")
    for form, words_for in FORMS.items():
        command.add_argument(f"--{form}", choices=["canonical"], help=words_for)
    command = _add(words, "canonicalize", canonicalize, "write the model in the one form that all its permuted copies share",
                   "MODEL", "out", "json")
    command.add_argument("--reference", type=Path, metavar="REF",
                         help="put every unit where this model has the most similar one: for copies that are almost equal")
    command = _add(words, "fingerprint", fingerprint, "print a hash that all permuted copies of a model share; with several "
                   "models, exit 0: all equal, 1: not", "json")
    command.add_argument("MODEL", type=Path, nargs="+")
    command = _add(words, "prune", prune, "write a smaller model, its weights refitted to make up for what goes", "MODEL",
                   "PROBE", "out", "json")
    budget = command.add_mutually_exclusive_group(required=True)
    for name, about in BUDGETS.items():
        budget.add_argument(f"--{name}", type=float, metavar="NUMBER", help=about)
    command.add_argument("--group", action="append", default=[], metavar="NAME=UNITS", help="keep so many units of this group")
    command.add_argument("--lock", action="append", default=[], metavar="NAME", help="keep all units of this group")
    command.add_argument("--turn-streams", action="store_true", help="first turn residual streams onto their principal "
                         "directions, where the model stays the same function: their units are directions then")
    command.add_argument("--fisher", choices=["predictions", "labels"], default="predictions", help="what says how much a "
                         "change matters: what the model holds to be likely, or PROBE's classes (of rows not trained on)")
    command.add_argument("--format", choices=["pt2", "onnx", "huggingface", "state_dict"],
                         help="what to write (default: the format of MODEL)")
    command = _add(words, "sparsify", sparsify, "write the model with n of every m neighbouring weights zero, or whole blocks, "
                   "its units in the order that loses least", "MODEL", "out", "json")
    either = command.add_mutually_exclusive_group()
    either.add_argument("--pattern", type=_pattern, default=(2, 4), metavar="N:M", help="N of M weights stay (default 2:4)")
    either.add_argument("--blocks", type=int, metavar="SIZE", help="instead, whole blocks of SIZE × SIZE weights stay or go")
    command.add_argument("--share", type=float, default=0.5, help="the share of the blocks that stays (default 0.5)")
    command.add_argument("--masks", type=Path, metavar="FILE", help="also write which weights stay (bool, safetensors)")
    _add(words, "restore", restore, "undo reorganize: tensors bit-identical to the upload", "FILE", "out", "json")
    command = _add(words, "verify", verify, "are two models the same function? Exit 0: yes, 1: no", "A", "B", "json")
    command.add_argument("--probe", type=Path, help="compare on these rows instead of random inputs")
    return top


def inspect(arguments: argparse.Namespace) -> int:
    """Print the symmetry of a model."""
    with _scratch() as scratch:
        _run(PIPELINE, {"kind": "inspect", **_files(model=arguments.MODEL)}, scratch)
        facts = json.loads((scratch / "discover" / "symmetry.json").read_text())
        report = json.loads((scratch / "discover" / STRUCTURE_FILE).read_text())["symmetry"]
        checkpoint = json.loads((scratch / "open" / "checkpoint.json").read_text())
        result = _inspection(facts, checkpoint) | {name: report[name] for name in ("structure", "movable", "reasons")}
    return _print(arguments, result, lambda r: _inspection_lines(r, report))


def analyze(arguments: argparse.Namespace) -> int:
    """Write the analysis of a model on a probe set into a folder."""
    _check_new_folder(arguments.out)
    given = {name: getattr(arguments, name) for name in AnalysisOptions.model_fields if getattr(arguments, name) is not None}
    options = parse_options(given).model_dump()
    with _scratch() as scratch:
        request = {"kind": "analyze", "options": options, **_files(model=arguments.MODEL, probe=arguments.PROBE)}
        _run(PIPELINE, request, scratch)
        made = scratch / "made"
        made.mkdir()
        shutil.copy(scratch / "view" / "report.json", made)
        for what in ("orders", "classes"):
            for group in (scratch / "organize" / what).glob("*"):
                shutil.copytree(group, made / group.name / what)
        for matrix in (scratch / "organize" / "correlation").iterdir():
            shutil.copy(matrix, made / matrix.stem / "correlation.npy")
        _place(made, arguments.out)
    return _print(arguments, json.loads((arguments.out / "report.json").read_text()), report_lines)


def reorganize(arguments: argparse.Namespace) -> int:
    """Write the model with its units in another order."""
    forms = [form for form in FORMS if getattr(arguments, form)]
    order = arguments.order or ("modules" if arguments.analysis else "original" if forms else "canonical")
    with _scratch() as scratch:
        orders = _analysis_orders(arguments.analysis, order) if arguments.analysis else None
        request = {"order": order, "seed": arguments.seed, "orders": orders, "forms": forms, "filename": arguments.out.name,
                   **_files(model=arguments.MODEL)}
        readable = list((orders or {}).values())
        result = _run(f"{COMMANDS}:reorganize_job", request, scratch, readable)
        _place(scratch / result["filename"], arguments.out)
    plan = result["certificate"]["plan"]
    formed = f", with canonical {', '.join(forms)}" if forms else ""
    return _print(arguments, {**result, "filename": str(arguments.out)}, lambda r: [
        f"wrote {r['filename']} in {order} order{formed}: max |Δoutput| {plan['max_abs']:.2g}, relative {plan['max_rel']:.2g} "
        f"(float64, {plan['rows']} random rows)", *r.get("notes", ())])


def canonicalize(arguments: argparse.Namespace) -> int:
    """Write the model in canonical order, or in that of a reference."""
    with _scratch() as scratch:
        request = {"other": None, "filename": arguments.out.name, **_files(model=arguments.MODEL),
                   **_files(other=arguments.reference)}
        result = _run(f"{COMMANDS}:canonicalize_job", request, scratch)
        _place(scratch / result["filename"], arguments.out)
    return _print(arguments, {**result, "filename": str(arguments.out)}, canonical_lines)


def fingerprint(arguments: argparse.Namespace) -> int:
    """Print the fingerprints of models, and whether they are equal."""
    found, requests = [], [_files(model=path) for path in arguments.MODEL]
    for path, request in zip(arguments.MODEL, requests, strict=True):
        with _scratch() as scratch:
            found.append({"model": str(path), **_run(f"{COMMANDS}:fingerprint_job", request, scratch)})
    equal = len({entry["fingerprint"] for entry in found}) == 1
    known = equal or all(entry["certain"] for entry in found)
    result = {"schema_version": 1, "models": found, "equal": equal if known else None}
    _print(arguments, result, fingerprint_lines)
    return 0 if equal else 1


def prune(arguments: argparse.Namespace) -> int:
    """Write a smaller model."""
    name, value = next((n, v) for n in BUDGETS if (v := getattr(arguments, n.replace("-", "_"))) is not None)
    with _scratch() as scratch:
        request = {"budget": name.replace("-", "_"), "value": value, "locked": arguments.lock, "sizes": _sizes(arguments.group),
                   "form": arguments.format, "turn_streams": arguments.turn_streams, "filename": arguments.out.name,
                   "options": parse_options({"fisher": arguments.fisher}).model_dump(),
                   **_files(model=arguments.MODEL, probe=arguments.PROBE)}
        result = _run(PRUNING, request, scratch)
        _place(scratch / result["filename"], arguments.out)
    return _print(arguments, {**result, "filename": str(arguments.out)}, prune_lines)


def sparsify(arguments: argparse.Namespace) -> int:
    """Write the model with zeros for sparse hardware."""
    with _scratch() as scratch:
        request = {"pattern": arguments.pattern, "blocks": (arguments.blocks, arguments.share), "filename": arguments.out.name,
                   "masks": "masks.safetensors" if arguments.masks else None, **_files(model=arguments.MODEL)}
        result = _run(SPARSIFYING, request, scratch)
        _place(scratch / result["filename"], arguments.out)
        if arguments.masks:
            _place(scratch / request["masks"], arguments.masks)
    return _print(arguments, {**result, "filename": str(arguments.out)}, sparsify_lines)


def _pattern(text: str) -> tuple[int, int]:
    n, _, m = text.partition(":")
    if not (n.isdecimal() and m.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no pattern like 2:4")
    return int(n), int(m)


def restore(arguments: argparse.Namespace) -> int:
    """Write the original tensors of a reorganised file."""
    with _scratch() as scratch:
        request = {"filename": arguments.out.name, **_files(model=arguments.FILE)}
        result = _run(f"{COMMANDS}:restore_job", request, scratch)
        _place(scratch / result["filename"], arguments.out)
    return _print(arguments, {"filename": str(arguments.out)}, lambda r: [f"wrote {r['filename']}: the tensors of the upload"])


def verify(arguments: argparse.Namespace) -> int:
    """Tell whether two models are the same function."""
    with _scratch() as scratch:
        request = {"probe": None, **_files(model=arguments.A, other=arguments.B), **_files(probe=arguments.probe)}
        result = _run(f"{COMMANDS}:verify_job", request, scratch)
    _print(arguments, result, lambda r: [
        f"{'the same function' if r['same'] else 'NOT the same function'}: max |Δoutput| {r['max_abs']:.3g}, relative "
        f"{r['max_rel']:.3g} on {r['rows']} {r['inputs']} rows in {r['dtype']} (tolerance {r['tolerance']:g})"])
    return 0 if result["same"] else 1


def serve(arguments: argparse.Namespace) -> int:
    """Become the server process."""
    for name in ("host", "port", "data"):
        if getattr(arguments, name) is not None:
            os.environ[f"CIPM_{name.upper()}"] = str(getattr(arguments, name))
    return _become("frontend.serve")


def demo(arguments: argparse.Namespace) -> int:
    """Become the server process with the samples prepared."""
    os.environ["CIPM_DEMO"] = "on"
    return serve(arguments)


def _become(module: str) -> int:
    os.execv(sys.executable, [sys.executable, "-m", module])


# --- the jail and files ------------------------------------------------------------------------------------------------


def _run(entry: str, request: dict[str, Any], scratch: Path, readable: Sequence[str] = ()) -> dict[str, Any]:
    files = [Path(request[name]) for name in ("model", "other", "probe") if request.get(name)]
    return run_jailed(entry, request, readable=[*files, *map(Path, readable)], scratch=scratch, limits=Limits(),
                      on_event=_show_progress())


def _files(**paths: Path | None) -> dict[str, str]:
    for path in paths.values():
        if path is not None and not path.exists():
            raise NotFound(f"There is no file or folder {str(path)!r}.")
    return {name: str(path.resolve()) for name, path in paths.items() if path is not None}


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cipm-") as folder:
        yield Path(folder)


def _place(made: Path, out: Path) -> None:
    """Move a finished file or folder to its place at once, through a neighbour on the same disk."""
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        shutil.move(made, beside)
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True) if beside.is_dir() else beside.unlink(missing_ok=True)


def _check_new_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Conflict(f"{str(out)!r} exists already and is not an empty folder.", fix="Choose another --out.")


def _sizes(given: Sequence[str]) -> dict[str, int]:
    """Return the units by group of NAME=UNITS."""
    sizes = {}
    for one in given:
        name, _, units = one.rpartition("=")
        if not name or not units.isdecimal():
            raise OptionError(f"--group takes NAME=UNITS, such as fc1=64; it cannot be {one!r}.", where="--group")
        sizes[name] = int(units)
    return sizes


def _analysis_orders(folder: Path, order: str) -> dict[str, str]:
    found = {path.parent.parent.name: str(path.resolve()) for path in folder.glob(f"*/orders/{order}.npy")}
    if not found:
        raise InputError(f"{str(folder)!r} holds no {order} orders.", where="--analysis",
                         fix="Give the folder that cipm analyze wrote.")
    return found


def _show_progress() -> Callable[[dict[str, Any]], None]:
    shown = sys.stderr.isatty()

    def show(event: dict[str, Any]) -> None:
        if shown and event["event"] == "progress":
            print(f"\r{event['stage']}: {event['done']:,} of {event['total']:,} {event['unit']}\033[K", end="", file=sys.stderr)
        elif shown and event.get("state") == "started":
            print(f"\r{event['stage']}…\033[K", end="", file=sys.stderr)
        elif shown and event.get("stage") == "view" and event.get("state") == "done":
            print("\r\033[K", end="", file=sys.stderr)

    return show


# --- what is printed ---------------------------------------------------------------------------------------------------


def _print(arguments: argparse.Namespace, result: dict[str, Any], lines: Callable[[dict[str, Any]], list[str]]) -> int:
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(lines(result)))
    return 0


def _inspection(facts: dict[str, Any], checkpoint: dict[str, Any]) -> dict[str, Any]:
    groups = [{**{name: g[name] for name in ("name", "kind", "size", "blocks", "parent", "proved")},
               "places": [{"tensor": p["tensor"], "axis": p["axis"]} for p in g["places"]]} for g in facts["groups"]]
    return {"schema_version": 1,
            "model": {name: checkpoint[name] for name in ("format", "sha256", "parameters")},
            "groups": groups, "continuous": [freedom_facts(freedom) for freedom in facts["continuous"]],
            **{name: facts[name] for name in ("pins", "log10_equivalents", "movable_share", "certificate",
                                                                "notes")}}


def _inspection_lines(result: dict[str, Any], report: dict[str, Any]) -> list[str]:
    model, proof = result["model"], result["certificate"]
    head = [f"{model['format']} model, {model['parameters']:,} parameters; 10^{result['log10_equivalents']:.0f} equivalent "
            f"parameterisations; {result['movable_share']:.0%} of the parameters can move",
            f"{'proved' if proved(proof) else 'NOT proved'} in {proof['dtype']}: relative difference {proof['max_rel']:.2g} "
            f"(tolerance {proof['tolerance']:g}), negative control {proof['negative_control']:.2g}", ""]
    return [*head, *symmetry_lines(report), "", *_freedom_lines(result["continuous"]), *result["notes"]]


def _freedom_lines(freedoms: list[dict[str, Any]]) -> list[str]:
    """Return a line for each symmetry beside permutations, and an empty one."""
    lines = []
    for f in freedoms:
        proof = f["certificate"]
        state = f"proved, {proof['max_rel']:.2g}" if proved(proof) else "NOT proved"
        blocks = f" in {f['blocks']} blocks" if f["blocks"] > 1 else ""
        lines.append(f"{f['kind']}: {f['name']}, {f['units']} units{blocks}, dimension {f['dimension']:,} ({state})"
                     + "".join(f"; {condition}" for condition in f["conditions"]))
    return [*lines, ""] if lines else []


def proved(certificate: dict[str, Any] | None) -> bool:
    """Tell whether a certificate exists and passed."""
    return bool(certificate and certificate["passed"])


def _add(words: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, *parts: str) -> argparse.ArgumentParser:
    command = words.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    command.set_defaults(run=run)
    for part in parts:
        if part.isupper():
            command.add_argument(part, type=Path)
        elif part == "json":
            command.add_argument("--json", action="store_true", help="machine-readable output")
        elif part == "out":
            command.add_argument("--out", type=Path, required=True, help="where to write")
        else:
            command.add_argument(f"--{part}", type=int if part == "port" else str, help=_SERVER_HELP[part])
    return command


_SERVER_HELP = {"host": "address to listen on (default 127.0.0.1)", "port": "port (default 8000)",
                "data": "folder for the database and files (default ~/.local/share/cipm)"}


def _add_options(command: argparse.ArgumentParser) -> None:
    """Give a command one flag for each analysis option."""
    for name, spec in AnalysisOptions.model_fields.items():
        kind = type(spec.default)
        command.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, default=None,
                             help=f"{spec.description} (default {spec.default})".replace("%", "%%"))


if __name__ == "__main__":
    sys.exit(main())
