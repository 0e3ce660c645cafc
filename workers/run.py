"""One claimed job, from its row to its end: files in, the engine in its jail, artefacts and result out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from backend.store import Analysis, Job, Store, artefacts, jobs, shards, uploads
from backend.store.jobs import Lease, LeaseLost
from backend.store.shards import DIVIDED_STAGE
from cipm.errors import Cancelled, CipmError, JailError
from cipm.jail import Limits
from cipm.jail import run as run_jailed
from workers.keeper import Keeper
from workers.progress import Progress

log = logging.getLogger(__name__)
STATES = ("started", "done", "cached")
End = Callable[[Store, Lease], object]
"""How a job's row is written when its work is over."""


@dataclass(frozen=True)
class Engine:
    """What runs in the jail: its entry, and the pure function that knows every stage's address beforehand.

    `addresses(kind, model_sha256, probe_sha256, options, request)` returns {stage: address} in the order they run.
    `also` names trusted entries outside `cipm`, as `cipm.jail.run` has it. `shards(kind, model_sha256, probe_sha256,
    options)` returns the address of what each shard gives, as many as the options ask for; none where a job of this kind
    is not divided.
    """

    entry: str
    addresses: Callable[..., dict[str, str]]
    also: Mapping[str, Path] = field(default_factory=dict)
    shards: Callable[..., list[str]] = lambda *facts: []


@dataclass(frozen=True)
class Bench:
    """Where a worker works: the store, the engine, its own folder, its limits, and whether it is to stop."""

    store: Store
    engine: Engine
    folder: Path
    limits: Limits
    gpu: bool
    stopping: Callable[[], bool]


def run_claimed(bench: Bench, lease: Lease) -> None:
    """Run the job of this lease and write how it ended; its scratch folder never stays."""
    scratch = bench.folder / lease.owner.rpartition(":")[2]
    scratch.mkdir(mode=0o700)
    log.info("Job %s, attempt %d.", lease.job_id, lease.attempt)
    try:
        with Keeper(bench.store, lease) as keeper:
            _end(bench, lease, keeper, lambda: _work_and_clear(bench, lease, keeper, scratch))
    except LeaseLost:
        log.warning("Job %s went to another worker.", lease.job_id)
    except SQLAlchemyError:
        log.exception("The end of job %s could not be written; its lease will run out.", lease.job_id)


