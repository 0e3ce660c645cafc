"""What units of stacked slices are observed to do: every slice at once, or those that an index chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stack_models import proved, tokens
from torch import Tensor

from cipm.load import Checkpoint
from cipm.options import parse_options
from cipm.permutation import Permutation
from cipm.pipeline import RUN
from cipm.pipeline.collecting import collection_notes
from cipm.pipeline.context import Context
from cipm.pipeline.organizing import _why_not
from cipm.statistics.collect import collect
from cipm.symmetry import CHOSEN_WORDS
from cipm.testing.networks import NETWORKS, as_checkpoint
from cipm.trace import run


def test_taps_show_the_units_of_every_slice() -> None:
    checkpoint, symmetry = proved("dense")
    inner, = [group for group in symmetry.groups if group.stacked]
    tap = inner.taps[0]
    seen: list[torch.Tensor] = []
    inputs = {i.name: tokens(17) for i in checkpoint.graph.inputs}
    run(checkpoint.graph, checkpoint.tensors, {}, inputs, observe={tap.value: seen.append})
    x, axis = tap.seen(seen[0])
    units = x.movedim(axis, -1)[..., torch.from_numpy(tap.index[:, 0].copy())]
    stacked = seen[0].movedim((tap.outer, tap.axis), (-2, -1))
    assert torch.equal(units.unflatten(-1, (5, 9)), stacked) and tap.consumers == (("blocks.0.second.down", 1),)
    found = collect(lambda batch, observe: run(checkpoint.graph, checkpoint.tensors, {}, batch, observe=observe),
                    [tap], [inputs], positions=0)
    assert found[tap].half.whole.mean == pytest.approx(units.reshape(-1, 45).mean(0).double().numpy(), abs=1e-6)


def hidden_of_experts(tensors: Mapping[str, Tensor], words: Tensor, chosen: int) -> Tensor:
    """Return what all units of all experts of Chosen and Ranked give [words, experts × 5], 0 where not chosen."""
    x = tensors["embed.weight"][words]
    best = (x @ tensors["router.weight"].T + tensors["router.bias"]).topk(chosen).indices
    gate, value = (torch.einsum("nd,edh->neh", x, tensors["up"]) + tensors["bias"]).chunk(2, -1)
    mask = torch.zeros(len(words), 3).scatter(1, best, 1.0)
    return (torch.nn.functional.silu(gate) * value * mask[..., None]).flatten(1)


@pytest.mark.parametrize(("name", "chosen"), [("chosen", 1), ("ranked", 2)])
def test_units_of_chosen_experts_are_seen_as_in_the_dense_layer(name: str, chosen: int) -> None:
    checkpoint, symmetry = proved(name)
    inner, = [group for group in symmetry.groups if group.stacked]
    tap, = inner.taps
    assert tap.consumers == (("down", 1),) and tap.chosen is not None and tap.chosen.slices == 3
    assert np.array_equal(tap.index, np.arange(15)[:, None])
    assert symmetry.group(inner.parent).taps[0].index.shape == (3, 5)  # the experts are read there too
    x = torch.randint(11, (10, 6), generator=torch.Generator().manual_seed(1))
    batches = [{checkpoint.graph.inputs[0].name: part} for part in x.split(4)]
    found = collect(lambda batch, observe: run(checkpoint.graph, checkpoint.tensors, {}, batch, observe=observe),
                    [tap], batches, positions=0)[tap]
    dense = hidden_of_experts(checkpoint.tensors, x.flatten(), chosen).double().detach().numpy()
    assert found.half.samples == 60 and found.half.rows == 10
    assert found.half.whole.mean == pytest.approx(dense.mean(0), rel=1e-5, abs=1e-6)
    assert found.half.whole.covariance() == pytest.approx(np.cov(dense.T), rel=1e-5, abs=1e-6)
    even = dense.reshape(10, 6, 15)[::2].reshape(-1, 15)
    assert found.half.even.covariance() == pytest.approx(np.cov(even.T), rel=1e-5, abs=1e-6)
    assert (np.abs(found.half.whole.correlation()[:5, 5:10]) > 0.02).any()  # units of two experts are compared


def test_units_that_an_input_chooses_are_seen() -> None:
    checkpoint, symmetry = proved("tasks")
    taps = [group.taps[0] for group in symmetry.groups]
    x, task = torch.randn(8, 5, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 3, 1, 2, 1, 1, 0, -1])
    inputs = dict(zip((i.name for i in checkpoint.graph.inputs), (x, task), strict=True))
    found = collect(lambda batch, observe: run(checkpoint.graph, checkpoint.tensors, {}, batch, observe=observe),
                    taps, [inputs], positions=0)
    hidden = torch.einsum("bi,sih->bsh", x, checkpoint.tensors["first"]).tanh()
    hidden = hidden * torch.nn.functional.one_hot(task % 4, 4)[..., None]
    for tap in taps:
        which = int(tap.index[0, 0]) // 7
        assert found[tap].half.whole.mean == pytest.approx(hidden[:, which].mean(0).double().detach().numpy(), abs=1e-6)


def test_units_of_chosen_experts_have_modules_and_orders(tmp_path: Path) -> None:
    checkpoint, symmetry = proved("ranked")
    inner, = [group for group in symmetry.groups if group.stacked]
    context, facts = organized(checkpoint, np.random.default_rng(0).integers(0, 11, (40, 6)), tmp_path)
    assert facts[inner.name]["unavailable"] is None and facts[inner.name]["similarity"] == "pearson"
    assert facts[inner.parent]["similarity"] == "linear CKA"
    order = np.load(tmp_path / "organize" / "orders" / inner.name / "importance.npy")
    assert Permutation(order).keeps_blocks(3) and facts[inner.name]["activity"]["samples"] == 40
    assert CHOSEN_WORDS in collection_notes(context)


def test_key_value_groups_are_compared_by_all_that_their_query_heads_give(tmp_path: Path) -> None:
    network = NETWORKS["llama_rotary"]
    checkpoint, words = as_checkpoint(network.make(), network.example()), np.random.default_rng(0).integers(0, 17, (30, 6))
    context, facts = organized(checkpoint, words, tmp_path)
    group = next(g for g in context.symmetry.groups if g.kind == "heads" and g.size == 2)
    assert facts[group.name]["similarity"] == "linear CKA" and facts[group.name]["unavailable"] is None
    tap, seen = group.taps[-1], []
    run(checkpoint.graph, context.checkpoint.tensors, checkpoint.constants,
        {checkpoint.graph.inputs[0].name: torch.from_numpy(words)}, observe={tap.value: seen.append})
    c = np.cov(seen[0].movedim(tap.axis, -1).flatten(0, -2).double().detach().numpy().T)
    one, other = tap.index
    norm = np.linalg.norm
    expected = norm(c[np.ix_(one, other)]) ** 2 / (norm(c[np.ix_(one, one)]) * norm(c[np.ix_(other, other)]))
    assert np.load(tmp_path / "organize" / "correlation" / f"{group.name}.npy")[0, 1] == pytest.approx(expected, rel=1e-3)
    wider = replace(context, options=parse_options({"max_width": 16}))
    assert _why_not(wider, group) == "Its 2 units have 48 elements in all, more than max_width = 16."


def organized(checkpoint: Checkpoint, probe: np.ndarray, folder: Path) -> tuple[Context, dict[str, Any]]:
    """Run the stages up to `organize` in the folder; return their context and what is said of each group."""
    checkpoint = checkpoint.with_tensors({key: tensor.detach() for key, tensor in checkpoint.tensors.items()})
    np.savez(folder / "probe.npz", x=probe)
    done: dict[str, Path] = {}
    for stage in ("discover", "probe", "collect", "organize"):
        (folder / stage).mkdir()
        context = Context({"probe": str(folder / "probe.npz"), "kind": "analyze"}, parse_options({}), dict(done),
                          lambda event: None, {"checkpoint": checkpoint})
        RUN[stage](context, folder / stage)
        done[stage] = folder / stage
    return replace(context, folders=done), json.loads((folder / "organize" / "organize.json").read_text())["groups"]
