"""Pyramids and tiles against plain numpy on the whole reordered matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipm.errors import NotFound
from cipm.views import (
    STATS,
    TILE,
    AxisMeta,
    MatrixFiles,
    build,
    encode,
    level_shape,
    levels,
    open_level,
    scale_exponent,
    tile_bytes,
    write_index,
    write_matrix,
    write_strip,
)

SHAPES = [(1, 1), (1, 1000), (1000, 1), (256, 256), (257, 255), (300, 1100), (513, 700)]


def sample(shape: tuple[int, int], kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=shape).astype(np.float32)
    if kind == "sparse":
        matrix[rng.random(shape) < 0.999] = 0
    if kind == "nan":
        matrix[rng.random(shape) < 0.5] = np.nan
        matrix[:, : shape[1] // 2] = np.nan
    return matrix


def blocks(shown: np.ndarray, level: int) -> np.ndarray:
    """Return the reordered matrix as [R, C, 4^L], NaN where a block hangs over the edge."""
    side = 1 << level
    rows, cols = level_shape(shown.shape, level)
    full = np.full((rows * side, cols * side), np.nan)
    full[: shown.shape[0], : shown.shape[1]] = shown
    return full.reshape(rows, side, cols, side).transpose(0, 2, 1, 3).reshape(rows, cols, -1)


def reference(shown: np.ndarray, level: int, stat: str) -> np.ndarray:
    cells = blocks(shown, level)
    known = ~np.isnan(cells)
    filled = np.where(known, cells, 0)
    if stat == "mean":
        with np.errstate(invalid="ignore"):
            return filled.sum(-1) / known.sum(-1)
    high, low = np.where(known, cells, -np.inf).max(-1), np.where(known, cells, np.inf).min(-1)
    return np.where(known.any(-1), np.where(high >= -low, high, low), np.nan)


def untile(stored: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    across, down = stored.shape[1], stored.shape[0]
    return stored.transpose(0, 2, 1, 3).reshape(down * TILE, across * TILE)[: shape[0], : shape[1]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["dense", "sparse", "nan", "zero"])
def test_every_level_equals_numpy_on_the_reordered_matrix(shape, kind, tmp_path):
    matrix = np.zeros(shape, np.float32) if kind == "zero" else sample(shape, kind)
    rng = np.random.default_rng(1)
    index = (rng.permutation(shape[0]).astype(np.int32), rng.permutation(shape[1]).astype(np.int32))
    exponent = scale_exponent(float(np.nanmax(np.abs(matrix), initial=0)))
    build(matrix, index, exponent, tmp_path)
    shown = matrix[np.ix_(*index)].astype(np.float64)
    for level in range(1, levels(shape)):
        for stat in STATS:
            stored = open_level(tmp_path, level, stat)
            got = untile(stored, level_shape(shape, level)).astype(np.float64) * 2.0**exponent
            np.testing.assert_allclose(got, reference(shown, level, stat), rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_level_zero_tiles_are_the_reordered_matrix_with_nan_beyond_its_edges(shape):
    matrix = sample(shape, "dense")
    rng = np.random.default_rng(2)
    index = (rng.permutation(shape[0]), rng.permutation(shape[1]))
    exponent = scale_exponent(float(np.abs(matrix).max()))
    across, down = -(-shape[1] // TILE), -(-shape[0] // TILE)
    at = [(x, y) for x in reversed(range(across)) for y in range(down)]
    tiles = np.frombuffer(tile_bytes(matrix, index, exponent, at), "<f2").reshape(-1, TILE, TILE)
    shown = np.full((down * TILE, across * TILE), np.nan, np.float32)
    shown[: shape[0], : shape[1]] = matrix[np.ix_(*index)]
    for tile, (x, y) in zip(tiles, at, strict=True):
        expected = shown[y * TILE:(y + 1) * TILE, x * TILE:(x + 1) * TILE]
        np.testing.assert_array_equal(np.isnan(tile), np.isnan(expected))
        np.testing.assert_allclose(tile.astype(np.float64) * 2.0**exponent, expected, rtol=5e-4, atol=1e-8)


def test_the_last_level_fits_one_tile_and_one_less_does_not():
    for shape in [*SHAPES, (4096, 11008), (65536, 3)]:
        top = levels(shape) - 1
        assert max(level_shape(shape, top)) <= TILE
        assert top == 0 or max(level_shape(shape, top - 1)) > TILE


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 0x7F7FFFFF))
def test_scale_keeps_the_largest_value_in_float16_to_eleven_bits(bits):
    absmax = float(np.array(bits, np.int32).view(np.float32))
    exponent = scale_exponent(absmax)
    back = encode(np.array([absmax], np.float32), exponent).astype(np.float64) * 2.0**exponent
    assert 2.0**14 < absmax / 2.0**exponent <= 2.0**15
    assert abs(back[0] / absmax - 1) <= 2**-11


def test_extremes_keep_their_sign_and_infinities_and_nan_survive(tmp_path):
    matrix = np.zeros((2, 512), np.float32)
    matrix[0, 0], matrix[1, 2], matrix[:, 4:6] = -7, np.inf, np.nan
    build(matrix, (np.arange(2), np.arange(512)), 0, tmp_path)
    row = open_level(tmp_path, 1, "maxabs")[0, 0, 0]
    assert row[0] == -7 and row[1] == np.inf and np.isnan(row[2]) and row[3] == 0


def test_files_round_trip_and_axes_follow_the_order(tmp_path):
    matrix = sample((3, 4), "dense")
    meta = write_matrix(tmp_path, "m0", matrix, title="first", rows=AxisMeta("hidden"),
                        cols=AxisMeta("conv:1", ids=[0, 0, 1, 1], blocks=2))
    write_index(tmp_path, "spectral", "m0", np.array([2, 0, 1]), np.array([2, 3, 0, 1]))
    write_strip(tmp_path, "hidden", [5, -1, 6])
    files = MatrixFiles(tmp_path, "m0")
    np.testing.assert_array_equal(files.array(), matrix)
    assert files.orders() == ["original", "spectral"] and meta["shape"] == [3, 4] and meta["nan"] == 0
    axes = files.axes("spectral")
    assert axes["rows"] == {"axis": "hidden", "blocks": 1, "ids": [2, 0, 1], "modules": [6, 5, -1]}
    assert axes["cols"] == {"axis": "conv:1", "blocks": 2, "ids": [1, 1, 0, 0], "modules": None}
    write_matrix(tmp_path, "m0-3", matrix + 1, title="of a class", rows=AxisMeta("hidden"), cols=AxisMeta("conv:1"), index="m0")
    like = MatrixFiles(tmp_path, "m0-3")
    assert like.orders() == files.orders() and like.index("spectral")[0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["", "..", "../m0", "m1", "/etc/passwd", "a\0b", ".hidden"])
def test_names_are_looked_up_never_joined(name, tmp_path: Path):
    write_matrix(tmp_path, "m0", np.ones((1, 1)), title="", rows=AxisMeta("a"), cols=AxisMeta("b"))
    with pytest.raises(NotFound):
        MatrixFiles(tmp_path, name)
    with pytest.raises(NotFound):
        MatrixFiles(tmp_path, "m0").index(name)


def test_a_matrix_of_nan_alone_has_a_summary(tmp_path):
    meta = write_matrix(tmp_path, "m", np.full((2, 2), np.nan), title="", rows=AxisMeta("a"), cols=AxisMeta("b"))
    assert (meta["absmax"], meta["nan"]) == (0.0, 4)
