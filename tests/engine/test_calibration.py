"""Predictions of whole networks go through those that were measured: along the front, off it, and between both."""

from __future__ import annotations

import math

import pytest

from cipm.calibration import FAR, excess, joined, lines, predicted_rise, rising

FRONTIER = [[100.0, 8.0], [200.0, 2.0], [400.0, 0.0]]


def test_excess_counts_how_many_times_more_is_lost_than_on_the_front():
    assert excess(FRONTIER, 200, 2.0) == 0 and excess(FRONTIER, 200, 1.0) == 0
    assert excess(FRONTIER, 200, 3.0) == pytest.approx(math.log(1.5))
    assert excess(FRONTIER, 150, 8.0) == pytest.approx(math.log(2))  # the front has 4 there, halfway in the logarithm
    assert excess(FRONTIER, 50, 16.0) == pytest.approx(math.log(2))  # below its smallest network it stays as it is
    assert excess([], 200, 3.0) == 0


def test_networks_along_the_front_and_off_it_make_a_line_each():
    made = lines([(1.0, 3.0, 0.0), (2.0, 5.0, 0.05), (1.5, 1.6, 0.9)])
    assert made["front"] == [pytest.approx([1.0, 3.0]), pytest.approx([2.0, 5.0])]
    assert made["off"] == [pytest.approx([1.5, 1.6])]
    assert lines([(1.0, 3.0, 0.0)])["off"] == [pytest.approx([1.0, 3.0])] == lines([(1.0, 3.0, 2.0)])["front"]
    assert lines([]) == {"front": [], "off": []}


def test_a_prediction_lies_between_both_lines_by_how_far_off_the_front_it_is():
    through = {"front": [[1.0, 4.0]], "off": [[1.0, 1.0]]}
    assert [predicted_rise(through, 1.0, far) for far in (0.0, FAR / 2, FAR, 5.0)] == pytest.approx([4.0, 2.0, 1.0, 1.0])
    assert predicted_rise(through, 0.5, 0.0) == pytest.approx(2.0) and predicted_rise(through, 0.0, 0.0) == 0
    assert predicted_rise({}, 0.7, 0.3) == pytest.approx(0.7)


def test_a_line_goes_through_its_points_and_never_falls():
    points = [[0.1, 0.2], [0.4, 0.1], [1.0, 1.5]]
    assert rising(points) == [pytest.approx(pair) for pair in ([0.1, math.sqrt(0.02)], [0.4, math.sqrt(0.02)], [1.0, 1.5])]
    values = [joined(points, total) for total in (0.01, 0.1, 0.2, 0.4, 0.7, 1.0, 3.0)]
    assert values == sorted(values) and values[1] == values[3] == pytest.approx(math.sqrt(0.02))
    assert values[0] == pytest.approx(0.1 * values[1]) and values[-1] == pytest.approx(4.5)
    assert joined([[1.0, 0.0], [2.0, -0.1]], 1.0) == pytest.approx(1e-9)