def _work_and_clear(bench: Bench, lease: Lease, keeper: Keeper, scratch: Path) -> End:
    """Do the work; before its end is written nothing of it is left here."""
    try:
        return _work(bench, lease, keeper, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _end(bench: Bench, lease: Lease, keeper: Keeper, work: Callable[[], End]) -> None:
    """Do the work and write its end to the row."""
    try:
        work()(bench.store, lease)
    except Cancelled:
        if keeper.lost:
            raise LeaseLost(lease.job_id) from None
        (jobs.cancelled if keeper.cancelled else jobs.release)(bench.store, lease)
    except CipmError as error:
        jobs.fail(bench.store, lease, error)
    except (LeaseLost, SQLAlchemyError):
        raise
    except Exception:  # our bug: the person is told so, the log has the rest, and the worker lives on
        log.exception("Job %s failed by a bug of ours.", lease.job_id)
        jobs.fail(bench.store, lease, CipmError("The job failed by a mistake of this program, not of your files.",
                                                fix="Please report it; the server's log has the details."))


def _work(bench: Bench, lease: Lease, keeper: Keeper, scratch: Path) -> End:
    """Run the engine on the job's files; return how the job ends, or that it is divided into shards."""
    with bench.store.read() as session:
        job = session.get_one(Job, lease.job_id)
        analysis = session.get_one(Analysis, job.analysis_id)
    facts = (job.kind, analysis.model_sha256, analysis.probe_sha256, analysis.options)
    addresses = bench.engine.addresses(*facts, job.request)
    artefacts.use(bench.store, job.id, addresses)
    run = _Run(bench, lease, keeper, scratch, job, analysis, addresses)
    wanted = bench.engine.shards(*facts)
    if not wanted or DIVIDED_STAGE in run.done():
        return partial(jobs.finish, result=run.engine()) if job.parent_id is None else _shard_done(run, job)
    return _divided(bench, run, job, wanted)


def _shard_done(run: _Run, job: Job) -> End:
    result = run.engine()

    def end(store: Store, lease: Lease) -> None:
        jobs.finish(store, lease, result)
        shards.tell_parent(store, job.parent_id)

    return end


def _divided(bench: Bench, run: _Run, job: Job, wanted: list[str]) -> End:
    """Hand the shards that are not there yet to all workers; with all there, or when they were tried, finish the job."""
    tried = shards.of(bench.store, job.id)
    failed = next((shard for shard in tried if shard.status == "failed"), None)
    if failed is not None:
        return partial(jobs.fail_with_shard, shard=failed)
    total = tried[0].request["of"] if tried else int(run.engine({"kind": "prepare"})["shards"])
    named = {f"shard {number}": address for number, address in enumerate(wanted[:total])}
    artefacts.use(bench.store, job.id, named)
    standing = _finished(bench.store, named, run.scratch)
    missing = [number for number, name in enumerate(named) if name not in standing]
    if total > 1 and missing and not tried:
        return lambda store, lease: store.wake_all(jobs.divide(store, lease, missing, total))
    there = {name.removeprefix("shard "): folder for name, folder in standing.items()}
    return partial(jobs.finish, result=run.engine({"shards": there}))


@dataclass
class _Run:
    """One job's files: the engine may be called twice."""

    bench: Bench
    lease: Lease
    keeper: Keeper
    scratch: Path
    job: Job
    analysis: Analysis
    addresses: Mapping[str, str]
    folders: dict[str, str] = field(default_factory=dict)

    def done(self) -> dict[str, str]:
        """Return the folders of the stages that stand by now."""
        others = {stage: address for stage, address in self.addresses.items() if stage not in self.folders}
        self.folders |= _finished(self.bench.store, others, self.scratch)
        return dict(self.folders)

    def engine(self, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Run the engine in its jail on what the job asks, and on this beside it; return its result."""
        bench, done, asked = self.bench, self.done(), dict(asked or {})
        request = _request(bench, self.job, self.analysis, self.scratch, done) | {"addresses": self.addresses} | asked
        folder = self.scratch / f"work-{request['kind']}"
        reached = self.job.progress if "shards" in asked else 0.0
        events = _events(bench.store, self.lease, self.addresses, set(done), folder, self.job.parent_id, reached)
        files = [Path(request[name]) for name in ("model", "probe") if request[name]]
        return run_jailed(
            bench.engine.entry, request, readable=[*files, *map(Path, (*done.values(), *asked.get("shards", {}).values()))],
            scratch=folder, limits=bench.limits, on_event=events, cuda=bench.gpu, also=bench.engine.also,
            should_stop=lambda: self.keeper.cancelled or self.keeper.lost or bench.stopping())


def _finished(store: Store, addresses: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Return the folders of the stages whose artefacts stand, so that they are not run again."""
    standing = artefacts.find(store, addresses.values())
    return {stage: str(artefacts.folder(store, standing[address], scratch / "done" / stage))
            for stage, address in addresses.items() if address in standing}


def _request(bench: Bench, job: Job, analysis: Analysis, scratch: Path, done: dict[str, str]) -> dict[str, Any]:
    """Return what the engine is asked: the job's own request, and the files by path."""
    objects = bench.store.objects
    model = objects.fetch_file(uploads.content_key(analysis.model_sha256), scratch / "model")
    probe = (objects.fetch_file(uploads.content_key(analysis.probe_sha256), scratch / "probe")
             if analysis.probe_sha256 else None)
    return job.request | {
        "kind": job.kind, "model": str(model), "probe": str(probe) if probe else None, "options": analysis.options,
        "model_sha256": analysis.model_sha256, "probe_sha256": analysis.probe_sha256, "done": done}


def _events(store: Store, lease: Lease, addresses: Mapping[str, str], done: set[str], scratch: Path,
            parent_id: str | None, reached: float) -> Callable[[dict[str, Any]], None]:
    """Return the listener that keeps every finished stage at once and writes progress, never less than what shards reached.

    What it hears comes from a process that may be hostile: a stage is one of ours, and its folder lies in the scratch.
    """
    with store.read() as session:
        typical = artefacts.typical_seconds(session, addresses)
    stages = [{"name": name, "state": "cached" if name in done else "waiting", "seconds": None, "address": address}
              for name, address in addresses.items()]

    def write(values: dict[str, Any]) -> None:
        jobs.report(store, lease, **values | {"progress": max(reached, values["progress"])})
        if parent_id is not None:
            shards.tell_parent(store, parent_id)

    progress = Progress(stages, typical, write)

    def listen(event: dict[str, Any]) -> None:
        name, state = event.get("stage"), event.get("state")
        if name not in addresses:
            raise JailError("The job spoke of a stage that is not its own and was stopped.")
        if event.get("event") == "progress":
            progress.moved(_number(event.get("done")), _number(event.get("total")))
        elif event.get("event") != "stage" or state not in STATES:
            raise JailError("The job sent an event that is not one of ours and was stopped.")
        elif state == "started":
            progress.started(name)
        elif state == "cached":
            progress.ended(name, "cached")
        else:
            folder = _own_folder(scratch, event.get("folder"))
            seconds = progress.elapsed()
            artefacts.record(store, addresses[name], name, folder, seconds)
            progress.ended(name, "done", seconds)

    return listen


def _own_folder(scratch: Path, named: Any) -> Path:
    """Return the folder a stage names. Only one straight below the scratch, where nothing can lead elsewhere."""
    folder = scratch / str(named)
    if folder.parent != scratch or folder.name in ("", ".", "..") or not folder.is_dir():
        raise JailError("The job named a folder that is not its own and was stopped.")
    return folder


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
