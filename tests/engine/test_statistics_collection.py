"""Collection with real torch modules: samples, halves, positions, padding, passes, shards, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cipm.errors import InputError, ProbeError
from cipm.stages import segments, shard_rows
from cipm.statistics import Covariance, Profile
from cipm.statistics.collect import collect
from cipm.statistics.plan import plan_collection, tap_bytes
from cipm.statistics.sampling import Layout, evenly_spaced, sampling_effect, staggered
from cipm.symmetry.taps import Tap


class Net(nn.Module):
    """A convolution, a pool and two linear layers, with its activations handed to observers by name."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 6, 3), nn.Linear(6 * 9, 7), nn.Linear(7, 3)

    def forward(self, x, observe=None):
        shown = {"conv": torch.relu(self.conv(x))}
        shown["flat"] = nn.functional.max_pool2d(shown["conv"], 2).flatten(1)
        shown["hidden"] = torch.tanh(self.fc1(shown["flat"]))
        for name, value in shown.items():
            if observe and name in observe:
                observe[name](value)
        return shown


def forward(net):
    return lambda inputs, observe: net(inputs["x"], observe)


def channels(value: str, axis: int, units: int, elements: int = 1) -> Tap:
    return Tap(value, axis, np.arange(units * elements).reshape(units, elements), ())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def test_collect_equals_statistics_of_the_whole_activation(net):
    x = torch.randn(101, 1, 8, 8)
    taps = [channels("conv", 1, 6), channels("flat", 1, 6, 9), channels("hidden", 1, 7)]
    seen = []
    found = collect(forward(net), taps, [{"x": part} for part in x.split(17)], positions=0, progress=seen.append)
    shown = {name: value.detach().double().numpy() for name, value in net(x).items()}
    direct = [np.moveaxis(shown["conv"], 1, -1).reshape(-1, 6),
              shown["flat"].reshape(-1, 6, 9).transpose(0, 2, 1).reshape(-1, 6), shown["hidden"]]
    for tap, samples in zip(taps, direct, strict=True):
        split = found[tap].half
        assert split.rows == 101 and split.samples == len(samples)
        np.testing.assert_allclose(split.whole.correlation(), np.corrcoef(samples.T), atol=2e-6)
        np.testing.assert_allclose(split.whole.mean, samples.mean(axis=0), atol=1e-6)
    assert seen[-1] == 101 and seen == sorted(seen)


