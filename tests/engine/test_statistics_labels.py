"""Labels of positions: class statistics against numpy at every layout of an activation, and where they are refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from cipm.options import parse_options
from cipm.ordering.importance import class_selectivity
from cipm.pipeline import RUN
from cipm.pipeline.activity import activity_facts, class_means
from cipm.pipeline.collecting import collection_notes, collection_plan, read_statistics
from cipm.pipeline.context import Context
from cipm.statistics.collect import collect
from cipm.statistics.sampling import evenly_spaced, staggered
from cipm.symmetry.taps import Tap
from cipm.testing.networks import as_checkpoint

ROWS, HIGH, WIDE, UNITS, CLASSES = 23, 3, 4, 5, 4
PLAIN = np.arange(UNITS)[:, None]


def seen(inputs, observe):
    observe["v"](inputs["x"])


def gather(x, labels, tap, *, size: int = 7, positions: int = 0, first: int = 0, forward=seen, **inputs):
    """Collect at one tap over batches of `size` rows; labels belong to all rows, the others to those from `first`."""
    parts = [{name: value[i:i + size] for name, value in {"x": x, **inputs}.items()} for i in range(0, len(x), size)]
    return collect(forward, [tap], parts, positions=positions, labels=labels, start=(first // size, first),
                   by_class=[tap.key])[tap]


def by_class(samples: np.ndarray, labels: np.ndarray):
    """The oracle: counts, means and the scatter within classes of samples [n, units] with labels [n]."""
    chosen = [samples[labels == k] for k in range(CLASSES)]
    within = sum(np.square(c - c.mean(axis=0)).sum(axis=0) for c in chosen if len(c))
    return np.array([len(c) for c in chosen]), [c.mean(axis=0) if len(c) else np.zeros(UNITS) for c in chosen], within


def assert_equal(found, samples: np.ndarray, labels: np.ndarray) -> None:
    counts, means, within = by_class(samples, labels)
    classes = found.profile.classes
    assert found.labels.of == "positions" and found.labels.words == () and classes.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(classes.means, means, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(classes.within, within, rtol=1e-10)
    each = found.classes
    assert each.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(each.means, means, rtol=1e-12, atol=1e-12)
    for label in np.flatnonzero(counts > 1):
        np.testing.assert_allclose(each.correlation_of(label), np.corrcoef(samples[labels == label].T), rtol=0, atol=1e-12)


@pytest.fixture
def data():
    """Float32 activations [rows, high, wide, units] and labels [rows, high, wide]; one label in five is ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES - 1, (ROWS, HIGH, WIDE))  # one class has no sample
    x = rng.standard_normal((ROWS, HIGH, WIDE, UNITS)).astype(np.float32) + labels[..., None] * 10
    labels[rng.random(labels.shape) < 0.2] = -100
    labels[4] = -100
    labels[0, 0, 0] = CLASSES - 1
    return x.astype(np.float32), labels


LAYOUTS = {
    "channels last": (lambda x: x, 3), "channels first": (lambda x: np.moveaxis(x, 3, 1), 1),
    "flattened": (lambda x: x.reshape(ROWS, -1, UNITS), 2), "flattened, channels first":
    (lambda x: np.moveaxis(x.reshape(ROWS, -1, UNITS), 2, 1), 1), "an axis of one": (lambda x: x[:, None], 4)}


@pytest.mark.parametrize("positions", [0, 5])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_statistics_take_every_kept_position(data, layout, flat, positions):
    x, labels = data
    shape, axis = LAYOUTS[layout]
    found = gather(torch.from_numpy(shape(x).copy()), labels.reshape(ROWS, -1) if flat else labels, Tap("v", axis, PLAIN, ()),
                   positions=positions)
    spread = evenly_spaced if layout.startswith("flattened") else staggered
    kept = spread(HIGH * WIDE, positions)
    assert_equal(found, x.reshape(ROWS, -1, UNITS)[:, kept].reshape(-1, UNITS).astype(float),
                 labels.reshape(ROWS, -1)[:, kept].ravel())


