"""Covariance and correlation against numpy in float64, the noise edge, and collection with real torch modules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cipm.errors import InputError, ProbeError
from cipm.modules import effective_dimension
from cipm.statistics import Covariance, HalfSplit, correlation
from cipm.statistics.collect import collect, evenly_spaced, samples_of
from cipm.statistics.covariance import BLOCK_SAMPLES
from cipm.statistics.spectrum import denoise, isolated, spectral_edge
from cipm.symmetry.groups import Tap


def draw(samples: int, units: int, mean: float = 0.0, dtype=np.float32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, units)) @ (np.eye(units) + rng.standard_normal((units, units)) / units**0.5)
    return (x + mean).astype(dtype)


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e3, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_correlation_equals_numpy_in_float64(mean, dtype):
    x = draw(9000, 40, mean, dtype)
    expected = np.corrcoef(x.T.astype(np.float64))
    found = correlation(x[i:i + 700] for i in range(0, len(x), 700))
    assert np.abs(found - expected).max() <= (2e-6 if dtype == np.float32 else 1e-12)
    assert np.array_equal(found, found.T) and (found.diagonal() == 1).all()


def test_covariance_and_mean_equal_numpy():
    x = draw(2 * BLOCK_SAMPLES + 5, 12, 7.0, np.float64)
    found = Covariance.create(12).update(x)
    np.testing.assert_allclose(found.covariance(), np.cov(x.T), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    assert found.samples == len(x)


def test_batches_that_drift_are_exact_too():
    """Sorted data: every batch has another mean, far from the first one's."""
    x = draw(6000, 10, 0.0) + np.linspace(0, 1e4, 6000, dtype=np.float32)[:, None] * np.arange(10, dtype=np.float32)
    found = correlation(x[i:i + 50] for i in range(0, 6000, 50))
    assert np.abs(found - np.corrcoef(x.T.astype(np.float64))).max() <= 2e-6


def test_dead_units_are_masked_and_nothing_is_nan():
    x = draw(500, 6, 3.0)
    x[:, 2], x[:, 5] = 0.1, 1e7  # neither is exactly representable after averaging
    found = Covariance.create(6).update(x[:100]).update(x[100:])
    assert found.dead.tolist() == [False, False, True, False, False, True]
    c = found.correlation()
    assert np.isfinite(c).all() and (c.diagonal() == 1).all()
    assert (c[2, [0, 1, 3, 4, 5]] == 0).all() and (found.covariance()[5] == 0).all()


def test_unit_that_changes_only_between_batches_is_alive():
    found = Covariance.create(2).update(np.ones((3, 2))).update(np.array([[1.0, 2.0]]))
    assert found.dead.tolist() == [True, False]
    merged = Covariance.create(1).update(np.ones((2, 1))).merge(Covariance.create(1).update(2 * np.ones((2, 1))))
    assert not merged.dead[0]


def test_one_ulp_of_variation_is_variation():
    x = np.full((100, 2), 1e4, dtype=np.float32)
    x[::2, 0] = np.nextafter(np.float32(1e4), np.float32(2e4))
    assert Covariance.create(2).update(x).dead.tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_values_whose_squares_leave_float32(scale):
    x = draw(300, 5) * np.float32(scale)
    assert np.abs(correlation([x]) - np.corrcoef(x.T.astype(np.float64))).max() < 2e-6


def test_values_whose_squares_leave_float64_are_refused():
    with pytest.raises(InputError, match="too large to square"):
        correlation([draw(10, 3, dtype=np.float64) * 1e200])


def test_nonfinite_value_is_named():
    x = draw(300, 4)
    x[200, 3] = np.nan
    with pytest.raises(InputError, match="Sample 260 has nan at unit 3") as caught:
        Covariance.create(4).update(x[:60]).update(x)
    assert caught.value.where == "sample 260, unit 3"


@pytest.mark.parametrize("rows, word", [(0, "there are none"), (1, "there is one")])
def test_too_few_samples_are_refused(rows, word):
    with pytest.raises(InputError, match=word):
        correlation([np.ones((rows, 3))] if rows else [])


