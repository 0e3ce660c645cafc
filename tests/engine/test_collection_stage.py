"""The stage that collects: passes within memory, shards that merge to the same numbers, and what is said of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from cipm.options import parse_options
from cipm.pipeline import RUN, run_job
from cipm.pipeline.activity import activity_facts, class_correlations, class_labels, class_means, why_no_classes
from cipm.pipeline.collecting import (
    collection_facts,
    collection_plan,
    read_statistics,
    shard_ranges,
    why_not_by_class,
    why_not_collected,
)
from cipm.pipeline.context import Context
from cipm.testing.models import save_pt2
from cipm.testing.networks import as_checkpoint
from cipm.trace import run

ROWS = 4500


class Small(nn.Module):
    """A convolution, a flattened linear layer, a sigmoid: [rows, 1, 6, 6] → [rows, 3]. One hidden unit is dead."""

    def __init__(self):
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(1, 5, 3), nn.Linear(80, 300)
        self.gate, self.out = nn.Linear(300, 60), nn.Linear(60, 3)
        with torch.no_grad():
            self.hidden.bias[4] = -1e3

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(1)
        return self.out(torch.sigmoid(self.gate(torch.relu(self.hidden(x)))))


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A context with the stages before `collect` done, and a function that gives one with other options."""
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    model = Small().eval()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, ROWS)
    x = rng.standard_normal((ROWS, 1, 6, 6)).astype(np.float32) + labels[:, None, None, None].astype(np.float32)
    np.savez(folder / "probe.npz", x=x, labels=labels)
    example = (torch.zeros(2, 1, 6, 6),)
    checkpoint = as_checkpoint(model, example)
    done = {}

    def make(events=None, **options):
        request = {"probe": str(folder / "probe.npz"), "kind": "analyze"}
        emit = (lambda event: None) if events is None else events.append
        context = Context(request, parse_options(options), dict(done), emit, {"checkpoint": checkpoint})
        return context
    for stage in ("discover", "probe"):
        (folder / stage).mkdir()
        RUN[stage](make(), folder / stage)
        done[stage] = folder / stage
    return make


def collected(context, folder, stage="collect"):
    folder.mkdir()
    RUN[stage](context, folder)
    context.folders[stage] = folder
    return context


def keys_and_covariances(context):
    statistics = read_statistics(context)
    return {key: half.whole for key, half in statistics.items()}


def same(one, other, tolerance):
    assert one.keys() == other.keys() and one
    for key, a in one.items():
        b = other[key]
        assert a.samples == b.samples and a.dead.tolist() == b.dead.tolist()
        scale = np.sqrt(np.outer(a.variance, a.variance)) + 1e-300
        assert (np.abs(a.covariance() - b.covariance()) / scale)[np.ix_(a.varies, a.varies)].max() <= tolerance


