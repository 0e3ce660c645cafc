"""Figures as pure functions."""

from __future__ import annotations

from typing import Any

from frontend.figures import whatif_curve


def test_losses_far_apart_get_a_logarithmic_axis_and_near_ones_start_at_zero():
    def axis(losses: list[float], baseline: float) -> dict[str, Any]:
        group = {"size": 4, "whatif": {"keep": [1, 2, 3, 4], "predicted": losses, "measured": []}}
        return whatif_curve(group, {"loss": baseline, "loss_kind": "cross_entropy"}, 2).to_plotly_json()["layout"]["yaxis"]

    far = axis([7.0, 1.0, 0.1, 0.05], 0.05)
    assert far["type"] == "log" and 10 ** far["range"][0] < 0.05 < 7 < 10 ** far["range"][1]
    assert axis([0.07, 0.06, 0.055, 0.05], 0.05)["rangemode"] == "tozero"
    vanishing = axis([1.0, 0.1, 1e-9, 0.0], 0.0)  # down to a ten-thousandth of the largest
    assert 1e-5 < 10 ** vanishing["range"][0] < 1e-4
