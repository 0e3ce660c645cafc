"""Every family of the zoo through its formats and back, with Torch-Pruning beside it on the same models in the same run.

    python bench/coverage.py                                   the plain torch families, a few minutes
    python bench/coverage.py --families all --write            all of them, and docs/coverage.md; hours on two cores
    python bench/coverage.py --families gpt2,encoder --formats huggingface,torch-pruning --limit-seconds 60

A round trip is: save, load, discover, prove, reorganize by random members of all groups at once, run the written file in the
format's own runtime (torch.export.load, onnxruntime, transformers) beside the file it came from, read it again, undo the plan
that it carries, compare every bit.
`.pt2` files hold float64 and transformers loads its files as float64; the type shown is float32 where a model computes some
of it in that all the same, as many norms do, and for onnxruntime. A difference is relative to the largest output; beyond
1e-10 (float32: 1e-4, or four times what rounding had taken before from the same outputs, beside float64, if that is more, and
1e-3 at most) the trip counts as wrong. Seconds are the processor's, in one thread: torch.export.export of the model as
it is (the yardstick) and discovery without proof, each the better of two runs, and one proof. What Torch-Pruning's verdicts
mean stands in `bench/peers/removal.py`.

Every trip runs in a child process with a memory limit, which is killed at the time limit and started anew for the rest.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FORMATS = ("pt2", "onnx", "huggingface")
PEER = "torch-pruning"
MEMORY_BYTES = 10 << 30
TASKS_PER_CHILD = 25
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
MADE = "Made by `python bench/coverage.py --families all --write`, whose text says how it was measured."
COLUMNS = """Groups, the power of ten of equivalent parameterisations, the share of parameters in tensors that move, pinned axes
and processor seconds are those of the family's first format that has them all. The cell of a format is the largest relative
difference after reordering."""


@dataclass(frozen=True)
class Row:
    """What became of one family in one format: `status` is ok, wrong, error, skipped, timeout, or a verdict on the peer."""

    family: str
    format: str
    status: str
    detail: str = ""
    groups: int = 0
    log10: float = 0.0
    movable: float = 0.0
    pins: int = 0
    difference: float = 0.0
    dtype: str = ""
    export: float = 0.0
    discovery: float = 0.0
    proof: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", default="plain", help="plain, transformers, all, or names with commas between")
    parser.add_argument("--formats", default=",".join((*FORMATS, PEER)), help="with commas between")
    parser.add_argument("--limit-seconds", type=float, default=120, help="for one trip")
    parser.add_argument("--total-seconds", type=float, default=float("inf"), help="start no trip after so long")
    parser.add_argument("--write", action="store_true", help="write docs/coverage.md")
    parser.add_argument("--rows", type=Path, help="a file that keeps every row; what it holds already is not run again")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work:
        return work()
    end = time.monotonic() + chosen.total_seconds
    rows = run(tasks(chosen.families, chosen.formats.split(",")), chosen.limit_seconds, chosen.rows, end)
    print("\n" + "\n".join(totals(rows)))
    if chosen.write:
        DOCUMENT.write_text(document(rows))
    return int(any(row.status == "wrong" and row.format != PEER for row in rows))


def tasks(families: str, formats: Sequence[str]) -> list[tuple[str, str]]:
    """Return (family, format) of every trip asked for, by family."""
    zoo = importlib.import_module("peers.zoo")
    names = zoo.names(families)
    return [(name, kind) for name in names for kind in formats if kind == PEER or kind in zoo.formats(name)]


def run(wanted: Sequence[tuple[str, str]], limit: float, kept: Path | None, end: float) -> list[Row]:
    """Return the row of every task that was done by the end, printing each as it comes."""
    rows = {(row.family, row.format): row for row in _read(kept)}
    waiting = [task for task in wanted if task not in rows]
    while waiting and time.monotonic() < end:
        for row in _child(waiting[:TASKS_PER_CHILD], limit, end):
            rows[row.family, row.format] = row
            waiting.remove((row.family, row.format))
            print(line(row), flush=True)
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
    return [rows[task] for task in wanted if task in rows]


def _read(kept: Path | None) -> list[Row]:
    return [Row(**json.loads(text)) for text in kept.read_text().splitlines()] if kept and kept.exists() else []


def _child(batch: Sequence[tuple[str, str]], limit: float, end: float) -> Iterator[Row]:
    """Yield the rows of one child process until its tasks or the time are over, or it dies or is killed (a row of its own)."""
    child = subprocess.Popen([sys.executable, __file__, "--work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        _answer(child, 120)  # its imports
        for family, kind in batch:
            if time.monotonic() > end:
                return
            child.stdin.write(json.dumps([family, kind]).encode() + b"\n")
            child.stdin.flush()
            answer = _answer(child, limit)
            if isinstance(answer, str):
                yield Row(family, kind, answer, "the process ended" if answer == "error" else f"over {limit:.0f} s")
                return
            yield Row(**answer)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(child: subprocess.Popen, limit: float) -> dict | str:
    """Return the next line that a child prints, or "timeout", or "error" where it has ended."""
    if not select.select([child.stdout], [], [], limit)[0]:
        return "timeout"
    text = child.stdout.readline()
    return json.loads(text) if text else "error"


def work() -> int:
    """The child: read a task per line, answer with its row. Only rows go to standard output."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    trips = importlib.import_module("peers.trips")
    removal = importlib.import_module("peers.removal") if importlib.util.find_spec("torch_pruning") else None
    print("{}", file=answers, flush=True)
    for text in sys.stdin:
        family, kind = json.loads(text)
        print(json.dumps(asdict(_row(trips, removal, family, kind))), file=answers, flush=True)
    return 0