def test_passes_keep_to_memory_are_counted_and_give_the_same(ready, tmp_path):
    events = []
    one = collected(ready(), tmp_path / "one")
    many = collected(ready(events, statistics_memory=4), tmp_path / "many")
    facts = collection_facts(many)
    assert len(facts["passes"]) > 1 == len(collection_facts(one)["passes"])
    assert all(p["bytes"] <= 4 * 2**20 == facts["budget_bytes"] for p in facts["passes"])
    assert f"in {len(facts['passes'])} forward passes" in facts["words"]
    same(keys_and_covariances(one), keys_and_covariances(many), 0)
    progress = [e for e in events if e["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == ROWS * len(facts["passes"])
    assert [e["done"] for e in progress] == sorted(e["done"] for e in progress)
    assert sorted(tap["key"] for tap in facts["taps"]) == sorted(key for p in facts["passes"] for key in p["taps"])


def test_shards_give_what_the_whole_gives(ready, tmp_path):
    """Float32 activations: unsharded, three shards here, and three shards of which one was collected elsewhere."""
    whole = collected(ready(), tmp_path / "whole")
    here = collected(ready(shards=64), tmp_path / "here")
    ranges = shard_ranges(here)
    assert len(ranges) == 3 and [end - first for first, end in ranges] == [2048, 2048, 404]
    elsewhere = ready(shards=64)
    elsewhere.request["shard"] = 1
    collected(elsewhere, tmp_path / "shard", "shard")
    events = []
    rest = ready(events, shards=64)
    rest.request["shards"] = {"1": str(tmp_path / "shard")}
    collected(rest, tmp_path / "rest")
    same(keys_and_covariances(whole), keys_and_covariances(here), 1e-12)
    same(keys_and_covariances(here), keys_and_covariances(rest), 0)
    assert events[-1]["total"] == events[-1]["done"] == ROWS - 2048
    for key in read_statistics(whole):
        a, b, c = (read_statistics(context).profile(key) for context in (whole, here, rest))
        assert np.array_equal(a.histogram.counts, b.histogram.counts) and np.array_equal(a.histogram.counts, c.histogram.counts)
        np.testing.assert_allclose(b.classes.means, a.classes.means, rtol=1e-12)
        a, b, c = (read_statistics(context).by_class(key) for context in (whole, here, rest))
        assert np.array_equal(b.scatter, c.scatter) and np.array_equal(a.counts, c.counts)
        np.testing.assert_allclose(b.within_correlation(), a.within_correlation(), rtol=0, atol=1e-12)
    assert collection_facts(rest)["shards"] == 3
    assert collection_facts(rest)["taps"] == collection_facts(whole)["taps"]


def test_a_group_too_large_for_the_memory_is_named(ready, tmp_path):
    context = collected(ready(statistics_memory=3), tmp_path / "small")
    facts = collection_facts(context)
    assert [entry["units"] for entry in facts["left_out"]] == [300] and {tap["units"] for tap in facts["taps"]} == {5, 60}
    group = next(g for g in context.symmetry.groups if any(t.key == facts["left_out"][0]["key"] for t in g.taps))
    assert "more than statistics_memory = 3" in why_not_collected(context, group)
    assert len(read_statistics(context)) == 2 and facts["left_out"][0]["value"] in facts["words"]


def test_positions_there_and_kept_are_recorded(ready, tmp_path):
    context = collected(ready(positions=4), tmp_path / "few")
    by_units = {tap["units"]: tap for tap in collection_facts(context)["taps"]}
    conv, hidden = by_units[5], by_units[300]
    assert (conv["positions"]["there"], conv["positions"]["kept"], conv["positions"]["share"]) == (16, 4, 0.25)
    assert conv["positions"]["error_at_most"] == 2 and "4 of 16 positions" in conv["positions"]["words"]
    assert (hidden["positions"]["there"], hidden["positions"]["words"]) == (1, "Every position counts.")
    assert conv["samples"] == 4 * ROWS and conv["padding"] == {"samples": 0, "words": []}
    assert why_not_collected(context, context.symmetry.groups[0]) is None


def test_what_each_unit_does_by_itself(ready, tmp_path):
    context = collected(ready(), tmp_path / "activity")
    statistics = read_statistics(context)
    taps = {len(tap.index): tap for one in collection_plan(context).passes for tap in one.taps}
    hidden, gate = (activity_facts(statistics, taps[units]) for units in (300, 60))
    assert (hidden["range"], gate["range"]) == ([0, None], [0, 1])
    assert hidden["dead"] == hidden["never_active"] == [4] and hidden["saturated"] == [] and hidden["extreme"][4] == 1
    assert json.dumps(hidden, allow_nan=False) and hidden["rows"] == hidden["samples"] == ROWS
    x, labels = activation(context.checkpoint, context.probe.inputs, taps[60]), context.probe.labels.numpy()
    np.testing.assert_allclose(gate["mean"], x.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(gate["sd"], x.std(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(gate["low"], x.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(gate["quantiles"]["0.5"], np.median(x, axis=0), atol=2 * np.ptp(x, axis=0).max() / 64)
    means = np.stack([x[labels == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(class_means(statistics, taps[60]), means, atol=1e-6)
    between = np.bincount(labels) @ np.square(means - x.mean(axis=0))
    np.testing.assert_allclose(gate["classes"]["selectivity"], between / (x.var(axis=0) * ROWS), rtol=1e-4)
    assert gate["classes"]["preferred"] == means.argmax(axis=0).tolist() and gate["classes"]["rows"] == ROWS


def test_correlations_class_by_class_are_those_of_the_rows_of_the_class(ready, tmp_path):
    context = collected(ready(), tmp_path / "classes")
    statistics, labels = read_statistics(context), context.probe.labels.numpy()
    tap = next(tap for one in collection_plan(context).passes for tap in one.taps if len(tap.index) == 60)
    x = activation(context.checkpoint, context.probe.inputs, tap)
    found = class_correlations(statistics, tap)
    assert {name: samples for name, (_, samples) in found.items()} == {
        "within": ROWS, **{str(label): count for label, count in enumerate(np.bincount(labels))}}
    for label in range(3):
        np.testing.assert_allclose(found[str(label)][0], np.corrcoef(x[labels == label].T), atol=1e-4)
    apart = x - np.stack([x[labels == k].mean(axis=0) for k in range(3)])[labels]
    np.testing.assert_allclose(found["within"][0], np.corrcoef(apart.T), atol=1e-4)


@pytest.mark.parametrize("options, words", [
    ({"class_correlations": 2}, "take 2.06 MiB here, more than class_correlations = 2."), ({"class_correlations": 0}, "= 0."),
    ({"statistics_memory": 5}, "do not fit into statistics_memory = 5."), ({}, None)])
def test_where_correlations_class_by_class_do_not_fit_there_are_none_and_it_is_said(ready, tmp_path, options, words):
    context = collected(ready(**options), tmp_path / "some")
    statistics = read_statistics(context)
    tap = next(tap for one in collection_plan(context).passes for tap in one.taps if len(tap.index) == 300)
    said = why_not_by_class(context, 300)
    assert said is None if words is None else words in said
    assert bool(class_correlations(statistics, tap)) == (words is None) and class_means(statistics, tap).shape == (3, 300)
    assert all(p["bytes"] <= context.options.statistics_memory * 2**20 for p in collection_facts(context)["passes"])


def activation(checkpoint, inputs, tap):
    seen = []
    run(checkpoint.graph, checkpoint.tensors, checkpoint.constants, inputs, observe={tap.value: seen.append})
    return seen[0].double().numpy()


@pytest.mark.parametrize("labels, known", [
    (None, False), (torch.tensor([0, 1, 2]), True), (torch.tensor([0.0, 1.0]), "numbers, not classes"),
    (torch.zeros(3, 2).long(), True), (torch.zeros(3, 2, 4).long(), True), (torch.zeros(0).long(), "no label is 0 or more"),
    (torch.tensor([5, 70_000]), "labels reach 70,000, and classes are told apart up to 999"),
    (torch.tensor([999]), True), (torch.tensor([[0, 1000]]), "reach 1,000"),
    (torch.tensor([-100, 3]), True), (torch.tensor([-1, -1]), "no label is 0 or more"),
])
def test_which_labels_are_classes(labels, known):
    assert (class_labels(labels) is not None) == (known is True)
    assert known is True or labels is None or known in why_no_classes(labels)


def test_the_job_of_one_shard_and_its_count(tmp_path):
    """The chains that workers run: prepare says how many shards there are, shard gives one of them."""
    torch.manual_seed(0)
    model = save_pt2(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.zeros(2, 4), tmp_path / "m.pt2")
    np.savez(tmp_path / "p.npz", x=np.random.default_rng(0).standard_normal((5000, 4)).astype(np.float32))
    request = {"model": str(model), "probe": str(tmp_path / "p.npz"), "options": {"shards": 3}}
    (tmp_path / "a").mkdir()
    assert run_job({**request, "kind": "prepare"}, tmp_path / "a", lambda event: None) == {"shards": 3}
    done = {stage: str(tmp_path / "a" / stage) for stage in ("open", "discover", "probe")}
    (tmp_path / "b").mkdir()
    events = []
    assert run_job({**request, "kind": "shard", "shard": 2, "done": done}, tmp_path / "b", events.append) == {}
    assert [e["stage"] for e in events if e.get("state") == "done"] == ["shard"]
    assert json.loads((tmp_path / "b" / "shard" / "statistics.json").read_text())["taps"][0]["rows"] == 5000 - 4096