@pytest.mark.parametrize("positions", [0, 7])
def test_rows_merged_with_positions_and_samples_inside_a_position(data, positions):
    x, labels = (part.reshape(ROWS, HIGH * WIDE, *part.shape[3:]) for part in data)
    kept = evenly_spaced(HIGH * WIDE, positions)
    found = gather(torch.from_numpy(x), labels, Tap("v", 1, PLAIN, ()), positions=positions,
                   forward=lambda inputs, observe: observe["v"](inputs["x"].flatten(0, 1)))
    assert_equal(found, x[:, kept].reshape(-1, UNITS).astype(float), labels[:, kept].ravel())
    heads = np.stack([x, x + 1], axis=2)  # two heads at each position
    kept = staggered(2 * HIGH * WIDE, positions)
    found = gather(torch.from_numpy(heads), labels, Tap("v", 3, PLAIN, ()), positions=positions)
    assert_equal(found, heads.reshape(ROWS, -1, UNITS)[:, kept].reshape(-1, UNITS).astype(float),
                 labels.repeat(2, axis=1)[:, kept].ravel())
    pairs = np.concatenate([x, x - 2], axis=2)  # units of two elements
    kept = evenly_spaced(2 * HIGH * WIDE, positions)
    found = gather(torch.from_numpy(pairs), labels, Tap("v", 2, PLAIN + [[0, UNITS]], ()), positions=positions)
    assert_equal(found, np.stack([x, x - 2], axis=2).reshape(ROWS, -1, UNITS)[:, kept].reshape(-1, UNITS).astype(float),
                 labels.repeat(2, axis=1)[:, kept].ravel())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("positions", [0, 3])
def test_masked_positions_have_no_class(positions, first):
    """Also at values where masking is not certain (units before positions), where padding counts otherwise."""
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((ROWS, 8, UNITS)).astype(np.float32), rng.integers(0, CLASSES, (ROWS, 8))
    lengths = rng.integers(0, 9, ROWS)
    mask = (np.arange(8) < lengths[:, None]).astype(np.int64)
    shown = torch.from_numpy(np.moveaxis(x, 2, 1).copy() if first else x)
    found = gather(shown, labels, Tap("v", 1 if first else 2, PLAIN, ()), positions=positions,
                   attention_mask=torch.from_numpy(mask))
    kept = [[p for p in evenly_spaced(8, positions) if mask[row, p]] if first else
            evenly_spaced(length, positions) for row, length in enumerate(lengths)]
    rows = np.repeat(np.arange(ROWS), [len(k) for k in kept])
    at = np.concatenate(kept).astype(int)
    assert_equal(found, x[rows, at].astype(float), labels[rows, at])