@pytest.mark.parametrize("batch", [1, 7, 50, 101])
def test_halves_are_even_and_odd_rows_whatever_the_batches(net, batch):
    x = torch.randn(101, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    tap = channels("hidden", 1, 7)
    split = collect(forward(net), [tap], [{"x": part} for part in x.split(batch)], positions=0)[tap].half
    hidden = net(x)["hidden"].detach().double().numpy()
    assert (split.even.samples, split.odd.samples) == (51, 50)
    np.testing.assert_allclose(split.even.correlation(), np.corrcoef(hidden[::2].T), atol=2e-6)
    np.testing.assert_allclose(split.odd.correlation(), np.corrcoef(hidden[1::2].T), atol=2e-6)


def test_positions_are_sampled_evenly_and_counted(net):
    x = torch.randn(20, 1, 8, 8)
    tap = channels("conv", 1, 6)
    split = collect(forward(net), [tap], [{"x": x}], positions=5)[tap].half
    samples = np.moveaxis(net(x)["conv"].detach().double().numpy(), 1, -1).reshape(20, 36, 6)[:, staggered(36, 5)]
    assert split.samples == 100 and split.rows == 20
    np.testing.assert_allclose(split.whole.correlation(), np.corrcoef(samples.reshape(-1, 6).T), atol=2e-6)


@pytest.mark.parametrize("spread", [evenly_spaced, staggered])
def test_chosen_positions_are_distinct_in_range_and_centred(spread):
    assert spread(10, 0).tolist() == spread(10, 10).tolist() == spread(10, 99).tolist() == list(range(10))
    for total, wanted in [(10, 3), (64, 63), (36, 35), (1000, 7), (1024, 64)]:
        chosen = spread(total, wanted)
        assert len(set(chosen)) == wanted and 0 <= chosen.min() and chosen.max() < total
        assert abs(chosen.mean() - (total - 1) / 2) <= max(0.5, 0.1 * total / wanted)
    assert len(set(staggered(1024, 64) % 32)) > 25, "an image is read in all its columns"


def test_samples_of_elements_and_axes():
    x = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    index = np.array([[0, 2], [1, 3]])  # two units of two elements on the last axis
    expected = [[[x[r, p, index[u, e]] for u in range(2)] for p in range(3) for e in range(2)] for r in range(2)]
    assert torch.equal(Layout((2, 3, 4), 2, index, 0).of(x), torch.tensor(expected))
    some = Layout((2, 3, 4), 2, index, 4)
    assert torch.equal(some.of(x), torch.tensor(expected)[:, some.chosen]) and some.chosen.size == 4
    flat = Layout((2, 12), 1, np.arange(12).reshape(2, 6), 0)
    assert torch.equal(flat.of(x.flatten(1)), x.reshape(2, 2, 6).movedim(1, 2))


def test_rows_merged_with_positions_are_told_apart():
    """A value of shape [rows × positions, units] belongs to its rows."""
    x, tap = torch.randn(9, 5, 4), channels("v", 1, 4)
    split = collect(lambda inputs, observe: observe["v"](inputs["x"].flatten(0, 1)), [tap], [{"x": x}], positions=0)[tap].half
    assert split.rows == 9 and split.even.samples == 25
    np.testing.assert_allclose(split.even.correlation(), np.corrcoef(x[::2].flatten(0, 1).double().numpy().T), atol=2e-6)


def test_nested_taps_of_one_value_do_not_collide(net):
    x = torch.randn(30, 1, 8, 8)
    coarse, fine, same = channels("flat", 1, 6, 9), channels("flat", 1, 54), channels("flat", 1, 54)
    found = collect(forward(net), [coarse, fine, same], [{"x": x}], positions=0)
    assert found[coarse].half.whole.units == 6 and found[fine].half.whole.units == 54 and found[same] is not found[coarse]
    assert np.array_equal(found[fine].half.whole.covariance(), found[same].half.whole.covariance())


def test_nonfinite_activation_names_row_and_value(net):
    x = torch.randn(40, 1, 8, 8)
    x[33, 0, 4, 4] = float("inf")
    with pytest.raises(ProbeError, match="probe row 33 the activation conv is") as caught:
        collect(forward(net), [channels("conv", 1, 6)], [{"x": part} for part in x.split(16)], positions=0)
    assert "row 33" in caught.value.where


def test_no_rows_are_refused(net):
    with pytest.raises(ProbeError, match="no rows"):
        collect(forward(net), [channels("conv", 1, 6)], [], positions=0)


# --- padding ------------------------------------------------------------------------------------------------------


def padded(lengths, width: int, units: int = 4, left: bool = False):
    """Rows of different lengths, padded to `width` with wild values; the mask; and the real samples."""
    rows = [np.random.default_rng(i).standard_normal((n, units)).astype(np.float32) for i, n in enumerate(lengths)]
    x, mask = np.full((len(rows), width, units), 1e6, np.float32), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        x[i, place], mask[i, place] = row, 1
    return torch.from_numpy(x), torch.from_numpy(mask), rows


def read(inputs, observe):
    observe["v"](inputs["x"])


LENGTHS = [5, 1, 9, 7, 0, 9, 3, 8, 2]


@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_padding_changes_nothing(positions, left, merged):
    """Rows padded to two widths, on the left or right, and rows of their own length one by one: the same statistics."""
    tap, labels = channels("v", 1 if merged else 2, 4), np.arange(9) % 2

    def shown(inputs, observe):
        observe["v"](inputs["x"].flatten(0, 1) if merged else inputs["x"])
    found = []
    for width in (9, 14):
        x, mask, rows = padded(LENGTHS, width, left=left)
        batches = [{"x": x[i:i + 4], "attention_mask": mask[i:i + 4]} for i in range(0, 9, 4)]
        found.append(collect(shown, [tap], batches, positions=positions, labels=labels)[tap])
    alone = [{"x": torch.from_numpy(row)[None]} for row in rows if len(row)]
    kept = [min(n, positions or n) for n in LENGTHS]
    for one in found:
        assert one.half.samples == sum(kept) and one.half.rows == 9 and one.said == ()
        np.testing.assert_allclose(one.half.whole.covariance(), found[0].half.whole.covariance(), rtol=1e-6, atol=1e-7)
        assert np.array_equal(one.profile.histogram.counts, found[0].profile.histogram.counts)
        np.testing.assert_allclose(one.profile.classes.means, found[0].profile.classes.means, rtol=1e-6)
    assert found[1].padding - found[0].padding == 9 * 5 and found[0].possible - found[0].padding == sum(LENGTHS)
    assert found[0].profile.samples == 8, "a row of padding alone has no sample"
    single = collect(read, [channels("v", 2, 4)], alone, positions=positions).popitem()[1]
    np.testing.assert_allclose(single.half.whole.covariance(), found[0].half.whole.covariance(), rtol=1e-5, atol=1e-6)


def test_a_mask_of_ones_is_no_mask():
    x = torch.randn(6, 5, 4)
    tap = channels("v", 2, 4)
    masked = collect(read, [tap], [{"x": x, "attention_mask": torch.ones(6, 5, dtype=torch.bool)}], positions=2)[tap]
    plain = collect(read, [tap], [{"x": x}], positions=2)[tap]
    assert np.array_equal(masked.half.whole.covariance(), plain.half.whole.covariance()) and masked.padding == 0


@pytest.mark.parametrize("shape, axis, extra, words", [
    ((6, 4, 5), 1, {}, "not certain which axis"),            # channels first
    ((6, 5, 5, 4), 3, {}, "not certain which axis"),         # a square of positions
    ((6, 5, 4), 2, {"decoder_input_ids": (6, 5)}, "not certain whose positions"),
    ((6, 4), 1, {}, None), ((6, 7, 4), 2, {}, None),         # no such axis: nothing to mask, nothing to say
])
def test_where_masking_is_not_certain_it_is_not_done_and_said(shape, axis, extra, words):
    x, mask, tap = torch.randn(shape), torch.zeros(6, 5, dtype=torch.int64), channels("v", axis, 4)
    inputs = {"x": x, "attention_mask": mask, **{name: torch.zeros(size) for name, size in extra.items()}}
    found = collect(read, [tap], [inputs], positions=0)[tap]
    assert found.padding == 0 and found.half.samples == x.numel() // 4
    assert (words is None and found.said == ()) or words in found.said[0]


def test_a_mask_that_is_not_of_zeros_and_ones_is_none():
    x, tap = torch.randn(6, 5, 4), channels("v", 2, 4)
    for mask in (torch.zeros(6, 5), torch.full((6, 5), -10_000), torch.zeros(6, 1, 5, 5, dtype=torch.bool)):
        assert collect(read, [tap], [{"x": x, "attention_mask": mask}], positions=0)[tap].half.samples == 30


# --- passes and shards --------------------------------------------------------------------------------------------


def test_the_plan_keeps_to_its_memory_and_names_what_does_not_fit():
    taps = [channels(f"v{n}", 1, n) for n in (300, 40, 1000, 200, 20, 150)]
    memory = tap_bytes(300) + tap_bytes(200)
    plan = plan_collection(taps, memory=memory)
    assert all(one.bytes == sum(tap_bytes(len(t.index)) for t in one.taps) <= memory for one in plan.passes)
    assert len(plan.passes) == 2 and {t for one in plan.passes for t in one.taps} == {*taps} - {taps[2]}
    assert all(list(one.taps) == sorted(one.taps, key=taps.index) for one in plan.passes)
    assert plan.left_out == ((taps[2], tap_bytes(1000)),)
    assert "5 activations are collected in 2 forward passes" in plan.words
    assert "v1000 (1,000 units, " in plan.words and "statistics_memory" in plan.words
    assert plan_collection([], memory=1).words == "No activation is collected."


def test_tap_bytes_bound_what_is_used():
    units = 700
    one = Covariance.create(units, threads="torch")
    x = np.random.default_rng(0).standard_normal((2000, units)).astype(np.float32)
    words = one.update(x)._live
    used = words.triangle.nbytes + words._products._sum.nbytes + words._centring.buffer.nbytes
    profile = Profile.create(units, classes=10).state()
    assert 2 * used < tap_bytes(units, classes=10) < 2.2 * used + sum(a.nbytes for a in profile.values())


@pytest.mark.parametrize("rows, batch", [(1, 7), (2048, 256), (10_000, 256), (500_000, 300), (5000, 4096)])
def test_shards_are_whole_segments_and_cover_the_rows(rows, batch):
    cuts = segments(rows, batch)
    assert len(cuts) <= 64 and cuts[0] == 0 and all(cut % batch == 0 for cut in cuts)
    for shards in (1, 2, 3, 64):
        parts = shard_rows(cuts, rows, shards)
        assert len(parts) == min(shards, len(cuts)) and parts[0][0] == 0 and parts[-1][1] == rows
        assert all(a[1] == b[0] and a[0] < a[1] for a, b in zip(parts, parts[1:], strict=False))
        assert {first for first, _ in parts} <= set(cuts)


@pytest.mark.parametrize("positions", [0, 5])
def test_shards_merge_to_the_whole_stream_in_any_order(net, positions):
    """Float32 activations, odd batches: the shards begin at the cuts of the whole."""
    x, labels = torch.randn(150, 1, 8, 8) + 2, np.arange(150) % 3
    taps = [channels("conv", 1, 6), channels("flat", 1, 6, 9), channels("hidden", 1, 7)]
    cuts = (0, 45, 90, 135)

    def part(first, end):
        batches = [{"x": x[i:min(i + 15, end)]} for i in range(first, end, 15)]
        return collect(forward(net), taps, batches, positions=positions, start=(first // 15, first), cuts=cuts[1:],
                       labels=labels)
    whole = part(0, 150)
    shards = [part(first, end) for first, end in ((90, 150), (0, 45), (45, 90))]
    for tap in taps:
        merged = shards[0][tap].merge(shards[1][tap]).merge(shards[2][tap])
        one, other = whole[tap].half, merged.half
        assert (one.samples, one.rows, one.even.samples) == (other.samples, other.rows, other.even.samples)
        for a, b in ((one.whole, other.whole), (one.even, other.even), (one.odd, other.odd)):
            scale = np.sqrt(np.outer(a.variance, a.variance)) + 1e-300
            assert (np.abs(a.covariance() - b.covariance()) / scale).max() <= 1e-12
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
            assert a.dead.tolist() == b.dead.tolist()
        assert np.array_equal(whole[tap].profile.histogram.counts, merged.profile.histogram.counts)
        np.testing.assert_allclose(whole[tap].profile.classes.means, merged.profile.classes.means, rtol=1e-12)
        assert whole[tap].possible == merged.possible


def test_a_row_that_is_not_finite_is_named_in_its_shard(net):
    x = torch.randn(40, 1, 8, 8)
    x[33, 0, 4, 4] = float("nan")
    with pytest.raises(ProbeError, match="probe row 33 the activation conv is nan"):
        collect(forward(net), [channels("conv", 1, 6)], [{"x": x[20:]}], positions=0, start=(2, 20))


def test_what_sampling_costs_is_said():
    effect = sampling_effect(1024, 256)
    assert (effect["share"], effect["error_at_most"]) == (0.25, 2)
    assert effect["error_measured"] == pytest.approx(1.45, abs=0.01)
    assert "256 of 1024 positions" in effect["words"] and "1.5 ×" in effect["words"]
    assert sampling_effect(64, 64)["words"] == "Every position counts."


def test_fewer_positions_err_as_said():
    """Independent positions: a quarter of them doubles the error of a correlation."""
    rng, errors = np.random.default_rng(0), {}
    for positions in (0, 4):
        found = []
        for _ in range(60):
            x = torch.from_numpy(rng.standard_normal((40, 16, 2)).astype(np.float32))
            tap = channels("v", 2, 2)
            found.append(collect(read, [tap], [{"x": x}], positions=positions)[tap].half.whole.correlation()[0, 1])
        errors[positions] = np.std(found)
    assert 1.5 < errors[4] / errors[0] < 2.7


# --- bad input: each a defined answer -----------------------------------------------------------------------------


def test_one_row_has_means_but_no_correlation(net):
    tap = channels("hidden", 1, 7)
    found = collect(forward(net), [tap], [{"x": torch.randn(1, 1, 8, 8)}], positions=0)[tap]
    assert (found.half.samples, found.half.even.samples, found.half.odd.samples) == (1, 1, 0)
    assert found.half.whole.dead.all() and np.isfinite(found.half.whole.mean).all()
    with pytest.raises(InputError, match="needs at least two samples; there is one"):
        found.half.whole.correlation()


def test_constant_units_one_unit_and_more_units_than_samples():
    x = torch.randn(6, 40)
    x[:, 3] = 0.7
    wide, single = channels("v", 1, 40), Tap("v", 1, np.array([[5]]), ())
    found = collect(read, [wide, single], [{"x": x}], positions=0)
    c = found[wide].half.whole.correlation()
    assert np.flatnonzero(found[wide].half.whole.dead).tolist() == [3] and (np.delete(c[3], 3) == 0).all()
    assert np.isfinite(c).all() and (c.diagonal() == 1).all()
    assert np.linalg.matrix_rank(np.delete(np.delete(c, 3, 0), 3, 1), tol=1e-4) == 5
    assert found[single].half.whole.correlation().tolist() == [[1.0]]
