"""The what-if session of a real model: what it says agrees with what is measured, and with the smaller file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cipm.allocation import SESSION_FILE, Session, read_session
from cipm.errors import OptionError
from cipm.load import load
from cipm.options import parse_options
from cipm.pipeline import RUN
from cipm.pipeline.context import Context
from cipm.trace import run


@dataclass
class Stages:
    """The folders of finished stages, and how to run another one."""

    request: dict
    folders: dict[str, Path]
    scratch: Path

    def run(self, stage: str, **asked: object) -> dict:
        """Run a stage in a fresh context, as a new job does; return its JSON."""
        folder = self.scratch / f"{stage}-{len(list(self.scratch.iterdir()))}"
        folder.mkdir()
        RUN[stage](Context({**self.request, **asked}, parse_options({}), self.folders, lambda event: None), folder)
        self.folders.setdefault(stage, folder)
        if stage == "whatif":
            return read_session(folder / SESSION_FILE)
        path = folder / f"{stage}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def file(self, name: str) -> Path:
        """Return the newest file of this name."""
        return max(self.scratch.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime_ns)


def begun(model: Path, probe: Path, scratch: Path) -> Stages:
    stages = Stages({"model": str(model), "probe": str(probe)}, {}, scratch)
    for stage in ("open", "discover", "probe"):
        stages.run(stage)
    return stages


@pytest.fixture(scope="module")
def known(samples, tmp_path_factory) -> Iterator[tuple[Stages, dict]]:
    stages = begun(samples.file("digits_mlp.pt2"), samples.probe("digits_mlp.pt2"), tmp_path_factory.mktemp("stages"))
    yield stages, stages.run("whatif")


def test_predictions_of_networks_that_were_held_back_can_be_believed(known):
    _, session = known
    band = session["band"]["kl"]
    assert band["points"] >= 5 and 1 <= band["median"] <= 1.25 and band["median"] <= band["p90"] <= 1.5
    assert session["kinds"] == ["kl", "loss"] and session["baseline"]["accuracy"] > 0.95
    for line in session["whole"]["kl"].values():
        rises = [one for _, one in line]
        assert len(rises) >= 3 and rises == sorted(rises) and rises[0] > 0
    counts, totals = np.array(session["frontier"]).T
    assert (np.diff(counts) > 0).all() and totals[-1] == 0 and (np.diff(totals) <= 0).all()


def test_a_measurement_agrees_with_the_session(known):
    stages, session = known
    point = next(point for point in session["points"] if 0.002 < point["measured"]["kl"] < 0.1)
    made = stages.run("measure", keep=point["keep"])
    for name in ("loss", "kl", "accuracy", "agreement"):
        assert made[name] == pytest.approx(point["measured"][name], rel=1e-4, abs=1e-6)
    assert made["predicted"] == pytest.approx(Session.from_json(session).losses(point["keep"]))
    assert made["predicted"]["kl"] == pytest.approx(made["kl"], rel=0.6) and made["rows"] == session["rows"]
    whole = stages.run("measure", keep={name: group.size for name, group in Session.from_json(session).groups.items()})
    assert whole["keep"] == {} and whole["kl"] == 0 and whole["loss"] == session["baseline"]["loss"]


def test_the_smaller_file_has_the_size_and_the_loss_that_were_told(known):
    stages, session = known
    told = Session.from_json(session)
    keep = {group["name"]: group["size"] // 3 for group in session["groups"]}
    made = stages.run("prune", keep=keep, form="pt2")
    small = load(stages.file(made["filename"]))
    facts = made["facts"]
    assert small.parameters == facts["parameters"]["after"] == round(told.counts["parameters"](keep))
    assert facts["flops"]["after"] == round(told.counts["flops"](keep))
    assert sum(t.numel() * t.element_size() for t in small.tensors.values()) == round(told.counts["bytes"](keep))
    assert made["certificate"]["masked"]["passed"] and facts["predicted"] == pytest.approx(told.losses(keep))
    assert facts["latency"]["runtime"] == "torch" and facts["latency"]["after_ms"] > 0 and facts["latency"]["rows"] == 64
    probe = np.load(stages.request["probe"])
    odd = np.arange(1, len(probe["x"]), 2)
    rows = odd[np.arange(session["rows"]) * odd.size // session["rows"]]
    logits, = run(small.graph, small.tensors, small.constants, {"x": torch.from_numpy(probe["x"][rows])})
    right = float((logits.argmax(-1) == torch.from_numpy(probe["y"][rows])).float().mean())
    assert right == pytest.approx(facts["measured"]["accuracy"], abs=5e-3)


def test_a_budget_of_run_time_gives_sizes_along_the_front_with_what_was_timed(known, monkeypatch):
    stages, session = known
    told, asked = Session.from_json(session), []

    def timed(before, after, files, inputs, flops):
        asked.append(after.parameters)
        return {"times": before.parameters / after.parameters, "rows": len(inputs["x"]), "runs": 5, "threads": 1,
                "runtime": "torch"}

    monkeypatch.setattr("cipm.pipeline.timing.latency", timed)
    locked, free = list(told.groups)[0], list(told.groups)[1:]
    made = stages.run("latency", share=0.8, locked=[locked], sizes={}, turned=[])
    assert 0.7 < made["share"] <= 0.8 and made["share"] == pytest.approx(1 / made["latency"]["times"]) and len(asked) <= 6
    assert set(made["keep"]) == set(free) and made["latency"]["rows"] == 64
    assert made["keep"] in [{name: units for name, units in choice.keep.items() if name in free}
                            for choice in told.front("flops", [locked])]
    assert made["predicted"] == pytest.approx(told.held([locked]).losses(made["keep"]))
    with pytest.raises(OptionError, match="cannot be met"):
        stages.run("latency", share=0.001, locked=[], sizes={}, turned=[])


def test_the_front_and_the_advice_hold_what_they_say(known):
    _, session = known
    told = Session.from_json(session)
    for count, choices in session["fronts"].items():
        assert len(choices) <= 96 and choices[0]["keep"] == {name: group.size for name, group in told.groups.items()}
        for choice in choices[::20]:
            assert choice["count"] == pytest.approx(told.counts[count](choice["keep"]))
            assert choice["rises"] == pytest.approx(told.predicted(choice["keep"]))
    smallest = [one["parameters"] for one in session["advice"]]
    assert [one["allowed"] for one in session["advice"]] == [0.001, 0.01, 0.05] and smallest == sorted(smallest, reverse=True)
    for one in session["advice"]:
        assert one["measured"]["accuracy"] >= session["baseline"]["accuracy"] * (1 - one["allowed"])


def test_the_report_has_each_group_by_itself(known):
    stages, session = known
    facts = json.loads((stages.folders["whatif"] / "whatif.json").read_text())
    assert facts["baseline"] == session["baseline"]
    for group in session["groups"]:
        alone = facts["groups"][group["name"]]
        assert alone["keep"] == list(range(group["size"] + 1)) and alone["removal_order"] == group["removal_order"]
        assert len(alone["measured"]) == 3 and all(point["rows"] == session["rows"] for point in alone["measured"])
        rises = np.array(alone["predicted"]) - session["baseline"]["loss"]
        assert rises == pytest.approx(group["rises"]["loss"], abs=1e-12) and alone["unavailable"] is None
        assert alone["predicted_cost"][0] == 1 and alone["parameters"][-1] == 21674


@pytest.mark.parametrize(("keep", "said"), [
    ({"layers.0": 0}, "can keep 1 to 128 units; it cannot keep 0"), ({"nothing": 3}, "There is no group 'nothing'"),
    ({"layers.0": True}, "it cannot keep True"), ({"layers.0": 129}, "it cannot keep 129")])
def test_what_cannot_be_measured_is_said(known, keep, said):
    with pytest.raises(OptionError, match=said):
        known[0].run("measure", keep=keep)


def test_three_rows_give_a_session_that_says_so(samples, tmp_path):
    rows = np.load(samples.probe("digits_mlp.pt2"))
    np.savez(tmp_path / "few.npz", x=rows["x"][:3], y=rows["y"][:3])
    (tmp_path / "stages").mkdir()
    stages = begun(samples.file("digits_mlp.pt2"), tmp_path / "few.npz", tmp_path / "stages")
    session = stages.run("whatif")
    assert session["groups"] == [] and session["notes"][0].startswith("A what-if needs at least 4 probe rows")
    assert set(session["unavailable"].values()) == {session["notes"][0]} and session["baseline"]["rows"] == 1
    with pytest.raises(OptionError, match="Group layers.0 cannot be made smaller: A what-if needs at least 4 probe rows"):
        stages.run("measure", keep={"layers.0": 3})


def test_near_duplicates_are_told_with_what_merging_them_costs(known):
    stages, _ = known
    groups = json.loads(stages.file("whatif.json").read_text())["groups"]
    for merges in (group["merges"] for group in groups.values() if not group["unavailable"]):
        assert all(pair["r2"] >= 0.95 and pair["removed"] not in merges["keep"] for pair in merges["pairs"])
        assert 0 <= merges["refitted"] <= merges["merged"] + 1e-12
        assert bool(merges["pairs"]) == (merges["merged"] > 0)