@pytest.mark.parametrize("positions", [0, 5])
def test_shards_merge_to_the_same_in_any_order(data, positions):
    x, labels = torch.from_numpy(data[0]), data[1]
    tap = Tap("v", 3, PLAIN, ())
    whole = gather(x, labels, tap, positions=positions)
    parts = [gather(x[a:b], labels, tap, positions=positions, first=a) for a, b in ((14, 23), (0, 7), (7, 14))]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.labels == whole.labels and merged.labels.of == "positions"
    assert np.array_equal(merged.profile.classes.counts, whole.profile.classes.counts)
    np.testing.assert_allclose(merged.profile.classes.means, whole.profile.classes.means, rtol=1e-12)
    np.testing.assert_allclose(merged.profile.classes.within, whole.profile.classes.within, rtol=1e-12)
    np.testing.assert_allclose(merged.classes.within_correlation(), whole.classes.within_correlation(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_labels_of_rows_count_for_every_kept_position_in_the_correlation_of_a_class(padded):
    """A row of no class counts for none, a masked position neither."""
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.standard_normal((ROWS, 8, UNITS)).astype(np.float32))
    labels = rng.integers(-1, 2, ROWS)
    lengths = rng.integers(0, 9, ROWS) if padded else np.full(ROWS, 8)
    real = np.arange(8) < lengths[:, None]
    mask = {"attention_mask": torch.from_numpy(real.astype(np.int64))} if padded else {}
    found = gather(x, labels, Tap("v", 2, PLAIN, ()), **mask)
    assert found.labels.of == "rows" and found.profile.classes.counts.sum() <= (labels >= 0).sum()
    for label in (0, 1):
        mine = x.numpy()[labels == label][real[labels == label]].astype(float)
        assert found.classes.counts[label] == len(mine)
        np.testing.assert_allclose(found.classes.correlation_of(label), np.corrcoef(mine.T), rtol=0, atol=1e-12)


def test_one_label_for_each_row_in_more_axes_is_a_label_of_the_row(data):
    x, labels = torch.from_numpy(data[0]), np.arange(ROWS) % 3
    one, other = (gather(x, given, Tap("v", 3, PLAIN, ())) for given in (labels, labels[:, None, None]))
    assert one.labels == other.labels and one.labels.of == "rows" and one.profile.classes.samples == ROWS
    assert np.array_equal(one.profile.classes.means, other.profile.classes.means)


@pytest.mark.parametrize("shape, axis, wanted, inputs, words", [
    ((6, 7, 4), 2, (8,), {}, "with 7 positions a row has no statistics by class: the labels of a row name 8 positions."),
    ((6, 4), 1, (8,), {}, "with one position a row"), ((6, 4, 3, 4), 1, (4, 3), {}, "with 3 × 4 positions"),
    ((6, 8, 8, 4), 3, (8,), {}, "not certain how they hold the 8 positions"),
    ((12, 4, 4), 2, (8,), {}, "with 2 × 4 positions a row has no statistics by class: it is not certain"),  # windows
    ((6, 2, 2, 2, 4), 4, (8,), {}, "with 2 × 2 × 2 positions"), ((4, 3), 0, (3,), {}, "first axis does not count the rows"),
    ((6, 8, 4), 2, (8,), {"input_ids": (6, 8), "decoder_input_ids": (6, 8)}, "the 8 labels of a row belong to the encoder"),
])
def test_labels_that_do_not_fit_for_certain_are_not_used_and_said(shape, axis, wanted, inputs, words):
    given = {"rows": torch.zeros(6, 1), **{name: torch.zeros(size) for name, size in inputs.items()}}
    tap = Tap("v", axis, np.arange(4)[:, None], ())
    found = collect(lambda inputs, observe: observe["v"](torch.randn(shape)), [tap], [given], positions=0,
                    labels=np.zeros((6, *wanted), np.int64))[tap]
    assert found.labels.of is None and words in found.labels.words[0] and found.profile.classes.samples == 0


# --- the stages ---------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Units of positions and units of pooled rows: [rows, 6, 4] → [rows, 6, 3] and [rows, 3]."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.pooled, self.out = nn.Linear(4, 12), nn.Linear(12, 3), nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x))), self.out(torch.relu(self.pooled(x.mean(dim=1))))


def stages(folder, labels, x):
    """Run discover to organize over a probe; return the context and organize.json."""
    torch.manual_seed(0)
    np.savez(folder / "probe.npz", x=x, labels=labels)
    checkpoint = as_checkpoint(Tokens().eval().requires_grad_(False), (torch.zeros(2, 6, 4),))
    context = Context({"probe": str(folder / "probe.npz"), "kind": "analyze"}, parse_options({}), {}, lambda event: None,
                      {"checkpoint": checkpoint})
    for stage in ("discover", "probe", "collect", "organize"):
        (folder / stage).mkdir()
        RUN[stage](context, folder / stage)
        context.folders[stage] = folder / stage
    return context, json.loads((folder / "organize" / "organize.json").read_text())


def test_the_stages_use_labels_of_positions_and_say_where_they_cannot(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (400, 6))
    x = (rng.standard_normal((400, 6, 4)) + np.eye(3, 4)[labels] * 3).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = -100
    context, organized = stages(tmp_path, labels, x)
    taps = {len(tap.index): tap for one in collection_plan(context).passes for tap in one.taps}
    statistics, model = read_statistics(context), context.checkpoint.tensors
    hidden = np.maximum(x @ model["up.weight"].numpy().T + model["up.bias"].numpy(), 0).astype(float)
    means = np.stack([hidden[labels == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(class_means(statistics, taps[12]), means, atol=1e-6)
    tokens, pooled = (activity_facts(statistics, taps[units]) for units in (12, 7))
    known = int((labels >= 0).sum())
    classes = tokens["classes"]
    assert (classes["count"], classes["samples"], classes["rows"], classes["of"]) == (3, known, None, "positions")
    flat, kept = hidden[labels >= 0], labels[labels >= 0]
    within = sum(np.square(flat[kept == k] - means[k]).sum(axis=0) for k in range(3))
    total = np.square(flat - flat.mean(axis=0)).sum(axis=0)
    share = np.divide(total - within, total, where=total > 0, out=np.zeros(12))
    np.testing.assert_allclose(classes["selectivity"], share, atol=1e-6)
    assert pooled["classes"] is None and "with one position a row" in pooled["classes_words"][0]
    assert tokens["classes_words"] == [] and class_means(statistics, taps[7]) is None
    names = {group.size: group.name for group in context.symmetry.groups}
    orders = tmp_path / "organize" / "orders"
    chosen = np.load(orders / names[12] / "selectivity.npy")
    preferred = class_selectivity(means, np.sqrt(within / (known - 3))).preferred
    shown = preferred[chosen][preferred[chosen] >= 0]
    assert sorted(chosen.tolist()) == list(range(12)) and (np.diff(shown) >= 0).all()
    assert not (orders / names[7] / "selectivity.npy").exists()
    assert organized["groups"][names[7]]["classes"] is None
    assert organized["groups"][names[12]]["classes"]["samples"] == {
        "within": known, **{str(k): int((labels == k).sum()) for k in range(3)}}
    notes = " ".join(collection_notes(context))
    assert "the class of each of 6 positions" in notes and "the labels of a row name 6 positions" in notes
    assert json.dumps(organized, allow_nan=False)