def test_wrong_widths_are_refused():
    with pytest.raises(InputError, match=r"shape \[samples, 4\]; it has \[5, 3\]"):
        Covariance.create(4).update(np.ones((5, 3)))
    with pytest.raises(InputError, match=r"it has \[5\]"):
        correlation([np.ones(5)])
    with pytest.raises(InputError, match=r"shape \[samples, 3\]; it has \[2, 4\]"):
        correlation([np.ones((2, 3)), np.ones((2, 4))])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_torch_tensors_of_any_type(dtype):
    x = (torch.from_numpy(draw(400, 5)) * 20).to(dtype)
    expected = np.corrcoef(x.double().numpy().T)
    assert np.abs(correlation([x]) - expected).max() < 2e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    x = torch.from_numpy(draw(5000, 64, 100.0))
    assert np.abs(correlation([x.cuda()]) - correlation([x])).max() < 1e-5


def test_an_updated_accumulator_cannot_be_used_again():
    first = Covariance.create(2)
    first.update(np.eye(2))
    with pytest.raises(AssertionError, match="was updated"):
        first.update(np.eye(2))


def test_state_round_trip():
    split = HalfSplit(Covariance.create(3).update(draw(50, 3)), Covariance.create(3).update(draw(49, 3, seed=1)), 99)
    again = HalfSplit.from_state(split.state())
    assert np.array_equal(again.whole.correlation(), split.whole.correlation())
    assert (again.rows, again.samples) == (99, 99) and again.even.mean.tolist() == split.even.mean.tolist()
    assert np.array_equal(again.even.merge(again.odd).covariance(), split.whole.covariance())


# --- the edge of noise --------------------------------------------------------------------------------------------


def test_noise_rarely_exceeds_its_edge():
    rng = np.random.default_rng(0)
    exceeded = sum(denoise(correlation([rng.standard_normal((n_samples, units))]), n_samples).values.size > 0
                   for n_samples, units in [(60, 30), (200, 50), (50, 100), (400, 20)] for _ in range(25))
    assert exceeded <= 5


def test_edge_approaches_marchenko_pastur():
    assert spectral_edge(10_000, 1_000_000) == pytest.approx((1 + 0.1) ** 2, rel=0.01)
    assert all(np.isfinite(spectral_edge(n, s)) for n in (1, 2, 500) for s in (1, 2, 3, 10))


def test_block_iteration_equals_full_eigenvalues():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, 1100)
    x = 0.7 * rng.standard_normal((3000, 30))[:, labels] + 0.7 * rng.standard_normal((3000, 1100))
    c = correlation([x])
    factors = denoise(c, 3000)
    values = np.linalg.eigvalsh(c)[::-1]
    expected = values[values > factors.edge]
    assert factors.values.size == expected.size == 30
    np.testing.assert_allclose(factors.values, expected, rtol=1e-4)
    full = np.linalg.eigh(c)
    top = full.eigenvectors[:, -30:] * np.sqrt(full.eigenvalues[-30:])
    assert np.abs(factors.loadings @ factors.loadings.T - top @ top.T).max() < 1e-3


def test_effective_dimension_of_known_spectra():
    x = np.random.default_rng(0).standard_normal((5000, 4))
    c = correlation([np.c_[x[:, :2] @ np.random.default_rng(1).standard_normal((2, 20)), np.ones(5000)]])
    found = effective_dimension(c, 5000)
    assert (found.spectral_edge, found.variance_95) == (2, 2) and 1 < found.participation_ratio <= 2
    assert effective_dimension(np.eye(5), 100).spectral_edge == 0
    assert isolated(c).tolist() == [False] * 20 + [True]


# --- collection ---------------------------------------------------------------------------------------------------


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
        split = found[tap]
        assert split.rows == 101 and split.samples == len(samples)
        np.testing.assert_allclose(split.whole.correlation(), np.corrcoef(samples.T), atol=2e-6)
        np.testing.assert_allclose(split.whole.mean, samples.mean(axis=0), atol=1e-6)
    assert seen[-1] == 101 and seen == sorted(seen)