def _row(trips, removal, family: str, kind: str) -> Row:
    if kind == PEER and removal is None:
        return Row(family, kind, "skipped", "torch-pruning is not installed")
    try:
        if kind == PEER:
            _, seconds, (status, detail) = trips.timed(lambda: trips.peer(removal, family))
            return Row(family, kind, status, detail[:300], proof=seconds)
        return Row(family, kind, **trips.round_trip(family, kind))
    except trips.Skipped as error:
        return Row(family, kind, "skipped", str(error)[:300])
    except Exception as error:  # noqa: BLE001 - a family that fails is a row of the table
        return Row(family, kind, "error", f"{type(error).__name__}: {error}"[:300])


def line(row: Row) -> str:
    """Return a row as a line of the terminal."""
    if row.status not in ("ok", "wrong") or row.format == PEER:
        return f"{row.family:34} {row.format:13} {row.status:9} {row.detail[:90]}"
    return (f"{row.family:34} {row.format:13} {row.status:9} {row.groups:4} groups  10^{row.log10:<8.1f} "
            f"{row.movable:4.0%} movable  {row.pins:4} pins  {row.difference:.0e} {row.dtype}  "
            f"export {row.export:.2f} s, discovery {row.discovery:.2f}, proof {row.proof:.2f}")


def totals(rows: Sequence[Row]) -> list[str]:
    """Return what the rows come to."""
    found = []
    for kind in (*FORMATS, PEER):
        of_kind = [row.status for row in rows if row.format == kind]
        counts = ", ".join(f"{of_kind.count(status)} {status}" for status in sorted(set(of_kind)))
        if of_kind:
            found.append(f"{kind}: {len(of_kind)} families: {counts}")
    trips = [row for row in rows if row.format != PEER and row.status == "ok"]
    empty = sorted({row.family for row in trips if not row.groups})
    ratios = [row.discovery / row.export for row in trips if row.export]
    found.append(f"families without a group: {', '.join(empty) or 'none'}")
    if ratios:
        found.append(f"discovery without proof / torch.export.export: median {statistics.median(ratios):.2f}, "
                     f"largest {max(ratios):.2f}, over 1 in {sum(r > 1 for r in ratios)} of {len(ratios)}")
        for dtype in sorted({row.dtype for row in trips}):
            worst = max(row.difference for row in trips if row.dtype == dtype)
            found.append(f"largest difference in {dtype}: {worst:.0e}")
    return found


def document(rows: Sequence[Row]) -> str:
    """Return docs/coverage.md."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "onnxruntime", PEER)]
    where = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} shared cores, {', '.join(versions)}."
    head = ["# Coverage", "", f"{MADE} {where}", "", *(f"- {total}" for total in totals(rows)), "", COLUMNS, "",
            "| family | groups | 10^ | movable | pins | pt2 | onnx | huggingface | export s | discovery s | proof s | "
            "Torch-Pruning |", "|" + "---|" * 12]
    families: dict[str, dict[str, Row]] = {}
    for row in rows:
        families.setdefault(row.family, {})[row.format] = row
    return "\n".join(head + [_table_row(name, kinds) for name, kinds in families.items()] + [""] + _reasons(rows)) + "\n"


def _table_row(family: str, kinds: dict[str, Row]) -> str:
    trips = [kinds[kind] for kind in FORMATS if kind in kinds and kinds[kind].status in ("ok", "wrong")]
    cells = [_cell(kinds.get(kind)) for kind in FORMATS]
    peer = kinds[PEER].status if PEER in kinds else ""
    if not trips:
        return f"| {family} | | | | | {' | '.join(cells)} | | | | {peer} |"
    r = next((trip for trip in trips if trip.export), trips[0])
    return (f"| {family} | {r.groups} | {r.log10:.1f} | {r.movable:.0%} | {r.pins} | {' | '.join(cells)} | {r.export:.1f} | "
            f"{r.discovery:.2f} | {r.proof:.2f} | {peer} |")


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.difference:.0e}" if row.status == "ok" else row.status


def _reasons(rows: Sequence[Row]) -> list[str]:
    """Return why each trip of our own that is not ok is not."""
    lost = [row for row in rows if row.format != PEER and row.status != "ok"]
    said = [(row, " ".join(re.sub(r"\x1b?\[\d+m", "", row.detail).split())) for row in lost]  # torch colours its messages
    return ["## What did not go through", ""] + [f"- {row.family}, {row.format}: {row.status}: {detail}"
                                                for row, detail in said] if lost else []


if __name__ == "__main__":
    sys.exit(main())