@pytest.mark.parametrize("batch", [1, 7, 50, 101])
def test_halves_are_even_and_odd_rows_whatever_the_batches(net, batch):
    x = torch.randn(101, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    tap = channels("hidden", 1, 7)
    split = collect(forward(net), [tap], [{"x": part} for part in x.split(batch)], positions=0)[tap]
    hidden = net(x)["hidden"].detach().double().numpy()
    assert (split.even.samples, split.odd.samples) == (51, 50)
    np.testing.assert_allclose(split.even.correlation(), np.corrcoef(hidden[::2].T), atol=2e-6)
    np.testing.assert_allclose(split.odd.correlation(), np.corrcoef(hidden[1::2].T), atol=2e-6)


def test_positions_are_sampled_evenly_and_counted(net):
    x = torch.randn(20, 1, 8, 8)
    tap = channels("conv", 1, 6)
    split = collect(forward(net), [tap], [{"x": x}], positions=5)[tap]
    samples = np.moveaxis(net(x)["conv"].detach().double().numpy(), 1, -1).reshape(20, 36, 6)[:, evenly_spaced(36, 5)]
    assert split.samples == 100 and split.rows == 20
    np.testing.assert_allclose(split.whole.correlation(), np.corrcoef(samples.reshape(-1, 6).T), atol=2e-6)


def test_evenly_spaced_is_distinct_in_range_and_centred():
    assert evenly_spaced(10, 0).tolist() == evenly_spaced(10, 10).tolist() == evenly_spaced(10, 99).tolist()
    for total, wanted in [(10, 3), (64, 63), (1000, 7)]:
        chosen = evenly_spaced(total, wanted)
        assert len(set(chosen)) == wanted and 0 <= chosen.min() and chosen.max() < total
        assert abs(chosen.mean() - (total - 1) / 2) <= 0.5


def test_samples_of_elements_and_axes():
    x = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    index = np.array([[0, 2], [1, 3]])  # two units of two elements on the last axis
    expected = [[[x[r, p, index[u, e]] for u in range(2)] for p in range(3) for e in range(2)] for r in range(2)]
    assert torch.equal(samples_of(x, 2, index, 0), torch.tensor(expected))
    assert samples_of(x, -1, index, 4).shape == (2, 4, 2)
    assert torch.equal(samples_of(x[0], 0, np.array([[2], [0]]), 0), x[0][[2, 0]].T[None])


def test_rows_merged_with_positions_are_told_apart():
    """A value of shape [rows × positions, units] belongs to its rows."""
    x, tap = torch.randn(9, 5, 4), channels("v", 1, 4)
    split = collect(lambda inputs, observe: observe["v"](inputs["x"].flatten(0, 1)), [tap], [{"x": x}], positions=0)[tap]
    assert split.rows == 9 and split.even.samples == 25
    np.testing.assert_allclose(split.even.correlation(), np.corrcoef(x[::2].flatten(0, 1).double().numpy().T), atol=2e-6)


def test_nested_taps_of_one_value_do_not_collide(net):
    x = torch.randn(30, 1, 8, 8)
    coarse, fine, same = channels("flat", 1, 6, 9), channels("flat", 1, 54), channels("flat", 1, 54)
    found = collect(forward(net), [coarse, fine, same], [{"x": x}], positions=0)
    assert found[coarse].whole.units == 6 and found[fine].whole.units == 54 and found[same] is not found[coarse]
    assert np.array_equal(found[fine].whole.covariance(), found[same].whole.covariance())


def test_nonfinite_activation_names_row_and_value(net):
    x = torch.randn(40, 1, 8, 8)
    x[33, 0, 4, 4] = float("inf")
    with pytest.raises(ProbeError, match="probe row 33 the activation conv is") as caught:
        collect(forward(net), [channels("conv", 1, 6)], [{"x": part} for part in x.split(16)], positions=0)
    assert "row 33" in caught.value.where


def test_no_rows_are_refused(net):
    with pytest.raises(ProbeError, match="no rows"):
        collect(forward(net), [channels("conv", 1, 6)], [], positions=0)
